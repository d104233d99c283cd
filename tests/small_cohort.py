"""Fixtures: a small synthetic cohort, its shards, and untrained models in packages, made once in a process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sleepfm.config import read_yaml
from sleepfm.data.dataset import Dataset
from sleepfm.models.build import build_model, model_config
from sleepfm.models.context import ContextConfig
from sleepfm.models.downstream import Downstream, DownstreamConfig
from sleepfm.models.usage import Usage
from sleepfm.registry.package import write_package
from sleepfm.tasks import TASKS

MODELS = Path(__file__).parents[1] / "configs" / "models"


@pytest.fixture(scope="session")
def one_thread() -> None:
    """Models this small are slower on several."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> list[Path]:
    """Eight nights of 30 epochs: every split of the default salt has a subject."""
    from sleepfm.synthetic.cohort import write_cohort

    return write_cohort(tmp_path_factory.mktemp("cohort"), subjects=8, hours=0.25, seed=3)


@pytest.fixture(scope="session")
def dataset(recordings: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    from shards.build import build
    from shards.build_config import BuildConfig
    from sleepfm.config import load_config
    from sleepfm.paths import config_root

    out = tmp_path_factory.mktemp("shards")
    config = load_config(BuildConfig, config_root() / "shards.yaml", ["recordings_per_shard=3"])
    build(recordings[0].parents[3], out, config, workers=1)
    return Dataset.open(out)


@pytest.fixture(scope="session")
def encoder_package(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """An untrained tiny SynthSleepNet."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    encoder = build_model(read_yaml(MODELS / "synthsleepnet-tiny.yaml")["model"])
    write_package(folder, encoder, {"model": model_config(encoder)}, "card")
    return folder


@pytest.fixture(scope="session")
def downstream_packages(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> dict[str, Path]:
    """An untrained model for each task that is scored by default: stages with Mamba context, the others probes of one encoder."""
    found = {}
    for task in (task for task in TASKS.values() if not task.optional):
        torch.manual_seed(0)
        encoder = build_model(read_yaml(MODELS / "synthsleepnet-tiny.yaml")["model"])
        context = ContextConfig(kind="mamba" if task.name == "stage" else "none")
        plan = DownstreamConfig(task=task.name, classes=task.classes, encoder=model_config(encoder), context=context)
        torch.manual_seed(1)
        model = Downstream(plan, encoder)
        with torch.no_grad():
            for parameter in model.head.parameters():
                # An untrained head says nearly the same of every epoch; larger weights make the test see differences.
                parameter.mul_(3.0)
        found[task.name] = tmp_path_factory.mktemp(task.name)
        threshold = 0.4 if task.kind == "binary" else None
        usage = Usage(task=task.name, classes=task.classes, window=20, threshold=threshold)
        write_package(found[task.name], model, {"model": model_config(model)} | usage.to_package(), "card")
    return found
