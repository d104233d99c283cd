"""``sleepfm pretrain``, ``probe``, ``finetune`` and ``recordings``: a training job on this machine, by ``launch/*.py``."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial

from sleepfm.command_line import add_examples, positive
from sleepfm.training.job_options import add_job_options, launch_line


def _configure(script: str, example: str, evaluates: bool, parser: argparse.ArgumentParser) -> None:
    """Arguments of the command that runs ``launch/SCRIPT.py``, with ``example`` among the shipped configurations."""
    parser.add_argument(
        "--config", required=True, metavar="FILE", help=f"YAML file, or the name of a shipped one, for example {example}"
    )
    parser.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        help="training processes; with --dry-run: how many to check and estimate for (default: one for each GPU; without GPU, 1)",
    )
    add_job_options(parser, evaluates)
    add_examples(
        parser,
        f"--config {example} data.path=shards",
        f"--config {example} --processes 2 data.path=shards train.output=runs/mine",
    )
    parser.set_defaults(run=_run, several="overrides", script=script)


configure_pretrain = partial(_configure, "pretrain", "pretrain/eeg-base.yaml", False)
configure_probe = partial(_configure, "probe", "downstream/probe-stage-base.yaml", True)
configure_finetune = partial(_configure, "finetune", "downstream/finetune-stage-base.yaml", True)
configure_recordings = partial(_configure, "recordings", "downstream/recordings-age-base.yaml", True)


def _run(arguments: argparse.Namespace) -> int:
    """Become the launcher of the job, which ends with the job's status."""
    from sleepfm.extras import require

    require("deepspeed")
    words = [arguments.config, *arguments.overrides, "--resume", arguments.resume]
    if getattr(arguments, "allow_leakage", False):
        words.append("--allow-leakage")
    processes = arguments.processes
    if arguments.dry_run:
        words += ["--dry-run", *(["--processes", str(processes)] if processes else [])]
        processes = 1
    line = launch_line(arguments.script, _processes(processes), words)
    sys.stdout.flush()
    os.execv(line[0], line)


def _processes(asked: int | None) -> int:
    """``asked``, by default as many as there are GPUs, or one. Raises :class:`UsageError` for more than there are GPUs."""
    import torch

    from sleepfm.errors import UsageError
    from sleepfm.models.device import accelerator

    if accelerator() != "cuda":
        return asked or 1
    gpus = torch.cuda.device_count()
    if asked is not None and asked > gpus:
        raise UsageError(f"--processes {asked}: each process needs a GPU of its own, and this machine has {gpus}")
    return asked or gpus
