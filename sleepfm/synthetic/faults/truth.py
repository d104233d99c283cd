"""What was drawn into a recording, kept beside it for tests and benchmarks; the product never reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sleepfm.synthetic.night import Night


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: a field of :class:`sleepfm.synthetic.faults.rates.FaultRates`.
        onset, duration: seconds from the first sample; the whole recording where it has no time of its own.
        sources: what it touches, by the names of :data:`sleepfm.synthetic.layout.SOURCES`; none for faults of the scoring.
        detail: what else was drawn.
    """

    kind: str
    onset: float
    duration: float
    sources: tuple[str, ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)


def truth_document(
    recording: str, clean: Night, seconds: int, faults: Sequence[Fault], signals: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """The truth of a recording of ``seconds`` as JSON.

    Args:
        recording: its path below the cohort's folder.
        clean: the night before its faults: its stages and events are what a faultless scorer writes.
        signals: shares of the sources by label of the EDF, to name the signals that a fault touches.
    """

    def touched(fault: Fault) -> list[str]:
        return [label for label, shares in signals.items() if not shares.keys().isdisjoint(fault.sources)]

    return {
        "recording": recording,
        "seconds": seconds,
        "stages": clean.stages.tolist(),
        "events": [{"kind": event.kind, "onset": event.onset, "duration": event.duration} for event in clean.events],
        "faults": [{**asdict(fault), "signals": touched(fault)} for fault in faults],
    }
