"""Compumedics Profusion XML; read back by :mod:`sleepfm.signals.scorings.profusion_xml`.

Source: NSRR's edf-editor-translator, wiki page Compumedics-Annotation-Format.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.signals.scorings.scoring import Event
from sleepfm.signals.scorings.writers.numbers import decimal


def profusion_xml(codes: Sequence[int], events: Iterable[Event]) -> str:
    """The file's text: events, whose type is written as their name, then the code of every epoch (R&K; 9 is unscored)."""
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', "<CMPStudyConfig>", f"<EpochLength>{EPOCH_SECONDS}</EpochLength>"]
    lines += ["<ScoredEvents>"]
    for event in events:
        fields = (("Name", event.type), ("Start", decimal(event.onset)), ("Duration", decimal(event.duration)))
        lines += ["<ScoredEvent>", *(f"<{name}>{escape(text)}</{name}>" for name, text in fields), "</ScoredEvent>"]
    lines += ["</ScoredEvents>", "<SleepStages>"]
    lines += [f"<SleepStage>{code}</SleepStage>" for code in codes]
    return "\n".join([*lines, "</SleepStages>", "</CMPStudyConfig>", ""])
