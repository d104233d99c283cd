"""Fixtures: stores with the champions of all tasks, an encoder and a scorer, made once in a process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from registered_models import register_champion

from sleepfm.config import read_yaml
from sleepfm.inference.default_models import CHAMPIONS
from sleepfm.models.build import build_model, model_config
from sleepfm.models.context import ContextConfig
from sleepfm.models.downstream import Downstream, DownstreamConfig
from sleepfm.models.event_head import EventHeadConfig
from sleepfm.models.usage import Usage
from sleepfm.paths import config_root
from sleepfm.registry.package import write_package
from sleepfm.registry.scorer_version import bind_champions
from sleepfm.tasks import TASKS

# Tasks whose events are told to the second in `located_store`, and the weight there of the chin's log amplitude: one has its
# events where muscle tone is low, the other where it is high, so that none is part of another.
WEIGHT = {"apnea": -4.0, "hypopnea": 4.0}


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, downstream_packages: dict[str, Path], encoder_package: Path) -> str:
    """A store whose models of events say so of whole epochs."""
    return store_of(tmp_path_factory.mktemp("registry"), downstream_packages, encoder_package)


@pytest.fixture(scope="session")
def located_store(tmp_path_factory: pytest.TempPathFactory, downstream_packages: dict[str, Path], encoder_package: Path) -> str:
    """A store whose models of apnea and hypopnea tell events to the second, and find some of both in every night."""
    packages = {task: write_located(task, tmp_path_factory.mktemp(task)) for task in WEIGHT}
    return store_of(tmp_path_factory.mktemp("located"), downstream_packages | packages, encoder_package)


def store_of(folder: Path, packages: Mapping[str, Path], encoder_package: Path) -> str:
    uri = f"sqlite:///{folder}/mlflow.db"
    encoder = register_champion(uri, "sleepfm-synthsleepnet", encoder_package, {"val/probe_kappa": 0.4})
    for task, package in packages.items():
        register_champion(uri, f"sleepfm-{task}", package, {"val/f1": 0.5}, (f"sleepfm-synthsleepnet:{encoder}",))
    assert bind_champions(CHAMPIONS, uri) == "1"
    return uri


def write_located(task: str, folder: Path) -> Path:
    """The package of a model whose event head has weights by hand: it looks at how large one signal is.

    An untrained head says of every epoch what it says of the first; with this one, each night has events of its own.
    """
    torch.manual_seed(0)
    encoder = build_model(read_yaml(config_root() / "models" / "synthsleepnet-tiny.yaml")["model"])
    events = EventHeadConfig(hidden=1, context=ContextConfig(kind="none"), amplitudes=("EMG_CHIN",))
    classes = TASKS[task].classes
    model = Downstream(DownstreamConfig(task=task, classes=classes, encoder=model_config(encoder), events=events), encoder)
    assert model.events is not None
    with torch.no_grad():
        for parameter in model.events.parameters():
            parameter.zero_()
        # Behind the encoder's tokens stand the log amplitude of the channel, and whether it is known.
        model.events.embed.weight[0, -2] = WEIGHT[task]
        model.events.out.weight[1, 0] = 1.0
    usage = Usage(task=task, classes=classes, window=20, threshold=0.4, event_threshold=0.6, resolution_s=1)
    write_package(folder, model, {"model": model_config(model)} | usage.to_package(), "card")
    return folder
