"""``sleepfm pretrain``, ``probe``, ``finetune`` and ``recordings``: a training job on this machine, by ``launch/*.py``."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial

from sleepfm.command_line import add_examples, positive
from sleepfm.errors import UsageError
from sleepfm.training.job_options import add_job_options, launch_line


def _configure(script: str, example: str, evaluates: bool, parser: argparse.ArgumentParser) -> None:
    """Arguments of the command that runs ``launch/SCRIPT.py``, with ``example`` among the shipped configurations."""
    parser.add_argument(
        "first",
        nargs="?",
        metavar="CONFIG",
        help=f"configuration: a YAML file, or the name of a shipped one, for example {example}",
    )
    parser.add_argument("--config", metavar="FILE", help="another way to give CONFIG")
    parser.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        help="training processes; with --dry-run: how many to check and estimate for (default: one for each GPU; without GPU, 1)",
    )
    add_job_options(parser, evaluates)
    add_examples(
        parser,
        f"{example} data.path=my-data-set",
        f"{example} data.path=my-data-set train.output=runs/mine --processes 2",
    )
    parser.set_defaults(run=_run, several="overrides", script=script, example=example)


configure_pretrain = partial(_configure, "pretrain", "pretrain/eeg-base.yaml", False)
configure_probe = partial(_configure, "probe", "downstream/probe-stage-base.yaml", True)
configure_finetune = partial(_configure, "finetune", "downstream/finetune-stage-base.yaml", True)
configure_recordings = partial(_configure, "recordings", "downstream/recordings-age-base.yaml", True)


def _run(arguments: argparse.Namespace) -> int:
    """Become the launcher of the job, which ends with the job's status."""
    from sleepfm.extras import require

    config, overrides = _config_and_overrides(arguments)
    require("deepspeed")
    words = [config, *overrides, "--resume", arguments.resume]
    if getattr(arguments, "allow_leakage", False):
        words.append("--allow-leakage")
    processes = arguments.processes
    if arguments.dry_run:
        words += ["--dry-run", *(["--processes", str(processes)] if processes else [])]
        processes = 1
    if arguments.print_config:
        words.append("--print-config")
    line = launch_line(arguments.script, _processes(processes), words)
    sys.stdout.flush()
    os.execv(line[0], line)


def _config_and_overrides(arguments: argparse.Namespace) -> tuple[str, list[str]]:
    """The configuration, which has no "=" in its name, and the ``key=value``. Raises :class:`UsageError` for none and for two."""
    words = [word for word in (arguments.first, *arguments.overrides) if word is not None]
    named = [word for word in words if "=" not in word]
    configs = named if arguments.config is None else [arguments.config, *named]
    if not configs:
        raise UsageError(
            f"no configuration given; for example: sleepfm {arguments.script} {arguments.example} data.path=my-data-set"
        )
    config, *others = configs
    if others:
        raise UsageError(f"{others[0]!r}: expected key=value, for example train.steps=100; the configuration is {config}")
    return config, [word for word in words if "=" in word]


def _processes(asked: int | None) -> int:
    """``asked``, by default as many as there are GPUs, or one. Raises :class:`UsageError` for more than there are GPUs."""
    import torch

    from sleepfm.models.device import accelerator

    if accelerator() != "cuda":
        return asked or 1
    gpus = torch.cuda.device_count()
    if asked is not None and asked > gpus:
        raise UsageError(f"--processes {asked}: each process needs a GPU of its own, and this machine has {gpus}")
    return asked or gpus
