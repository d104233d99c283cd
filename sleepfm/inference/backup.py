"""The other central EEG where a recording lacks the one that a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sleepfm.constants import EPOCH_SAMPLES
from sleepfm.signals.prepare import PreparedRecording
from sleepfm.signals.quality import unusable

# C3-M2 is recorded for the case that C4-M1 fails (AASM manual, recommended EEG derivations and their backup).
BACKUP = {"EEG_C4": "EEG_C3", "EEG_C3": "EEG_C4"}


@dataclass(frozen=True)
class Seen:
    """A night as a model of some channels sees it, and in how many epochs a channel is the other side's."""

    night: PreparedRecording
    replaced: dict[str, int]


def with_backup(night: PreparedRecording, channels: Sequence[str]) -> Seen:
    """``night`` as a model of ``channels`` sees it.

    A central EEG that the model takes and that is missing or unusable in an epoch is there the one of the other side, if that is
    usable and the model does not take it too. All else is as it was; the samples of ``night`` are not changed.
    """
    replaced: dict[str, int] = {}
    for name, other in BACKUP.items():
        if name not in channels or other in channels or other not in night.channels:
            continue
        lost = np.ones(night.n_epochs, bool) if name not in night.channels else unusable(night.quality[name])
        put = lost & ~unusable(night.quality[other])
        if not put.any():
            continue
        samples, quality = night.channels[other].copy(), night.quality[other].copy()
        if name in night.channels:
            kept = np.repeat(~put, EPOCH_SAMPLES)
            samples[kept] = night.channels[name][kept]
            quality[~put] = night.quality[name][~put]
        night = replace(night, channels=night.channels | {name: samples}, quality=night.quality | {name: quality})
        replaced[name] = int(put.sum())
    return Seen(night, replaced)
