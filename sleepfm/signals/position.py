"""In which position the person lay, from a signal of the recorder whose codes the user states.

Recorders number positions each in their own way, and no header says how: without the user's word nothing is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.errors import MontageError, UsageError
from sleepfm.signals.cohorts.cohort import normalise_label
from sleepfm.signals.recording import Recording

POSITIONS = ("supine", "left", "right", "prone", "upright")
# Codes are whole numbers; what resampling or a converter makes of one is no farther from it.
_CLOSE = 0.1


@dataclass(frozen=True)
class BodyPosition:
    """Of each epoch [E] the number of one of ``names`` in which the person lay for most of it, -1 where that is not known."""

    names: tuple[str, ...]
    epochs: NDArray[np.int8]


@dataclass(frozen=True)
class PositionRule:
    """The label of the signal, and what its values mean."""

    label: str
    codes: dict[float, str]


def parse_position(text: str) -> PositionRule:
    """A rule from ``LABEL=CODE:NAME,…``, such as ``POSITION=0:right,1:left,2:supine,3:prone``.

    Raises:
        UsageError: another form, a code that is no number or is given twice, a name that is no position.
    """
    label, equals, rest = text.rpartition("=")
    codes: dict[float, str] = {}
    for part in rest.split(","):
        code, _, name = part.partition(":")
        try:
            value = float(code)
        except ValueError:
            equals = ""
            break
        if name.strip() not in POSITIONS:
            raise UsageError(f"--position {text}: {name.strip()!r} is not a position; the positions are {', '.join(POSITIONS)}")
        if value in codes:
            raise UsageError(f"--position {text}: the code {code.strip()} is given twice")
        codes[value] = name.strip()
    if not equals or not label.strip():
        raise UsageError(f"--position {text}: write LABEL=CODE:NAME,…, such as POSITION=0:right,1:left,2:supine,3:prone")
    return PositionRule(label.strip(), codes)


def read_position(recording: Recording, rule: PositionRule, n_epochs: int) -> BodyPosition:
    """The position of each of ``n_epochs``.

    Raises:
        MontageError: the recording has no signal of that label, or several.
        RecordingError: the signal cannot be read.
    """
    wanted = normalise_label(rule.label)
    found = [number for number, signal in enumerate(recording.signals) if normalise_label(signal.label) == wanted]
    if len(found) != 1:
        has = ", ".join(repr(signal.label) for signal in recording.signals)
        raise MontageError(f"{recording.name}: --position {rule.label}: {len(found) or 'no'} signals of that label; it has {has}")
    samples, rate = recording.read(found[0]), recording.signals[found[0]].rate
    names = tuple(dict.fromkeys(rule.codes.values()))
    epochs = np.full(n_epochs, -1, np.int8)
    for epoch in range(n_epochs):
        own = samples[round(epoch * EPOCH_SECONDS * rate) : round((epoch + 1) * EPOCH_SECONDS * rate)]
        held = np.zeros(len(names), int)
        for code, name in rule.codes.items():
            held[names.index(name)] += int((np.abs(own - code) <= _CLOSE).sum())
        if 2 * held.max() > len(own):
            epochs[epoch] = held.argmax()
    return BodyPosition(names, epochs)
