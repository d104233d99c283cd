"""Options that several commands have."""

from __future__ import annotations

import argparse
from typing import Any


def add_cohort(parser: argparse.ArgumentParser) -> None:
    """Add ``--cohort``, for :func:`sleepfm.signals.cohorts.catalogue.load_rules`."""
    parser.add_argument(
        "--cohort",
        default="auto",
        help="rules for the recordings: auto (recognise the cohort of each), a name in configs/cohorts, a YAML file, or a folder "
        "of such files (default: %(default)s)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, for :func:`sleepfm.models.device.choose_device`."""
    parser.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="where the models run; auto: on a GPU if there is one, unless DS_ACCELERATOR=cpu (default: %(default)s)",
    )


def add_store(parser: argparse.ArgumentParser, **default: Any) -> None:
    """Add ``--store``, for :func:`sleepfm.registry.store.store_uri`."""
    parser.add_argument(
        "--store", **default, help="address of the MLflow store (default: MLFLOW_TRACKING_URI, else sqlite:///runs/mlflow.db)"
    )
