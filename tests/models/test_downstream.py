"""The downstream model: what trains, what stays, and that a package can be rebuilt from its configuration."""

from __future__ import annotations

import pytest
import torch

from sleepfm.config import read_yaml, validate
from sleepfm.errors import ConfigError
from sleepfm.models.build import build_model, model_config
from sleepfm.models.context import ContextConfig
from sleepfm.models.downstream import Downstream, DownstreamConfig, TuneConfig
from sleepfm.models.heads import HeadConfig
from sleepfm.models.neuronet import NeuroNet, NeuroNetConfig
from sleepfm.models.synthsleepnet import SynthSleepNet, SynthSleepNetConfig
from sleepfm.paths import config_root

CLASSES = ("W", "N1", "N2", "N3", "REM")


def encoder(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    values = read_yaml(config_root() / "models" / f"{kind}-tiny.yaml")["model"]
    if kind == "neuronet":
        return NeuroNet(validate(NeuroNetConfig, values | {"channels": ["EEG_C4"]}, kind))
    return SynthSleepNet(validate(SynthSleepNetConfig, values, kind))


def downstream(kind: str = "synthsleepnet", mode: str = "lora", context: str = "mamba") -> Downstream:
    source = encoder(kind)
    config = DownstreamConfig(
        task="stage",
        classes=CLASSES,
        encoder=model_config(source),
        tune=TuneConfig(mode=mode),
        context=ContextConfig(kind=context),
        head=HeadConfig(hidden=16),
    )
    return Downstream(config, source)


@pytest.mark.parametrize(("key", "value"), [("hidden", 0), ("dropout", 1.0), ("dropout", -0.1)])
def test_a_head_that_nothing_could_pass_is_refused_by_key(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=key):
        validate(HeadConfig, {key: value}, "head")
    assert validate(HeadConfig, {"hidden": 1, "dropout": 0.0}, "head").hidden == 1


def test_what_a_package_does_not_say_is_what_it_was_made_with() -> None:
    """A number that is a default today stands in no older package's configuration, and must stay what it was."""
    assert HeadConfig() == HeadConfig(kind="mlp", hidden=256, dropout=0.5)
    assert (TuneConfig().mode, TuneConfig().rank, TuneConfig().alpha, TuneConfig().dropout) == ("frozen", 4, 8.0, 0.05)
    for config, dims in ((NeuroNetConfig(), [(768, 4), (256, 3)]), (SynthSleepNetConfig(), [(512, 4), (256, 3)])):
        assert [(part.dim, part.depth, part.heads) for part in (config.encoder, config.decoder)] == [(*dim, 8) for dim in dims]
    assert (NeuroNetConfig().projector, SynthSleepNetConfig().projector) == ((1024, 512), (512, 256))
    assert (NeuroNetConfig().mask_ratio, SynthSleepNetConfig().mask_ratio) == (0.8, 0.4)
    assert (NeuroNetConfig().temperature, SynthSleepNetConfig().temperature) == (0.05, 0.1)


@pytest.mark.parametrize(("rank", "fits"), [(0, False), (1, True)])
def test_the_lowest_rank_of_an_update_is_one(rank: int, fits: bool) -> None:
    if fits:
        assert validate(TuneConfig, {"rank": rank}, "tune").rank == rank
    else:
        with pytest.raises(ConfigError, match="rank"):
            validate(TuneConfig, {"rank": rank}, "tune")


@pytest.mark.parametrize("kind", ["neuronet", "synthsleepnet"])
@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
def test_every_trainable_parameter_gets_a_gradient(kind: str, mode: str) -> None:
    model = downstream(kind, mode).train()
    channels = len(model.channels)
    logits = model(torch.randn(2, 3, channels, 3000), torch.ones(2, 3, channels, dtype=torch.bool))
    assert logits.shape == (2, 3, 5)
    logits.square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    frozen_with = [name for name, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
    # LoRA of pretraining on a shared frozen position stays out; nothing else may idle.
    assert [name for name in without if "pos_embed" not in name and "cls_token" not in name] == []
    assert frozen_with == []


def test_low_rank_updates_are_where_the_paper_puts_them() -> None:
    model = downstream()
    names = {n.removesuffix(".lora_a") for n, p in model.encoder.named_parameters() if p.requires_grad and "lora_a" in n}
    last = model.encoder.config.encoder.depth - 1
    expected = {f"blocks.{last}.mlp.fc{i}" for i in (1, 2)}
    expected |= {f"backbones.encoders.{m}.frame_backbone.feature_layer.{i}" for m in ("EEG", "EOG", "EMG", "ECG") for i in (0, 2)}
    assert names == expected


def test_a_training_step_leaves_the_frozen_encoder_bit_identical() -> None:
    model = downstream().train()
    before = {n: v.clone() for n, v in model.encoder.state_dict().items() if "lora" not in n}
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(2, 3, 4, 3000), torch.ones(2, 3, 4, dtype=torch.bool)).sum().backward()
    optimiser.step()
    after = model.encoder.state_dict()
    assert [n for n, v in before.items() if not torch.equal(v, after[n])] == []


def test_construction_does_not_change_the_embedding() -> None:
    source = encoder("synthsleepnet").eval()
    signals = {name: torch.randn(2, 3000) for name in source.channels}
    with torch.no_grad():
        before = source.embed(signals)
        config = DownstreamConfig(task="stage", classes=CLASSES, encoder=model_config(source), tune=TuneConfig(mode="lora"))
        assert torch.equal(Downstream(config, source).eval().embed(signals), before)


@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
def test_a_model_is_rebuilt_from_its_configuration_and_weights(mode: str) -> None:
    model = downstream(mode=mode).eval()
    again = build_model(model_config(model)).eval()
    again.load_state_dict(model.state_dict())
    x, present = torch.randn(1, 4, 4, 3000), torch.ones(1, 4, 4, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(again(x, present), model(x, present))


def test_one_epoch_of_one_night_can_be_trained_on() -> None:
    model = downstream().train()
    model(torch.randn(1, 1, 4, 3000), torch.ones(1, 1, 4, dtype=torch.bool)).sum().backward()


@pytest.mark.parametrize("context", ["none", "mamba", "lstm", "attention"])
def test_an_epoch_without_a_channel_is_as_if_it_were_not_there(context: str) -> None:
    """As in the scoring of a night: the others give what the sequence without it gives, and a dead channel adds nothing."""
    model = downstream(context=context).eval()
    generator = torch.Generator().manual_seed(1)
    x, present = torch.randn(2, 6, 4, 3000, generator=generator), torch.ones(2, 6, 4, dtype=torch.bool)
    present[0, [0, 3]] = False
    present[1, 2, 1] = False
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[1, 5] = False
    with torch.no_grad():
        found = model(x, present, valid)
        torch.testing.assert_close(found[0, [1, 2, 4, 5]], model(x[:1, [1, 2, 4, 5]], present[:1, [1, 2, 4, 5]])[0])
        x[0, [0, 3]], x[1, 2, 1], x[1, 5] = 50.0, 50.0, 50.0
        again = model(x, present, valid)
    torch.testing.assert_close(again[0, [1, 2, 4, 5]], found[0, [1, 2, 4, 5]])
    torch.testing.assert_close(again[1, :5], found[1, :5])
