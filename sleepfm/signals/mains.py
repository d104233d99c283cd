"""How much of a recorded signal is mains: 50 or 60 Hz, as lights and power lines give it to a bad electrode."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MAINS_HZ = (50.0, 60.0)
# Mains that a slow recorder folds back are looked for down to here; below are waves of the EEG.
_LOWEST_ALIAS_HZ = 35.0


def _tones(rate: float) -> list[float]:
    """Where a recorder of ``rate`` Hz shows 50 and 60 Hz: there, or folded back to where no other wave is expected."""
    tones = [mains if mains + 1.0 < rate / 2 else abs(rate - mains) for mains in _MAINS_HZ]
    return [tone for tone in tones if _LOWEST_ALIAS_HZ <= tone < rate / 2 - 1.0]


def mains_share(epochs: NDArray[np.float32], rate: float) -> NDArray[np.float32]:
    """Share of the variance within the seconds of each epoch that is a sine of 50 or 60 Hz, the larger of both, [E].

    Each second is projected on a sine and a cosine, which takes in about 1 Hz to either side.
    """
    second, tones = round(rate), _tones(rate)
    count = epochs.shape[1] // second if second else 0
    if not tones or not count or not len(epochs):
        return np.zeros(len(epochs), dtype=np.float32)
    seconds = epochs[:, : count * second].reshape(-1, second)
    seconds = seconds - seconds.mean(axis=1, keepdims=True)
    phase = 2 * np.pi * np.outer(np.arange(second) / rate, tones)
    waves = np.concatenate([np.cos(phase), np.sin(phase)], axis=1).astype(np.float32)
    projected = (seconds @ waves).reshape(len(epochs), count, 2, len(tones))
    power = np.square(projected).sum(axis=(1, 2)) * np.float32(2 / second)
    total = np.square(seconds).reshape(len(epochs), -1).sum(axis=1)
    share: NDArray[np.float32] = power.max(axis=1) / np.maximum(total, np.finfo(np.float32).tiny)
    return share


def pickup(epochs: NDArray[np.float32], rate: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mains of each second of each epoch: their share of its variance, and their root mean square, [E, seconds] each.

    Projected on tenths of a second, so that mains a few tenths of a Hz off, as they and recorders' clocks are, are held whole.
    """
    second, part = round(rate), max(4, round(rate / 10))
    count, parts = epochs.shape[1] // second, second // part
    seconds = epochs[:, : count * second].reshape(len(epochs), count, second)
    total = np.square(seconds - seconds.mean(axis=2, keepdims=True)).mean(axis=2)
    pieces = seconds[:, :, : parts * part].reshape(len(epochs), count, parts, part)
    turns = 2 * np.pi * np.arange(part) / rate
    power = np.zeros_like(total)
    for tone in _tones(rate):
        waves, _ = np.linalg.qr(np.stack([np.ones(part), np.cos(turns * tone), np.sin(turns * tone)], axis=1))
        projected = pieces @ waves[:, 1:].astype(np.float32)
        power = np.maximum(power, np.square(projected).sum(axis=3).mean(axis=2) / np.float32(part))
    return power / np.maximum(total, np.finfo(np.float32).tiny), np.sqrt(power)
