"""Copies of the checkout in which mutants are tried; the working tree is never changed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Mutants that no test can tell from the original.
LIST = "tests/equivalent_mutants.yaml"
# Python takes a compiled module for current when the source's size and whole second are the same; a mutant often has
# the size of its original, so that each write is given a second of its own.
_SECONDS = itertools.count(int(time.time()))


class Tree:
    """A copy of the files of ``root`` that git tracks or would, in ``folder``, made anew each time."""

    def __init__(self, root: Path, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for name in files(root):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target)
        # Real recordings are looked for beside the checkout.
        beside = folder.parent / "shared"
        if (root.parent / "shared").is_dir() and not beside.exists():
            beside.symlink_to(root.parent / "shared")
        self.folder = folder
        self._process: subprocess.Popen[str] | None = None

    def environment(self, **more: str) -> dict[str, str]:
        """For processes that import from this copy, and the plugin beside this file."""
        path = os.pathsep.join((str(self.folder), str(Path(__file__).parent)))
        fixed = {"PYTHONPATH": path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        return {**os.environ, **fixed, **more}

    def run(self, **job: object) -> str:
        """Run tests in this copy, in a fork of a process of its own; arguments and answer are those of ``preloaded``."""
        if self._process is None:
            command = [sys.executable, str(Path(__file__).with_name("preloaded.py"))]
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        answer = self._process.stdout.readline().strip()
        if not answer:
            raise RuntimeError(f"the process that runs tests ended; see {job['log']}")
        return answer

    @contextmanager
    def with_text(self, name: str, text: str) -> Iterator[None]:
        """The file ``name`` holds ``text`` for a while."""
        path = self.folder / name
        original = path.read_text()
        try:
            _write(path, text)
            yield
        finally:
            _write(path, original)


def files(root: Path) -> list[str]:
    """Paths of the files below ``root`` that git does not ignore."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted({name for name in names if name and (root / name).is_file()})


def digest(root: Path, folders: tuple[str, ...]) -> str:
    """SHA-256 of the names and contents of all files in ``folders`` but the list of equivalent mutants."""
    found = hashlib.sha256()
    for name in files(root):
        if name.split("/")[0] in folders and name != LIST:
            found.update(f"{name}\0{hashlib.sha256((root / name).read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    second = next(_SECONDS)
    os.utime(path, (second, second))
