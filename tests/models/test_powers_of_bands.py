"""The powers of bands beside an embedding: what they measure and do not depend on, and that an absent channel changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import welch

from sleepfm.config import read_yaml, validate
from sleepfm.constants import EPOCH_SAMPLES, RATE_HZ
from sleepfm.errors import ModelError
from sleepfm.models.band_powers import BANDS_HZ, WIDTH, BandPowersConfig, among_neighbours, band_powers
from sleepfm.models.build import model_config
from sleepfm.models.context import ContextConfig
from sleepfm.models.downstream import Downstream, DownstreamConfig, TuneConfig
from sleepfm.models.neuronet import NeuroNet, NeuroNetConfig
from sleepfm.paths import config_root

EEG = ("EEG_C3", "EEG_C4")
SHARES, TOTAL, BURSTS = slice(0, len(BANDS_HZ)), len(BANDS_HZ), slice(len(BANDS_HZ) + 1, WIDTH)
THERE = torch.ones(1, 1, dtype=torch.bool)


def wave(hertz: float, of: slice = slice(None)) -> torch.Tensor:
    """An epoch [1, 1, T] of weak noise with a sine in the samples ``of``."""
    signal = 0.02 * np.random.default_rng(0).standard_normal(EPOCH_SAMPLES)
    signal[of] += np.sin(2 * np.pi * hertz * np.arange(EPOCH_SAMPLES) / RATE_HZ)[of]
    return torch.from_numpy(signal[None, None].astype(np.float32))


def of(signal: torch.Tensor) -> torch.Tensor:
    return band_powers(signal, THERE, EEG[:1], EEG)[0]


@pytest.mark.parametrize("band", range(len(BANDS_HZ)))
def test_a_wave_of_a_band_is_found_in_it(band):
    found = of(wave(sum(BANDS_HZ[band]) / 2))
    assert found[SHARES].argmax() == band
    assert found[SHARES][band].exp() > 0.8


def test_powers_are_those_of_welch():
    signal = np.random.default_rng(1).standard_normal(EPOCH_SAMPLES).cumsum() / 20
    signal -= signal.mean()
    found = of(torch.from_numpy(signal[None, None].astype(np.float32)))
    hertz, power = welch(signal, RATE_HZ, "hann", 2 * RATE_HZ, RATE_HZ, detrend="constant")
    bands = np.array([power[(hertz >= low) & (hertz < high)].sum() for low, high in BANDS_HZ])
    np.testing.assert_allclose(found[SHARES].exp(), bands / bands.sum(), atol=0.02)


def test_a_spindle_is_a_burst_and_a_rhythm_is_none():
    sigma = 4
    assert of(wave(13.0, slice(1000, 1100)))[BURSTS][sigma] > of(wave(13.0))[BURSTS][sigma] + 2


@settings(max_examples=20, deadline=None)
@given(gain=st.floats(0.3, 3.0), seed=st.integers(0, 100))
def test_a_gain_changes_the_power_of_all_and_no_share(gain, seed):
    signal = torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 1, EPOCH_SAMPLES)).astype(np.float32))
    one, other = of(signal), of(gain * signal)
    torch.testing.assert_close(other[TOTAL] - one[TOTAL], torch.tensor(2 * np.log(gain), dtype=torch.float32), atol=0.02, rtol=0)
    torch.testing.assert_close(other[SHARES], one[SHARES], atol=0.1, rtol=0)


def test_absent_channels_are_no_part_of_the_mean():
    signals = torch.randn(3, 2, EPOCH_SAMPLES)
    signals[1, 1] = torch.nan
    present = torch.tensor([[True, True], [True, False], [False, False]])
    found = band_powers(signals, present, EEG, EEG)
    alone = [band_powers(signals[:, [c]], present[:, [c]], EEG[c : c + 1], EEG) for c in range(2)]
    torch.testing.assert_close(found[0], (alone[0][0] + alone[1][0]) / 2)
    assert torch.equal(found[1], alone[0][1])
    assert not found[2].any()
    # Those of channels that nobody asks for, and in any order.
    assert torch.equal(band_powers(signals.flip(1), present.flip(1), EEG[::-1], EEG[:1]), alone[0])
    assert torch.equal(band_powers(signals, present, EEG, ["EOG_L"]), torch.zeros(3, WIDTH))


def test_a_silent_epoch_has_finite_powers():
    assert of(torch.zeros(1, 1, EPOCH_SAMPLES)).isfinite().all()


def test_neighbours_are_those_of_the_sequence():
    x = 3 + 2 * torch.randn(2, 50, 4)
    x[1, 20:] = 1e6
    valid = torch.ones(2, 50, dtype=torch.bool)
    valid[1, 20:] = False
    found = among_neighbours(x, valid)
    mine = x[1, :20]
    torch.testing.assert_close(found[1, :20], (mine - mine.mean(0)) / (mine.std(0, correction=0) + 0.1), atol=1e-4, rtol=1e-4)
    assert not found[1, 20:].any()
    torch.testing.assert_close(found[0], among_neighbours(x[:1])[0])
    torch.testing.assert_close(among_neighbours(x[:1] + 5)[0], found[0], atol=1e-4, rtol=1e-4)
    assert not among_neighbours(torch.ones(1, 7, 4)).any()


def model(embedding: bool, **options) -> Downstream:
    torch.manual_seed(0)
    values = read_yaml(config_root() / "models" / "neuronet-tiny.yaml")["model"]
    encoder = NeuroNet(validate(NeuroNetConfig, values | {"channels": EEG}, "neuronet"))
    config = DownstreamConfig(
        task="stage",
        classes=("W", "N1", "N2", "N3", "REM"),
        encoder=model_config(encoder),
        tune=TuneConfig(mode="frozen"),
        context=ContextConfig(kind="mamba", bidirectional=True),
        band_powers=BandPowersConfig(channels=EEG, embedding=embedding),
        evidence=EEG,
        **options,
    )
    return Downstream(config, encoder).eval()


@pytest.mark.parametrize("embedding", [True, False])
def test_a_night_is_classified_as_its_sequences_are(embedding):
    net = model(embedding)
    signals, present = torch.randn(1, 12, 2, EPOCH_SAMPLES), torch.ones(1, 12, 2, dtype=torch.bool)
    present[0, 3, 1] = False
    present[0, 7] = False
    with torch.no_grad():
        logits = net(signals, present)[0]
        night = net.embed_epochs(signals[0], present[0])
        alone = net.classify(night[present[0].any(1)][None])[0]
    torch.testing.assert_close(logits[present[0].any(1)], alone, atol=1e-4, rtol=1e-4)


def test_without_the_embedding_the_encoder_does_not_run():
    net, other = model(False), model(False)
    signals, present = torch.randn(1, 4, 2, EPOCH_SAMPLES), torch.ones(1, 4, 2, dtype=torch.bool)
    with torch.no_grad():
        for weight in other.encoder.parameters():
            weight.fill_(torch.nan)
        assert torch.equal(net(signals, present), other(signals, present))
        assert model(True)(signals, present).shape == (1, 4, 5)


def test_a_channel_that_the_encoder_lacks_is_named():
    with pytest.raises(ModelError, match=r"band_powers\.channels: EOG_L: not among the encoder's channels EEG_C3, EEG_C4"):
        encoder = model(True).encoder
        config = DownstreamConfig(
            task="stage", classes=("W", "N1"), encoder=model_config(encoder), band_powers=BandPowersConfig(channels=("EOG_L",))
        )
        Downstream(config, encoder)
