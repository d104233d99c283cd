"""The third pretraining stage on a small data set, without the launcher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_nights import make_dataset, make_night

from sleepfm.config import load_config, read_yaml
from sleepfm.data.dataset import Dataset
from sleepfm.errors import ConfigError, DatasetError
from sleepfm.models.build import build_model, model_config
from sleepfm.models.masked_context import MaskedContext
from sleepfm.models.noise import noise_for
from sleepfm.paths import config_root
from sleepfm.registry import registry
from sleepfm.registry.package import write_package
from sleepfm.registry.registry import load_package
from sleepfm.stages.context import ContextStage, NightStream
from sleepfm.stages.pretrain import PretrainConfig
from sleepfm.training.ranks.shared_work import ALONE


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    torch.set_num_threads(1)
    nights = [make_night(f"night{number}", 12 + number % 5, seed=number) for number in range(16)]
    return make_dataset(tmp_path_factory.mktemp("shards") / "set", nights, per_shard=4)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    module = build_model(read_yaml(config_root() / "models" / "neuronet-tiny.yaml")["model"])
    folder = tmp_path_factory.mktemp("encoder")
    write_package(folder, module, {"model": model_config(module)}, "card")
    return folder


def stage(dataset: Dataset, encoder: Path, folder: Path, *overrides: str) -> ContextStage:
    fixed = [f"data.path={dataset.path}", f"train.output={folder}", f"cache={folder / 'cache'}", f"encoder={encoder}"]
    small = ["model.length=10", "model.span=2"]
    config = load_config(PretrainConfig, config_root() / "pretrain" / "context-tiny.yaml", [*fixed, *small, *overrides])
    return ContextStage(config, load_package(config.encoder), ALONE)


def test_it_learns_validates_and_packs_what_it_is(dataset: Dataset, encoder: Path, tmp_path: Path) -> None:
    job = stage(dataset, encoder, tmp_path)
    assert (job.name, job.parents, job.dataset_digest) == ("pretrain-context", [str(encoder)], dataset.digest)
    # Drawn where the items are made, a function of the seed and the item alone.
    seed = job.config.train.seed
    for stream in (job.stream, job.validation):
        assert torch.equal(stream.batch(7, 3).noise, noise_for(torch.tensor([7, 8, 9]), job.module.noise_shape, seed))
    before = job.validate(job.module.eval())
    job.module.train()
    optimiser = torch.optim.AdamW([p for p in job.module.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(15):
        output = job.loss(job.module, job.stream.batch(step * 4, 4), 0)
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
        losses.append(output.loss.item())
    assert losses[-1] < losses[0]
    after = job.validate(job.module.eval())
    assert after.keys() == before.keys() == {job.config.registry.metric}
    assert after != before and job.validate(job.module) == after
    export = job.export(job.module, tmp_path)
    write_package(tmp_path / "package", job.module, export.config, export.card)
    loaded = registry.load(tmp_path / "package")
    assert isinstance(loaded, MaskedContext)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in job.module.state_dict().items())


def test_embeddings_are_standardised_by_their_own_statistics(dataset: Dataset, encoder: Path, tmp_path: Path) -> None:
    job = stage(dataset, encoder, tmp_path)
    rows = []
    for row in dataset.select("pretrain", job.module.channels).tolist():
        files = list(tmp_path.glob(f"cache/*/{dataset.names[row]}.safetensors"))
        assert len(files) == 1
        from safetensors.torch import load_file

        rows.append(load_file(files[0])["embedding"])
    every = torch.cat(rows)
    torch.testing.assert_close(job.module.mean, every.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(job.module.std, every.std(0, correction=0), atol=1e-5, rtol=1e-3)


def test_a_pass_visits_every_sequence_once_and_skips_epochs_without_channels() -> None:
    nights = {"a": torch.randn(25, 3), "b": torch.randn(4, 3), "c": torch.full((5, 3), torch.nan)}
    nights["a"][[3, 20]] = torch.nan
    stream = NightStream(nights, 10, seed=1)
    assert len(stream) == 4  # 23 usable epochs of a in windows at 0, 10, 13; b padded; c has none
    batch = stream.batch(4, 4)
    assert sorted(zip(batch.record, batch.first_epoch.tolist(), strict=True)) == [("a", 0), ("a", 11), ("a", 14), ("b", 0)]
    usable = nights["a"][nights["a"].isfinite().all(1)]
    for row, record in enumerate(batch.record):
        if record == "b":
            assert batch.valid[row].tolist() == [True] * 4 + [False] * 6
            assert torch.equal(batch.signals[row, :4], nights["b"]) and not batch.signals[row, 4:].any()
        else:
            start = {0: 0, 11: 10, 14: 13}[int(batch.first_epoch[row])]
            assert torch.equal(batch.signals[row], usable[start : start + 10])
    one = stream.batch(6, 1)
    assert torch.equal(one.signals[0], batch.signals[2]) and one.item.tolist() == [6]
    with pytest.raises(DatasetError, match="no recording has an epoch"):
        NightStream({"c": nights["c"]}, 10, seed=1)


def test_the_address_of_an_encoder_is_needed_and_must_lead_to_one(dataset: Dataset, encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only a model of kind context"):
        stage(dataset, Path(), tmp_path, "encoder=''")
    path = config_root() / "pretrain" / "eeg-tiny.yaml"
    with pytest.raises(ConfigError, match="only a model of kind context"):
        load_config(PretrainConfig, path, ["encoder=models:/x@champion"])
    job = stage(dataset, encoder, tmp_path)
    write_package(tmp_path / "package", job.module, {"model": model_config(job.module)}, "card")
    with pytest.raises(ConfigError, match="not a pretrained encoder"):
        stage(dataset, tmp_path / "package", tmp_path)
