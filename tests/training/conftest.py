"""What several tests of training start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from sleepfm.config import read_yaml
from sleepfm.models.build import build_model, model_config
from sleepfm.paths import config_root
from sleepfm.registry.package import write_package


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of untrained tiny models: a NeuroNet for each modality, named for it, and ``synthsleepnet``."""
    folder = tmp_path_factory.mktemp("packages")
    configs = {name: f"pretrain/{name.lower()}-tiny.yaml" for name in ("EEG", "EOG", "EMG", "ECG")}
    for name, config in (configs | {"synthsleepnet": "models/synthsleepnet-tiny.yaml"}).items():
        module = build_model(read_yaml(config_root() / config)["model"])
        write_package(folder / name, module, {"model": model_config(module)}, "card")
    return folder
