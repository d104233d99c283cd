"""The two pretraining stages on a small data set, without the launcher."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_nights import make_dataset, make_night

from sleepfm.config import load_config, validate
from sleepfm.data.dataset import Dataset
from sleepfm.errors import ConfigError, DatasetError, ModelError
from sleepfm.models.build import model_config
from sleepfm.models.noise import noise_for
from sleepfm.paths import config_root
from sleepfm.registry import registry
from sleepfm.registry.package import write_package
from sleepfm.registry.registry import Resolved
from sleepfm.stages.encoders import MultimodalStage, UnimodalStage, assert_unchanged
from sleepfm.stages.pretrain import PretrainConfig
from sleepfm.training.feed import Feed, Shares
from sleepfm.training.ranks.distributed import World

MODALITIES = ("eeg", "eog", "emg", "ecg")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    torch.set_num_threads(1)
    nights = [make_night(f"night{number}", 12, seed=number) for number in range(16)]
    found = make_dataset(tmp_path_factory.mktemp("shards") / "set", nights, per_shard=4)
    assert {row.split for row in found.records} == {"pretrain", "label", "val", "test"}
    return found


def config(dataset: Dataset, name: str, *overrides: str) -> PretrainConfig:
    fixed = [f"data.path={dataset.path}", "train.output=unused"]
    return load_config(PretrainConfig, config_root() / "pretrain" / f"{name}.yaml", [*fixed, *overrides])


@pytest.fixture(scope="module")
def sources(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Resolved]:
    """Untrained unimodal models in packages."""
    found = {}
    for name in MODALITIES:
        stage = UnimodalStage(config(dataset, f"{name}-tiny"))
        folder = tmp_path_factory.mktemp(name)
        write_package(folder, stage.module, {"model": model_config(stage.module)}, "card")
        found[name.upper()] = Resolved(str(folder), folder)
    return found


def steps(stage: UnimodalStage | MultimodalStage, number: int, batch: int) -> list[float]:
    stage.module.train()
    optimiser = torch.optim.AdamW([p for p in stage.module.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for step in range(number):
        optimiser.zero_grad()
        output = stage.loss(stage.module, stage.stream.batch(step * batch, batch), 0)
        output.loss.backward()
        optimiser.step()
        losses.append(output.loss.item())
    stage.module.eval()
    return losses


def test_a_unimodal_stage_learns_is_probed_and_packs_what_it_is(dataset: Dataset, tmp_path: Path) -> None:
    stage = UnimodalStage(config(dataset, "eog-tiny"))
    assert (stage.name, stage.parents, stage.dataset_digest) == ("pretrain-eog", [], dataset.digest)
    losses = steps(stage, 8, 16)
    assert losses[-1] < losses[0]
    figures = stage.validate(stage.module)
    assert stage.config.registry.metric in figures
    assert all(-1 <= value <= 1 for value in figures.values())
    export = stage.export(stage.module, tmp_path)
    write_package(tmp_path, stage.module, export.config, export.card)
    loaded = registry.load(tmp_path)
    signals = {"EOG_L": torch.randn(2, 3000)}
    assert torch.equal(loaded.embed(signals), stage.module.embed(signals))
    assert "not read" in export.card


def test_the_same_item_gives_the_same_loss_wherever_it_stands(dataset: Dataset) -> None:
    stage = UnimodalStage(config(dataset, "ecg-tiny"))
    stage.module.eval()
    whole = stage.stream.batch(8, 8)
    for start in (8, 12):
        part = stage.stream.batch(start, 4)
        rows = slice(start - 8, start - 4)
        assert torch.equal(part.signals, whole.signals[rows])
        assert torch.equal(part.item, whole.item[rows])


@pytest.mark.parametrize("kind", ["unimodal", "multimodal"])
def test_masks_are_drawn_beside_the_step_and_are_those_of_the_items(
    dataset: Dataset, sources: dict[str, Resolved], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    stage: UnimodalStage | MultimodalStage = (
        UnimodalStage(config(dataset, "ecg-tiny"))
        if kind == "unimodal"
        else MultimodalStage(config(dataset, "multimodal-tiny"), sources)
    )
    drawing: list[int] = []
    philox = np.random.Philox

    def noted(*arguments: Any, **named: Any) -> np.random.Philox:
        drawing.append(threading.get_ident())
        return philox(*arguments, **named)

    # What draws the order of the items, too.
    monkeypatch.setattr(np.random, "Philox", noted)
    given = []
    feed = Feed(stage.stream, Shares(8, 1, 4), World(1, 2, 1, 2), 5, 7)
    with torch.no_grad():
        for _ in range(2):
            given.append(feed.next())
            stage.loss(stage.module, given[-1], stage.config.train.seed)
    feed.close()
    assert drawing and threading.get_ident() not in drawing
    held_out = stage.validation.batch(0, 4)
    for batch, first in zip([*given, held_out], (44, 52, 0), strict=True):
        items = torch.arange(first, first + 4)
        assert torch.equal(batch.item, items)
        assert batch.noise is not None
        assert torch.equal(batch.noise, noise_for(items, stage.module.noise_shape, stage.config.train.seed))


def test_the_multimodal_stage_starts_from_the_registered_encoders_unchanged(
    dataset: Dataset, sources: dict[str, Resolved]
) -> None:
    stage = MultimodalStage(config(dataset, "multimodal-tiny"), sources)
    for modality, source in sources.items():
        pretrained = registry.load(source.path).encoder.state_dict()
        taken = stage.module.backbones.encoders[modality].state_dict()
        taken = {name.replace(".base.", "."): value for name, value in taken.items()}
        for name, value in pretrained.items():
            assert torch.equal(taken[name], value), (modality, name)
    frozen = {name: p.clone() for name, p in stage.module.named_parameters() if not p.requires_grad}
    losses = steps(stage, 8, 8)
    assert losses[-1] < losses[0]
    for name, parameter in stage.module.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name
    assert stage.parents == [source.label for source in sources.values()]


def test_an_encoder_that_was_not_taken_over_is_found(dataset: Dataset, sources: dict[str, Resolved]) -> None:
    stage = MultimodalStage(config(dataset, "multimodal-tiny"), sources)
    before = {name: dict(registry.load(found.path).encoder.state_dict()) for name, found in sources.items()}
    addresses = {name: found.uri for name, found in sources.items()}
    assert_unchanged(stage.module, before, addresses)
    before["EMG"]["cls_token"] = before["EMG"]["cls_token"] + 1
    with pytest.raises(ModelError, match="EMG: tensor cls_token has changed"):
        assert_unchanged(stage.module, before, addresses)


def test_an_encoder_of_another_modality_is_refused(dataset: Dataset, sources: dict[str, Resolved]) -> None:
    swapped = sources | {"EMG": sources["ECG"]}
    with pytest.raises(ConfigError, match=r"encoders\.EMG.*not a NeuroNet of EMG"):
        MultimodalStage(config(dataset, "multimodal-tiny"), swapped)


def test_an_encoder_of_another_size_than_the_model_asks_for_is_refused(dataset: Dataset, sources: dict[str, Resolved]) -> None:
    with pytest.raises(ConfigError, match=r"encoders\.EEG: .* another architecture or size .*encoder\.dim \(768 -> 128\)"):
        MultimodalStage(config(dataset, "multimodal-base"), sources)
    stated = config(dataset, "multimodal-tiny", "model.backbone.mask_ratio=0.5", "model.backbone.decoder.dim=32")
    assert MultimodalStage(stated, sources).module.dim == 128


def test_what_a_figure_is_taken_of_is_stated(dataset: Dataset) -> None:
    """Draws and losses that differ are not compared; how long was trained does not matter."""

    def measures(*overrides: str) -> tuple[dict, dict]:
        stage = UnimodalStage(config(dataset, "eog-tiny", *overrides))
        return stage.measure("val/probe_kappa"), stage.measure("val/loss")

    probe, loss = measures()
    assert measures("train.steps=7", "train.lr=0.1") == (probe, loss)
    assert measures("monitor.val_epochs=77") == (probe | {"val_epochs": 77}, loss)
    assert measures("train.global_batch=32")[0] == probe and measures("train.global_batch=32")[1] != loss
    assert measures("train.seed=3")[0] != probe


def test_encoders_must_fit_the_channels(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"need none, found EEG"):
        config(dataset, "eeg-tiny", "encoders.EEG=models:/x@champion")
    with pytest.raises(ConfigError, match=r"need ECG, EEG, EMG, EOG, found ECG, EEG, EMG, EOG, RESP"):
        config(dataset, "multimodal-tiny", "encoders.RESP=models:/x@champion")


# What recipes of one number of GPUs have in common is no configuration by itself.
SHIPPED = [path for path in sorted((config_root() / "pretrain").glob("*.yaml")) if not path.stem.startswith("scale-")]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid_and_registers_under_its_contract(path: Path) -> None:
    found = load_config(PretrainConfig, path)
    kind = path.stem.split("-")[0]
    names = {"multimodal": "sleepfm-synthsleepnet", "psg": "sleepfm-synthsleepnet", "context": "sleepfm-context"}
    assert found.registry.name == names.get(kind, f"sleepfm-neuronet-{kind}")
    assert found.registry.metric.startswith("val/")
    again = validate(PretrainConfig, found.model_dump(mode="json"), "itself")
    assert again == found


def test_an_encoder_that_cannot_be_probed_is_named(tmp_path: Path) -> None:
    nights = [make_night(f"night{number}", 12, seed=number, scored=False) for number in range(16)]
    unscored = make_dataset(tmp_path / "set", nights, per_shard=4)
    with pytest.raises(
        DatasetError, match=r"no item fits .*to train without a probe, set monitor=none registry\.metric=val/loss"
    ):
        UnimodalStage(config(unscored, "eeg-tiny"))


def test_recordings_without_a_label_train_without_a_monitor(tmp_path: Path) -> None:
    nights = [make_night(f"night{number}", 12, seed=number, scored=False) for number in range(16)]
    unscored = make_dataset(tmp_path / "set", nights, per_shard=4)
    with pytest.raises(ConfigError, match=r"monitor: with none there is no val/probe_kappa.*set registry\.metric"):
        config(unscored, "eeg-tiny", "monitor=none")
    chosen = config(unscored, "eeg-tiny", "monitor=none", "registry.metric=val/loss", "registry.mode=min")
    assert validate(PretrainConfig, chosen.model_dump(mode="json"), "itself") == chosen
    stage = UnimodalStage(chosen)
    losses = steps(stage, 8, 8)
    assert np.isfinite(losses).all() and stage.validate(stage.module) == {}
    assert "items" in stage.measure("val/loss")
