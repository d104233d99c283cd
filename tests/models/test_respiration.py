"""Breathing in the models: SpO2 as a level, a NeuroNet of flow and belts, SynthSleepNet over any subset of ten channels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sleepfm.config import load_config, read_yaml
from sleepfm.constants import CHANNELS
from sleepfm.errors import ConfigError, ModelError
from sleepfm.models.build import build_model, model_config
from sleepfm.models.neuronet import NeuroNetConfig
from sleepfm.models.saturation import SaturationEncoder
from sleepfm.models.synthsleepnet import SynthSleepNetConfig
from sleepfm.paths import config_root
from sleepfm.stages.pretrain import PretrainConfig

MODELS = config_root() / "models"
WAVES = ("AIRFLOW", "THORAX", "ABDOMEN")


def network(*channels: str, layout: str = "shared"):
    config = read_yaml(MODELS / "synthsleepnet-psg-tiny.yaml")["model"]
    torch.manual_seed(0)
    return build_model(config | {"channels": list(channels or CHANNELS), "layout": layout}).eval()


def night(channels=CHANNELS, epochs: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    signals = {name: torch.randn(epochs, 3000, generator=generator) for name in channels}
    if "SPO2" in signals:
        signals["SPO2"] = 95 + torch.arange(epochs)[:, None] + 0.1 * signals["SPO2"]
    return signals


def test_a_level_is_told_by_sines_of_the_mean_of_every_frame():
    times = NeuroNetConfig().frame_times
    encoder = SaturationEncoder(times, 8)
    saturation = torch.linspace(99, 81, 3000)[None]
    tokens = encoder(saturation)
    assert tokens.shape == (1, 27, 8) and not list(encoder.parameters()) and not encoder.state_dict()
    for frame, (begin, end) in enumerate(times.tolist()):
        mean = saturation[0, int(begin * 100) : int(end * 100)].mean().item()
        for place in range(4):
            wavelength = 4 * 25 ** (place / 3)
            angle = 2 * math.pi * mean / wavelength
            assert tokens[0, frame, [place, place + 4]].tolist() == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-3)


def test_a_step_of_one_per_cent_shows_and_a_sensor_that_is_off_is_no_lower_than_the_lowest():
    encoder = SaturationEncoder(NeuroNetConfig().frame_times, 128)
    rows = encoder(torch.tensor([97.0, 96.0, 50.0, 0.0])[:, None].expand(-1, 3000))
    assert (rows[0] - rows[1]).abs().max() > 0.3 and torch.equal(rows[2], rows[3])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(torch.full((1, 3000), 97.0)), rows[:1])


def test_a_neuronet_of_breathing_takes_waves_and_refuses_a_level():
    config = load_config(PretrainConfig, config_root() / "pretrain" / "resp-tiny.yaml")
    assert config.model.channels == WAVES and config.model.modality == "RESP"
    assert config.registry.name == "sleepfm-neuronet-resp"
    with pytest.raises(ConfigError, match="SPO2 is a level and not a wave"):
        load_config(PretrainConfig, config_root() / "pretrain" / "resp-tiny.yaml", ["model.channels=[AIRFLOW, SPO2]"])
    model = build_model(read_yaml(MODELS / "neuronet-tiny.yaml")["model"] | {"channels": list(WAVES)}).eval()
    assert model.embed({"THORAX": torch.randn(2, 3000)}).shape == (2, 128)
    with pytest.raises(ModelError, match="unknown channels SPO2"):
        model.embed({"SPO2": torch.randn(2, 3000)})


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_the_ten_channels_have_five_encoders_and_the_papers_four_stay(size):
    for job, channels, modalities in (
        ("psg", CHANNELS, ("EEG", "EOG", "EMG", "ECG", "RESP")),
        ("multimodal", ("EEG_C4", "EOG_L", "EMG_CHIN", "ECG"), ("EEG", "EOG", "EMG", "ECG")),
    ):
        config = load_config(PretrainConfig, config_root() / "pretrain" / f"{job}-{size}.yaml")
        assert config.model.channels == channels and config.model.modalities == modalities == tuple(config.encoders)
        assert config.registry.name == "sleepfm-synthsleepnet"
    assert SynthSleepNetConfig().channels == channels


def test_any_subset_of_ten_channels_gives_an_embedding_that_the_others_do_not_touch():
    model = network()
    signals = night()
    whole = model.embed(signals)
    assert whole.shape == (4, 128) and whole.isfinite().all()
    for subset in (("SPO2",), ("AIRFLOW",), ("EEG_C3", "SPO2"), WAVES, CHANNELS[:6]):
        given = {name: signals[name] for name in subset}
        alone = model.embed(given)
        assert alone.isfinite().all() and not torch.allclose(alone, whole, atol=1e-3)
        present = torch.tensor([[name in subset for name in CHANNELS]]).expand(4, -1)
        stacked = torch.stack([signals[name] for name in CHANNELS], dim=1).masked_fill(~present[..., None], torch.nan)
        torch.testing.assert_close(model.encode(stacked, present), alone, atol=1e-5, rtol=1e-4)


def test_saturation_changes_the_embedding_and_order_of_channels_does_not():
    model, signals = network("AIRFLOW", "THORAX", "SPO2"), night(("AIRFLOW", "THORAX", "SPO2"))
    low = signals | {"SPO2": signals["SPO2"] - 10}
    assert (model.embed(low) - model.embed(signals)).abs().max() > 1e-2
    torch.testing.assert_close(model.embed(dict(reversed(signals.items()))), model.embed(signals))


@pytest.mark.parametrize("layout", ["shared", "copies"])
def test_pretraining_reaches_every_part_and_leaves_the_encoders(layout):
    model = network("EEG_C4", "AIRFLOW", "ABDOMEN", "SPO2", layout=layout).train()
    expected = {"shared": {"EEG", "RESP"}, "copies": {"EEG_C4", "AIRFLOW", "ABDOMEN"}}[layout]
    assert set(model.backbones.encoders) == expected
    signals = torch.stack(list(night(model.channels, 6).values()), dim=1)
    present = torch.ones(6, 4, dtype=torch.bool)
    present[:3, 3] = False
    loss = model(signals, present, torch.rand(6, *model.noise_shape)).loss
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        # The released layout holds a class token that no computation uses.
        if name != "cls_token":
            assert (parameter.grad is not None) == parameter.requires_grad, name
    rebuilt = build_model(model_config(model))
    assert rebuilt.state_dict().keys() == model.state_dict().keys()


def test_a_level_alone_is_refused():
    with pytest.raises(ConfigError, match="SPO2 is not enough"):
        build_model({"kind": "synthsleepnet", "channels": ["SPO2"]})
