"""Epochs with the slow waves of N2 and N3, found by amplitudes alone: without a scoring, and the same upside down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SAMPLES

_FACTOR = 4
# Least amplitude below 4 Hz over that from there to 12.5 Hz. Real excerpts of N2 and N3 have 2 and more; of
# synthetic epochs, all of N3, three quarters of N2, and one in twenty of W and REM have it.
_SLOW_SHARE = 1.25
# What comes from the eyes is many times larger beside them: least slow EEG as a share of the calmer EOG's.
_EYE_SHARE = 0.6
# A body movement shows as an epoch of many times the size of the others that look slow.
_LARGEST = 4.0


@dataclass(frozen=True)
class SlowPart:
    """What a channel has below about 4 Hz, at 25 Hz in its own unit.

    Attributes:
        epochs: [E, 750].
        size, faster: standard deviation below 4 Hz and from there to 12.5 Hz, [E].
        fit: epochs that can be used, [E].
    """

    epochs: NDArray[np.float32]
    size: NDArray[np.float32]
    faster: NDArray[np.float32]
    fit: NDArray[np.bool_]


def slow_part(signal: NDArray[np.float32], scale: float, fit: NDArray[np.bool_]) -> SlowPart:
    """The slow part of ``signal`` [E * 3000] times ``scale``; ``fit`` [E] are the epochs that can be used."""
    # A product is much faster than a mean over so few columns.
    few = signal.reshape(-1, _FACTOR) @ np.full(_FACTOR, scale / _FACTOR, np.float32)
    window = np.hanning(9)[1:-1].astype(np.float32)
    smooth: NDArray[np.float32] = np.convolve(few, window / window.sum(), mode="same")
    shape = (-1, EPOCH_SAMPLES // _FACTOR)
    epochs, faster = smooth.reshape(shape), (few - smooth).reshape(shape)
    size = epochs.std(axis=1)
    return SlowPart(epochs, size, faster.std(axis=1), fit & (size > 0))


def slow_wave_epochs(eeg: SlowPart, eyes: Sequence[SlowPart]) -> NDArray[np.bool_]:
    """Epochs [E] of ``eeg`` with slow waves that come neither from ``eyes`` nor from movement.

    An eye movement is seen by both eyes, so that the smaller EOG tells it; one that is unfit in an epoch tells nothing.
    """
    found = eeg.fit & (eeg.size > _SLOW_SHARE * eeg.faster)
    seen = np.min([np.where(eye.fit, eye.size, np.inf) for eye in eyes], axis=0, initial=np.inf)
    found &= np.isinf(seen) | (eeg.size > _EYE_SHARE * seen)
    if found.any():
        found &= eeg.size < _LARGEST * np.median(eeg.size[found])
    return found
