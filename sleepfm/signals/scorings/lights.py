"""Lights off and lights on among the texts of a recording and its scoring."""

from __future__ import annotations

from collections.abc import Iterable

from sleepfm.signals.scorings.vocabulary import fold

_OFF = frozenset(["lightsoff", "lightsout", "lightoff", "lightout", "lightsofftime", "lichtaus", "lumiereeteinte"])
_ON = frozenset(["lightson", "lighton", "lightsontime", "lichtan", "lumiereallumee"])


def find_lights(texts: Iterable[tuple[float, str]]) -> tuple[float | None, float | None]:
    """Lights off and lights on in s, each None where no text says it, from onsets and texts.

    Of several the first off and the last on: a light that went on in between ends no night.
    """
    off, on = [], []
    for onset, text in texts:
        names = {fold(part) for part in text.split("|")}
        if names & _OFF:
            off.append(onset)
        elif names & _ON:
            on.append(onset)
    return min(off, default=None), max(on, default=None)
