"""Stretches of a night in which channels hold no usable signal, and how a reader is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.evaluation.events import event_family, runs
from sleepfm.signals.prepare import PreparedRecording
from sleepfm.signals.quality import unusable
from sleepfm.signals.scorings.scoring import Event
from sleepfm.wording import counted, for_number

# Of each group of channels, the longest stretches are told one by one, the others in a sum.
TOLD = 5
# Apneas and hypopneas rarely last more than a minute or two.
LONG_EVENT_SECONDS = 180


def stretch_warnings(night: PreparedRecording, channels: Sequence[str]) -> list[str]:
    """What a reader must know of ``channels``, which the models use: those that the night lacks, with the reason, and when
    the others hold no usable signal.
    """
    missing = [name for name in channels if name not in night.channels]
    reasons = night.provenance.get("missing", {})
    stated = [f"{name} ({reasons[name]})" if reasons.get(name) else name for name in missing]
    warnings = [f"scored without {', '.join(stated)}, which the recording does not have or which is unusable"] if stated else []
    # Electrodes that come off together, as at the end of a night, are said together.
    groups: dict[tuple[tuple[int, int], ...], list[str]] = {}
    for name in channels:
        if name in night.channels:
            groups.setdefault(tuple(runs(unusable(night.quality[name]))), []).append(name)
    for stretches, names in groups.items():
        if stretches:
            verb = "has" if len(names) == 1 else "have"
            warnings.append(f"{', '.join(names)} {verb} no usable signal {_told(stretches, night.provenance.get('clock'))}")
    return warnings


def unscored_warning(night: PreparedRecording, unscored: NDArray[np.bool_]) -> str:
    """When no model could be used, ``unscored`` [E]; empty where there is no such epoch."""
    if not unscored.any():
        return ""
    told = _told(tuple(runs(unscored)), night.provenance.get("clock"))
    number = int(unscored.sum())
    hold, be, it, count = (for_number(number, word) for word in ("holds", "is", "it", "counts"))
    return (
        f"{number} of {counted(night.n_epochs, 'epoch')} {hold} no usable signal in any channel and {be} unscored: {told}; "
        f"{it} {count} in no figure"
    )


def long_event_warnings(events: Sequence[Event], clock: str | None) -> list[str]:
    """Of apneas and of hypopneas, those that last longer than any should: a model may be wrong, or a sensor have come off."""
    warnings = []
    for kind, plural in (("apnea", "apneas"), ("hypopnea", "hypopneas")):
        long = [event for event in events if event_family(event.type) == kind and event.duration > LONG_EVENT_SECONDS]
        if long:
            longest = max(long, key=lambda event: event.duration)
            number = f"one {kind}" if len(long) == 1 else f"{len(long)} {plural}, the longest"
            at = _time(int(longest.onset // EPOCH_SECONDS), clock)
            warnings.append(f"the models saw {number} of {longest.duration:,.0f} s (from {at}); look at the signals there")
    return warnings


def _told(stretches: Sequence[tuple[int, int]], clock: str | None) -> str:
    longest = sorted(sorted(stretches, key=lambda stretch: (stretch[0] - stretch[1], stretch))[:TOLD])
    text = ", ".join(f"from {_time(first, clock)} to {_time(stop, clock)}" for first, stop in longest)
    shorter = set(stretches) - set(longest)
    if shorter:
        minutes = sum(stop - first for first, stop in shorter) * EPOCH_SECONDS / 60
        text += f", and in {len(shorter)} shorter {'stretches' if len(shorter) > 1 else 'stretch'} of {minutes:g} min together"
    return text


def _time(epoch: int, clock: str | None) -> str:
    """Of the clock where the recording tells it, else since its start (``+2:13:30``)."""
    passed = timedelta(seconds=epoch * EPOCH_SECONDS)
    if clock is None:
        return f"+{passed}"
    return (datetime.fromisoformat(f"2000-01-01T{clock}") + passed).time().isoformat(timespec="seconds")
