"""Filters drawn at random do to a sine what their knots say, to each sequence and channel its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sleepfm.constants import EPOCH_SAMPLES, RATE_HZ
from sleepfm.models.random_filter import KNOTS_HZ, filtered

KNOTS = len(KNOTS_HZ)


def sine(hertz: float) -> torch.Tensor:
    return torch.sin(2 * torch.pi * hertz * torch.arange(EPOCH_SAMPLES, dtype=torch.float64) / RATE_HZ)


@settings(max_examples=25, deadline=None)
@given(
    draws=st.lists(st.floats(0, 1), min_size=KNOTS, max_size=KNOTS),
    decibels=st.floats(0, 20),
    hertz=st.integers(1, 1400).map(lambda turns: turns / 30),
)
def test_a_sine_is_scaled_by_the_gain_between_its_knots(draws: list[float], decibels: float, hertz: float) -> None:
    # Written out: the gain in dB, linear in octaves.
    wanted = np.interp(np.log2(hertz), np.log2(KNOTS_HZ), (2 * np.array(draws) - 1) * decibels)
    signals = sine(hertz).float()[None, None, None]
    found = filtered(signals, torch.tensor(draws)[None, :, None], torch.tensor([decibels]))
    torch.testing.assert_close(found, signals * 10 ** (wanted / 20), atol=2e-3 * 10 ** (decibels / 20), rtol=0)


def test_each_sequence_and_channel_has_its_own_filter_and_all_its_epochs_the_same() -> None:
    signals = sine(8.0).float().expand(2, 3, 2, -1)
    draws = torch.zeros(2, KNOTS, 2)
    draws[0, :, 0], draws[0, :, 1], draws[1] = 1.0, 0.5, 0.25
    sizes = filtered(signals, draws, torch.tensor([6.0, 6.0])).std(-1) / signals.std(-1)
    expected = torch.tensor([[6.0, 0.0], [-3.0, -3.0]])[:, None].expand(-1, 3, -1)
    torch.testing.assert_close(20 * sizes.log10(), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_channel_of_no_decibels_stays(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    signals = torch.randn(2, 3, 2, EPOCH_SAMPLES, generator=generator).to(dtype)
    found = filtered(signals, torch.rand(2, KNOTS, 2, generator=generator), torch.tensor([0.0, 12.0]))
    assert found.dtype == dtype
    torch.testing.assert_close(found[:, :, 0], signals[:, :, 0], atol=1e-5, rtol=1e-5)
    assert (found[:, :, 1] - signals[:, :, 1]).abs().max() > 0.1
