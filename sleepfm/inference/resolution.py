"""The hypnodensity in stretches of 1 or 5 s, from epochs that begin elsewhere.

A model of stages says what a 30-s epoch is. Nothing is interpolated: the night is cut into epochs at every offset of the
resolution, 30 times for 1 s and 6 times for 5 s, and the model goes through each of these nights whole, its context too. The
value of a stretch is that of the epoch around it: of the epoch that begins 14 s (of 1 s) or 10 s (of 5 s) before it, at the
beginning and the end of the night of the first and last whole epoch. Among these are the values of the ordinary epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SAMPLES, EPOCH_SECONDS, RATE_HZ
from sleepfm.errors import UsageError
from sleepfm.inference.embed import NIGHT_CHUNK, counted, epochs_with_any, prepared_epochs
from sleepfm.inference.night_output import apply_to_epochs
from sleepfm.inference.night_score import FineHypnodensity
from sleepfm.inference.task_model import TaskModel
from sleepfm.models.device import Precision
from sleepfm.signals.prepare import PreparedRecording

RESOLUTIONS = (1, 5, EPOCH_SECONDS)


def fine_hypnodensity(
    entry: TaskModel,
    night: PreparedRecording,
    seconds: int,
    chunk: int = NIGHT_CHUNK,
    precision: Precision = "fp32",
    progress: Callable[[int], object] | None = None,
) -> FineHypnodensity:
    """The probability of each stage in stretches of ``seconds`` (1, 5 or 30), by the model of stages ``entry``; ``precision`` and
    ``progress`` as in :meth:`sleepfm.inference.scorer.Scorer.score`.

    Raises:
        UsageError: another resolution.
    """
    if seconds not in RESOLUTIONS:
        raise UsageError(f"resolution {seconds} s; choose from {', '.join(map(str, RESOLUTIONS))}")
    length = night.n_epochs * EPOCH_SECONDS
    starts = np.clip(
        np.arange(0, length, seconds) - (EPOCH_SECONDS - seconds) // 2 // seconds * seconds, 0, length - EPOCH_SECONDS
    )
    probability = np.full((len(starts), len(entry.usage.classes)), np.nan)
    for offset in np.unique(starts % EPOCH_SECONDS).tolist():
        shifted = shifted_night(night, offset)
        found = apply_to_epochs(
            entry.model,
            counted(prepared_epochs(shifted, entry.model.channels, chunk), progress),
            entry.usage.window,
            assessed=epochs_with_any(shifted, entry.model.evidence),
            precision=precision,
        )
        mine = starts % EPOCH_SECONDS == offset
        probability[mine] = found.epochs[starts[mine] // EPOCH_SECONDS]
    return FineHypnodensity(seconds, probability)


def shifted_night(night: PreparedRecording, offset: int) -> PreparedRecording:
    """The signals of ``night`` from ``offset`` s on, in whole epochs; an epoch is flagged as both that it is cut from are.

    Labels and events stay those of ``night``: nothing but signals is meant to be read.
    """
    if offset == 0:
        return night
    n_epochs, first = night.n_epochs - 1, offset * RATE_HZ
    return replace(
        night,
        n_epochs=n_epochs,
        channels={name: samples[first : first + n_epochs * EPOCH_SAMPLES] for name, samples in night.channels.items()},
        quality={name: flags[:-1] | flags[1:] for name, flags in night.quality.items()},
    )


def per_second(fine: FineHypnodensity) -> NDArray[np.float64]:
    """The value [30 E, 5] of the stretch that each second lies in."""
    return np.repeat(fine.probability, fine.seconds, axis=0)
