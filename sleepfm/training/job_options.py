"""The options of training jobs, for ``launch/*.py`` and the commands of ``sleepfm`` that start these."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# `launch` lies beside this package, in a checkout as where a wheel is installed.
LAUNCH = Path(__file__).resolve().parents[2] / "launch"


def add_job_options(parser: argparse.ArgumentParser, evaluates: bool) -> None:
    """Add what every job takes beside its configuration; ``evaluates``: also ``--allow-leakage``, of jobs that report on test."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        default=[],
        help="change a key of the configuration, for example train.steps=100",
    )
    parser.add_argument(
        "--resume",
        choices=("auto", "never", "must"),
        default="auto",
        help="auto: continue from the last checkpoint, if there is one; never: start over, and remove what an earlier start "
        "wrote to train.output; must: fail if there is no checkpoint (default: %(default)s)",
    )
    if evaluates:
        parser.add_argument(
            "--allow-leakage",
            action="store_true",
            help="report on test even if the encoder has seen people of test in training, and say so in the report "
            "(the same as evaluate.allow_leakage=true)",
        )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="train nothing: check everything, print memory and expected time",
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="only with --dry-run: also print the resolved configuration, before the rest",
    )


def launch_line(script: str, processes: int, words: Sequence[str]) -> list[str]:
    """The command that runs ``launch/SCRIPT.py`` with ``words`` in ``processes`` processes of this machine.

    It is what the ``deepspeed`` command starts too, after eight more seconds of imports (:mod:`sleepfm.training.launcher`).
    """
    launcher = [sys.executable, "-m", "sleepfm.training.launcher", str(processes)]
    return [*launcher, str(LAUNCH / f"{script}.py"), *words]
