"""The option ``--device`` of commands that run models."""

from __future__ import annotations

import argparse


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, for :func:`sleepfm.models.device.choose_device`."""
    parser.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="where the models run; auto: on a GPU if there is one, unless DS_ACCELERATOR=cpu (default: %(default)s)",
    )
