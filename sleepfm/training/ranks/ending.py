"""The end of a training process, and what the node that started it learns of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

# A folder for the exit statuses of a node's ranks: DeepSpeed's launcher, asked to end by a signal, answers 1 for all of them.
STATUSES = "SLEEPFM_RANK_STATUSES"


def end(status: int) -> NoReturn:
    """End this process at once. Everything must be closed and on disk.

    Tearing down the modules of torch and MLflow would take 2 s more, and after a rank was lost the threads of its collectives
    might never end.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    end_silently(status)


def end_silently(status: int) -> NoReturn:
    """The same from within a signal's handler, where a stream may be in use."""
    if folder := os.environ.get(STATUSES):
        Path(folder, os.environ.get("RANK", "0")).write_text(str(status))
    os._exit(status)


def statuses(folder: Path) -> list[int]:
    """What the ranks that ended by themselves have written into ``folder``."""
    return [int(text) for path in folder.iterdir() if (text := path.read_text())]
