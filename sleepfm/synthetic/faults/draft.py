"""A night into which faults are being drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.synthetic.faults.truth import Fault
from sleepfm.synthetic.layout import SOURCES
from sleepfm.synthetic.night import NO_ROW, UNSCORED, Night, Note
from sleepfm.synthetic.noise import Floats


class Draft:
    """Signals, scoring and the list of faults so far; the night that it began with is not changed.

    Attributes:
        form: format of the scoring file.
        seconds: length of the night as drawn, to which a recorder left running adds.
    """

    def __init__(self, night: Night, form: str) -> None:
        self.form = form
        self.seconds = len(night.stages) * EPOCH_SECONDS
        self.stages, self.codes = night.stages.copy(), night.codes.copy()
        self.events, self.notes, self.words = list(night.events), list(night.notes), dict(night.words)
        self.faults: list[Fault] = []
        self.signals = dict(night.signals)
        self._night = night
        self._copied: set[str] = set()

    def rng(self, kind: str) -> np.random.Generator:
        """The stream of one kind of fault, apart from those of the night and of other faults."""
        return self._night.subject.rng(f"fault/{kind}")

    def source(self, name: str) -> Floats:
        """The signal of a source, to be changed in place."""
        label, _ = SOURCES[name]
        if label not in self._copied:
            self.signals[label] = self.signals[label].copy()
            self._copied.add(label)
        return self.signals[label]

    def part(self, name: str, first: float, stop: float) -> Floats:
        """The signal of a source from ``first`` to ``stop`` s, to be changed in place."""
        rate = SOURCES[name][1]
        return self.source(name)[int(first * rate) : int(stop * rate)]

    def note(self, kind: str, onset: float, duration: float, *sources: str, **detail: Any) -> None:
        """Keep what was drawn."""
        self.faults.append(Fault(kind, onset, duration, sources, detail))

    def finish(self) -> Night:
        """The night with its faults; events that lie in epochs without a stage alone are not scored."""
        scored = ~np.isin(self.codes, (NO_ROW, UNSCORED))
        span = [(int(event.onset / EPOCH_SECONDS), int(np.ceil(event.end / EPOCH_SECONDS))) for event in self.events]
        events = [event for event, (first, stop) in zip(self.events, span, strict=True) if scored[first:stop].any()]
        notes: list[Note] = sorted(self.notes, key=lambda note: note.onset)
        return replace(
            self._night,
            stages=self.stages,
            codes=self.codes,
            events=tuple(events),
            signals=self.signals,
            notes=tuple(notes),
            words=self.words,
        )
