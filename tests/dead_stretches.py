"""Stretches in which a recorder runs on without a person: what each kind of them looks like, put into a recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.signals.recording import Recording, SignalInfo

KINDS = ("zeros", "offset", "open input", "mains", "rail", "range", "drift")


def dead_samples(kind: str, size: int, info: SignalInfo, first: int = 0) -> NDArray[np.float32]:
    """``size`` samples in the unit of ``info`` as the recorder shows them without a person, from sample ``first``."""
    low, high = sorted((info.physical_min, info.physical_max))
    step = (high - low) / abs(info.digital_max - info.digital_min)
    seconds = (first + np.arange(size)) / info.rate
    noise = np.random.default_rng(first).integers(-1, 2, size) * step
    found: NDArray[np.floating[Any]]
    match kind:
        case "zeros":
            found = np.zeros(size)
        case "offset":
            found = np.full(size, low + 0.8 * (high - low))
        case "open input":
            found = noise
        case "mains" if info.rate < 100:  # a slow recorder keeps mains out
            found = noise
        case "mains":
            found = low + (high - low) * (0.5 + 0.45 * np.sin(2 * np.pi * 50.2 * seconds)) + noise
        case "rail":  # of an amplifier that saturates before its converter does
            found = np.full(size, low + 0.97 * (high - low)) + noise
        case "range":
            found = np.full(size, high)
        case "gap":
            return np.full(size, np.nan, np.float32)
        case "drift":
            found = low + (high - low) * (0.5 + 0.4 * np.sin(2 * np.pi * seconds / 900))
        case _:
            raise ValueError(kind)
    return np.clip(np.rint(found / step) * step, low, high).astype(np.float32)


def with_dead(recording: Recording, stretches: Sequence[tuple[float, float, str]], only: Sequence[str] = ()) -> Recording:
    """``recording`` with stretches (onset and duration in s, kind) of its signals (all, or those labelled ``only``) replaced."""

    def source(index: int) -> NDArray[np.float32]:
        samples, info = recording.source(index), recording.signals[index]
        if not only or info.label in only:
            for onset, duration, kind in stretches:
                first, stop = round(onset * info.rate), min(len(samples), round((onset + duration) * info.rate))
                samples[first:stop] = dead_samples(kind, stop - first, info, first)
        return samples

    return replace(recording, source=source)


def surrounded(recording: Recording, before: float, after: float, kind: str) -> Recording:
    """``recording`` by a recorder that ran for ``before`` and ``after`` seconds more, whole epochs before."""
    assert before % EPOCH_SECONDS == 0

    def source(index: int) -> NDArray[np.float32]:
        samples, info = recording.source(index), recording.signals[index]
        head, tail = round(before * info.rate), round(after * info.rate)
        parts = [dead_samples(kind, head, info), samples, dead_samples(kind, tail, info, head + len(samples))]
        return np.concatenate(parts)

    signals = tuple(
        replace(info, n_samples=info.n_samples + round(before * info.rate) + round(after * info.rate))
        for info in recording.signals
    )
    return replace(recording, source=source, signals=signals, duration=recording.duration + before + after, start=None)
