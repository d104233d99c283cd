"""Runs the toy one time after the other, each in a process of its own that finds everything imported.

Reads JSON lines ``[folder, arguments]`` and answers each with ``[status, stdout, stderr]``.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

import mlflow  # noqa: F401
import toy

from sleepfm.training.job import run
from sleepfm.training.ranks.distributed import import_deepspeed


def job(folder: Path, arguments: list[str]) -> None:
    os.chdir(folder)
    for name, stream in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = ["toy.py", "toy.yaml", *arguments]
    run(toy.ToyRunConfig, toy.ToyStage, lambda config: toy.ToyStage.dataset_digest, "toy")


def main() -> None:
    import_deepspeed()
    for line in sys.stdin:
        name, arguments = json.loads(line)
        folder = Path(name)
        child = os.fork()
        if child == 0:
            try:
                job(folder, arguments)
            except BaseException:
                traceback.print_exc()
                os._exit(99)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([status, (folder / "stdout").read_text(), (folder / "stderr").read_text()]), flush=True)


if __name__ == "__main__":
    main()
