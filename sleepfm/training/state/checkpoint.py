"""Checkpoints: DeepSpeed's own files, published under their final name only when every byte is on disk.

``checkpoints/step-00000120/`` in a run's folder holds what :meth:`DeepSpeedEngine.save_checkpoint` wrote and
``complete.json`` (step, number of processes, ZeRO stage, size of every file); ``checkpoints/latest``
names the newest. A folder that starts with a dot is unfinished and is never read.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from sleepfm.errors import CheckpointError
from sleepfm.files import read_json, sync_file, sync_folder, write_atomic, write_json
from sleepfm.output import not_matching, remove_empty, remove_matching
from sleepfm.registry.package import save_weights
from sleepfm.training.ranks.distributed import World, is_lost_contact

MARK = "complete.json"
LATEST = "latest"
_STEP = re.compile(r"step-([0-9]{8})")
# Hidden folders that only this module and `sleepfm.training.state.universal` make.
_UNFINISHED = re.compile(r"\.step-[0-9]{8}\.tmp|\.universal-step-[0-9]{8}")
# DeepSpeed puts two scripts beside the checkpoints that it saves.
_OWN_FILES = rf"{LATEST}|\.{LATEST}\.[0-9a-f]{{12}}\.tmp|zero_to_(?:fp32|torch)\.py"


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint."""

    folder: Path
    step: int
    processes: int
    zero: int

    def fits(self, processes: int, zero: int) -> bool:
        """Whether ``processes`` at ZeRO stage ``zero`` load it as it is; without ZeRO every rank holds everything."""
        return zero == self.zero and (zero == 0 or processes == self.processes)


def newest(root: Path) -> Saved | None:
    """The newest whole checkpoint in ``root``, or None.

    Raises:
        CheckpointError: a published checkpoint whose files are missing or of another size.
    """
    try:
        name = (root / LATEST).read_text().strip()
    except FileNotFoundError:
        return None
    folder = root / name
    mark = read_json(folder / MARK)
    if mark is None:
        raise CheckpointError(f"{root / 'latest'} names {name!r}, which is not there; start with --resume never")
    for file, size in mark["files"].items():
        path = folder / file
        if not path.is_file() or path.stat().st_size != size:
            found = path.stat().st_size if path.is_file() else "nothing"
            raise CheckpointError(f"{path}: {size} bytes expected, {found} found; restore it, or start with --resume never")
    return Saved(folder, mark["step"], mark["processes"], mark["zero"])


def save(
    engine: Any, world: World, root: Path, step: int, zero: int, keep: int, extra: Mapping[str, Mapping[str, Tensor]]
) -> Path:
    """Save ``engine`` at ``step`` in ``root`` and drop all but the newest ``keep`` checkpoints. Every rank calls this.

    ``extra`` are tensors that rank 0 adds, by name of a safetensors file.

    Raises:
        CheckpointError: the files could not be written; the checkpoints before this one are untouched.
    """
    name = f"step-{step:08d}"
    temporary = root / f".{name}.tmp"
    if (root / name / MARK).exists():
        # Reached before, by the run that this one resumes: same step, same content.
        if world.is_main:
            write_atomic(root / LATEST, name + "\n")
        return root / name
    try:
        if world.is_main:
            root.mkdir(parents=True, exist_ok=True)
            _remove_unfinished(root)
            for file_name, tensors in extra.items():
                save_weights(temporary / file_name, tensors)
        # Ends with a barrier: from then on every rank finds the same files.
        engine.save_checkpoint(str(root), tag=temporary.name, client_state={"step": step}, save_latest=False)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        for file in files[world.rank :: world.size]:
            sync_file(file)
        if world.size > 1:
            dist.barrier()
        if world.is_main:
            sizes = {str(path.relative_to(temporary)): path.stat().st_size for path in files}
            write_json(temporary / MARK, {"step": step, "processes": world.size, "zero": zero, "files": sizes})
            os.rename(temporary, root / name)
            sync_folder(root)
            write_atomic(root / LATEST, name + "\n")
    except (OSError, RuntimeError) as error:
        if is_lost_contact(error):
            raise
        # torch's writer does not say why its bytes did not arrive.
        reason, free = str(error).splitlines()[0], shutil.disk_usage(root.parent).free
        raise CheckpointError(
            f"{temporary}: cannot save step {step} ({reason}; {free / 1e6:.1f} MB are free there); earlier checkpoints remain"
        ) from error
    if world.is_main:
        for old, listed in sorted(_checkpoints(root).items())[:-keep]:
            _remove(old, listed)
    if world.size > 1:
        dist.barrier()
    return root / name


def strangers(root: Path) -> list[Path]:
    """Files in the folder ``root`` of checkpoints that no run has written."""
    known = [rf"{folder.name}/(?:{_any_of(files)})" for folder, files in _checkpoints(root).items()]
    return not_matching(root, "|".join([_OWN_FILES, rf"(?:{_UNFINISHED.pattern})/.*", *known]))


def remove_all(root: Path) -> None:
    """Remove every checkpoint in ``root``, and ``root`` if that was all."""
    # First what would have them resumed.
    remove_matching(root, _OWN_FILES)
    _remove_unfinished(root)
    for folder, files in _checkpoints(root).items():
        _remove(folder, files)
    remove_empty(root)


def _checkpoints(root: Path) -> dict[Path, list[str]]:
    """The whole checkpoints in ``root`` with the files that their marks list; copies under other names are none."""
    found = {}
    for folder in root.iterdir() if root.is_dir() else ():
        name = _STEP.fullmatch(folder.name)
        mark = read_json(folder / MARK) if name and folder.is_dir() and not folder.is_symlink() else None
        if name and mark is not None and mark.get("step") == int(name[1]):
            found[folder] = [MARK, *mark["files"]]
    return found


def _remove(folder: Path, files: list[str]) -> None:
    """Remove ``files`` of ``folder``, and the folder if that was all."""
    # The mark last: what a kill leaves is then still known, and removed the next time.
    remove_matching(folder, _any_of([file for file in files if file != MARK]))
    remove_matching(folder, re.escape(MARK))


def _any_of(files: list[str]) -> str:
    return "|".join(map(re.escape, files))


def _remove_unfinished(root: Path) -> None:
    for path in root.iterdir() if root.is_dir() else ():
        if _UNFINISHED.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def load(engine: Any, saved: Saved) -> None:
    """Restore ``engine``, which has the number of processes and the ZeRO stage of ``saved``.

    Raises:
        CheckpointError: DeepSpeed found nothing to load, or another step than the folder's name says.
    """
    path, state = engine.load_checkpoint(str(saved.folder.parent), tag=saved.folder.name)
    check_step(saved.folder, path, state, saved)


def check_step(folder: Path, path: str | None, state: dict[str, Any] | None, saved: Saved) -> None:
    """What ``load_checkpoint`` returned for ``folder`` is ``saved``. Raises :class:`CheckpointError`."""
    if path is None or state is None or state.get("step") != saved.step:
        raise CheckpointError(f"{folder}: DeepSpeed could not load it; start with --resume never")
