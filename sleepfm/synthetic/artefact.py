"""Artefacts of electrodes and movement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.signal import lfilter

from sleepfm.synthetic.noise import Floats, add_at


def add_movements(
    rng: np.random.Generator, signal: Floats, rate: int, movements: Sequence[tuple[float, float]], size: float
) -> None:
    """Add slow swings and broad-band noise during ``movements`` (onset and duration in s) in place, in the
    signal's unit."""
    for onset, duration in movements:
        length = int(duration * rate)
        slow = lfilter([1.0 / np.sqrt(rate / 2.0)], [1.0, -np.exp(-4.0 / rate)], rng.standard_normal(length))
        fast = 0.25 * rng.standard_normal(length)
        edge = np.minimum(1.0, np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.3 * rate))
        add_at(
            signal,
            int(onset * rate),
            (size * rng.uniform(0.4, 1.6) * edge * (slow + fast)).astype(np.float32),
        )


def add_pops(rng: np.random.Generator, signal: Floats, rate: int, per_hour: float, size: float) -> None:
    """Add electrode pops in place: sudden steps that decay within half a second."""
    time = np.arange(2 * rate, dtype=np.float32) / rate
    for start in rng.integers(0, len(signal), rng.poisson(per_hour * len(signal) / rate / 3600.0)).tolist():
        height = np.float32(size * rng.uniform(0.5, 1.5) * rng.choice([-1.0, 1.0]))
        add_at(signal, start, height * np.exp(-time / np.float32(rng.uniform(0.1, 0.4))))
