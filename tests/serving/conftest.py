"""Fixtures: a store with the champions of all tasks, an encoder and a scorer, made once in a process."""

from __future__ import annotations

from pathlib import Path

import pytest
from registered_models import register_champion

from sleepfm.inference.default_models import CHAMPIONS
from sleepfm.registry.scorer_version import bind_champions


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, downstream_packages: dict[str, Path], encoder_package: Path) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"
    encoder = register_champion(uri, "sleepfm-synthsleepnet", encoder_package, {"val/probe_kappa": 0.4})
    for task, package in downstream_packages.items():
        register_champion(uri, f"sleepfm-{task}", package, {"val/f1": 0.5}, (f"sleepfm-synthsleepnet:{encoder}",))
    assert bind_champions(CHAMPIONS, uri) == "1"
    return uri
