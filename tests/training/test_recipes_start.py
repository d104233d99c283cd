"""Every shipped configuration builds its stage and describes its plan, on untrained models of its own size."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_nights import make_dataset, make_night

from launch import finetune, probe, recordings
from sleepfm.config import load_config, read_yaml
from sleepfm.errors import PreflightError
from sleepfm.models.build import build_model, model_config
from sleepfm.paths import config_root
from sleepfm.registry.package import write_package
from sleepfm.stages import pretrain
from sleepfm.stages.data_config import dataset_digest
from sleepfm.stages.downstream_config import FinetuneConfig, ProbeConfig
from sleepfm.training.job import Context
from sleepfm.training.preflight.checks import Preflight
from sleepfm.training.preflight.report import describe
from sleepfm.training.ranks.distributed import World
from sleepfm.training.ranks.shared_work import ALONE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NEURONETS = ("eeg", "eog", "emg", "ecg", "resp")
KINDS: dict[str, tuple[Any, Any]] = {
    "probe": (ProbeConfig, probe.build_stage),
    "few": (ProbeConfig, probe.build_stage),
    "recordings": (recordings.RecordingProbeConfig, recordings.build_stage),
    "finetune": (FinetuneConfig, finetune.build_stage),
    "events": (FinetuneConfig, finetune.build_stage),
}


def recipes() -> Iterator[str]:
    """Names of all that are jobs; the others are what these extend."""
    for path in sorted(config_root().glob("*/*.yaml")):
        name = f"{path.parent.name}/{path.stem}"
        is_job = "scale-" not in name if path.parent.name == "pretrain" else "task" in read_yaml(path)
        if path.parent.name in ("pretrain", "downstream") and is_job:
            yield name


RECIPES = list(recipes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the data set and, for each size, untrained models."""
    folder = tmp_path_factory.mktemp("recipes")
    nights = [make_night(f"night{number}", 120, seed=number) for number in range(30)]
    make_dataset(folder / "set", nights, per_shard=10)
    rows = [f"made-night{number},{20 + number},{('female', 'male')[number % 2]},{number}" for number in range(30)]
    (folder / "people.csv").write_text("\n".join(["subject,age,sex,ahi", *rows]) + "\n")
    for size in ("tiny", "small", "base"):
        whole = "psg" if size == "small" else "multimodal"
        for name in (*NEURONETS, whole):
            module = build_model(read_yaml(config_root() / f"pretrain/{name}-{size}.yaml")["model"])
            place = "synthsleepnet" if name == whole else f"neuronet-{name}"
            write_package(folder / size / place, module, {"model": model_config(module)}, "card")
    return folder


def size_of(name: str) -> str:
    """Of the models that a recipe is for; those for many GPUs train the base ones."""
    end = name.rsplit("-", 1)[1]
    return end if end in ("tiny", "small") else "base"


def settings(name: str, folder: Path, out: Path) -> list[str]:
    """What a user sets: data, parents, folders."""
    models, content = folder / size_of(name), read_yaml(config_root() / f"{name}.yaml")
    data = content["data"]
    found = [f"train.output={out / 'run'}", "deepspeed.dtype=fp32"]
    if "sources" in data:
        found += [f"data.sources=[{{path: {folder / 'set'}, name: one}}]"]
    else:
        found += [f"data.path={folder / 'set'}"]
    parents = {"encoder": content.get("encoder")} | {f"encoders.{k}": v for k, v in content.get("encoders", {}).items()}
    for key, address in parents.items():
        if address is not None:
            found.append(f"{key}={models / address.removeprefix('models:/sleepfm-').removesuffix('@champion')}")
    kind = name.split("/")[1]
    if not kind.startswith("finetune") and (name.startswith("downstream") or "context" in kind):
        found.append(f"cache={out / 'cache'}")
    if kind.startswith("recordings"):
        found.append(f"values.file={folder / 'people.csv'}")
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_starts_on_paper(name: str, folder: Path, tmp_path: Path) -> None:
    schema, build = KINDS.get(name.split("/")[1].split("-")[0], (pretrain.PretrainConfig, pretrain.build_stage))
    config = load_config(schema, config_root() / f"{name}.yaml", settings(name, folder, tmp_path))
    gpus = re.search(r"-(\d+)gpu$", name)
    planned = World(0, int(gpus[1]), 0, 8) if gpus else ALONE.world
    store = f"sqlite:///{tmp_path}/mlflow.db"
    preflight = Preflight(config, ALONE.world, planned, store, "never", dataset_digest, on_paper=True)
    preflight.before_start()
    context = Context(ALONE.world, store, "never", config, on_paper=True)
    try:
        stage = preflight.stage(lambda: build(config, context))
    except PreflightError as error:
        # A split of thirty nights is too small for the batches of many GPUs, and nothing else is wrong.
        assert gpus and all("the split val has" in line for line in str(error).splitlines() if line.startswith("*"))
        return
    if size_of(name) != "base":
        text = describe(config, stage, ALONE.world, planned)
        assert "memory of a rank" in text and "H200" in text
