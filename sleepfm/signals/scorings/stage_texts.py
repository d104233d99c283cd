"""Texts where stages stand: numbers among them, and what is not understood there, which refuses the scoring.

To leave such a text out would lose one stage, mostly wake or REM, and keep the others, as if a night had none of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import PurePath

import numpy as np

from sleepfm.constants import EPOCH_SECONDS, Stage
from sleepfm.errors import StageTextError
from sleepfm.signals.scorings.scoring import Row, StageInterval
from sleepfm.signals.scorings.vocabulary import names_a_stage, stages_of_numbers

NUMBER = re.compile(r"-?\d{1,3}(\.0+)?")
# Rows that follow each other do so within this many seconds.
_CLOSE = 0.5
# No stage is shorter: the AASM scores 30 s, some laboratories 20 s.
_SHORTEST_EPOCH = 10.0
_SHOWN = 10
# Epochs from which on a list without wake is strange.
_A_NIGHT = 40


def number_reader(
    names: Sequence[str], by_name: Callable[[str], Stage | None], legend: Mapping[int, Stage], path: PurePath
) -> Callable[[str], Stage | None]:
    """How the texts ``names`` of one scoring, in order of time, are read as stages: names by ``by_name``, numbers as a list.

    A number is a stage unless the stages are written out ("Sleep stage 1"): then it is some other mark. Beside names it is
    Rechtschaffen and Kales's (W, 1, 2, 3, 4, R); without them ``legend`` or :func:`stages_of_numbers` says what it means.

    Raises:
        StageTextError: numbers that mean no stage, or one of two.
    """
    numbers = [int(float(name)) for name in names if NUMBER.fullmatch(name)]
    words = [name for name in names if not NUMBER.fullmatch(name)]
    if not numbers:
        return by_name
    if any(names_a_stage(word) and by_name(word) is not None for word in words):
        return lambda name: None if NUMBER.fullmatch(name) else by_name(name)
    without_wake = 0 not in numbers and not any(by_name(word) == Stage.W for word in words)
    if not legend and {1, 5} <= set(numbers) and without_wake and len(numbers) >= _A_NIGHT:
        # Laboratories that count from 1 write all of these; a night without any wake is not met.
        raise StageTextError(
            f"{path}: its stages are the numbers 1 to 5 without a 0, so it is unclear whether 1 is N1 or wake; write names "
            "instead of numbers"
        )
    try:
        if any(by_name(word) == Stage.REM for word in words):
            numbers = [*numbers, 5]
        # Negative numbers are unscored in every list, and seldom in the legend.
        full = {-2: Stage.UNSCORED, -1: Stage.UNSCORED, **legend} if legend else {}
        meaning = full if legend and set(numbers) <= full.keys() else stages_of_numbers(numbers)
    except ValueError as error:
        raise StageTextError(f"{path}: {error}") from error
    return lambda name: meaning.get(int(float(name))) if NUMBER.fullmatch(name) else by_name(name)


def refuse_unknown(texts: Mapping[str, int], name: str, first: float | None = None) -> None:
    """Raises :class:`StageTextError` that names the ``texts`` and how often each occurs; nothing without any.

    ``first`` is the second at which one stands first, where the caller does not say it in ``name``.
    """
    if not texts:
        return
    ordered = Counter(texts).most_common()
    shown = ", ".join(f"{text!r} ({count})" for text, count in ordered[:_SHOWN])
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    place = "" if first is None else f", first at {timedelta(seconds=round(first))}"
    raise StageTextError(
        f"{name}: unknown stage texts: {shown}{more}{place}; the scoring is not used. Write "
        "W, N1, N2, N3, R, or ? for an epoch without a stage, or say in a cohort file what they mean "
        "(scoring: {stages: {TEXT: N2}})"
    )


def check_runs(stages: Sequence[tuple[Row, Stage]], name: str) -> tuple[str, ...]:
    """A warning where stages without durations leave a part of the night between them open, nothing where they do not.

    Args:
        stages: rows in order of time, with their stages.

    Raises:
        StageTextError: most of them do, or no two that follow each other are alike: each may stand for a run of epochs.
    """
    steps = [
        (after.onset - row.onset, value == following) for (row, value), (after, following) in pairwise(stages) if not row.duration
    ]
    wide = [step for step, _ in steps if step > EPOCH_SECONDS + _CLOSE]
    if not wide:
        return ()
    if 2 * len(wide) > len(steps) or not any(alike for _, alike in steps):
        raise StageTextError(
            f"{name}: its stages have no durations, and {len(wide)} of {len(steps)} are followed by the next after more than "
            f"{EPOCH_SECONDS} s (up to {max(wide):g} s): it is unclear whether a stage lasts until the next one; add a column "
            "of durations or ends, or write a row for each epoch"
        )
    return (f"{len(wide)} stages without durations are followed by none for more than {EPOCH_SECONDS} s; not scored there",)


def standing_as_stages(rows: Sequence[Row], others: Sequence[Row], stages: Sequence[StageInterval]) -> Counter[str]:
    """Texts among ``others`` that stand where stages would, with how often they do.

    Such a text fills what the stages leave open: most of its rows lie where no stage does, each begins where a stage or
    another of its rows ends or ends where one begins, and lasts an epoch or more. Beside such a text another one does. Where
    rows have no duration, one lasts until the next of all ``rows``, which then must be whole epochs away.
    """
    begins = np.array([interval.onset for interval in stages])
    ends = np.array([interval.end for interval in stages])
    onsets = np.unique([row.onset for row in rows])
    spans: dict[str, list[tuple[float, float]]] = {}
    counts = Counter(row.text for row in others)
    for row in others:
        length = row.duration or _until_next(row, onsets)
        place = int(np.searchsorted(begins, row.onset + _CLOSE, side="right"))
        free = (place == 0 or ends[place - 1] <= row.onset + _CLOSE) and (
            place == len(begins) or begins[place] >= row.onset + length - _CLOSE
        )
        if length >= _SHORTEST_EPOCH and free:
            spans.setdefault(row.text, []).append((row.onset, row.onset + length))
    found: Counter[str] = Counter()
    waiting = {text: np.array(own) for text, own in spans.items()}
    # A stage that is not understood may stand beside another one that is not.
    while beside := [text for text, own in waiting.items() if (_close(own[:, 0], ends) | _close(own[:, 1], begins)).any()]:
        for text in beside:
            starts, stops = waiting[text].T
            chained = _close(starts, ends) | _close(stops, begins) | _close(starts, stops) | _close(stops, starts)
            timed = any(row.duration for row in others if row.text == text)
            if 2 * chained.sum() >= counts[text] and (timed or len(starts) > 1):
                found[text] = counts[text]
        joined = [waiting.pop(text) for text in beside]
        begins, ends = (np.concatenate([known, *(own[:, k] for own in joined)]) for k, known in enumerate((begins, ends)))
    return found


def _until_next(row: Row, onsets: np.ndarray) -> float:
    """Seconds until the next row if that is a number of whole epochs, else 0."""
    following = int(np.searchsorted(onsets, row.onset, side="right"))
    length = float(onsets[following] - row.onset) if following < len(onsets) else 0.0
    return length if abs(length - EPOCH_SECONDS * round(length / EPOCH_SECONDS)) <= _CLOSE else 0.0


def _close(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Which of ``first`` [N] lie close to one of ``second`` [M]."""
    ordered = np.sort(second)
    place = np.searchsorted(ordered, first)
    before, after = ordered[np.maximum(place - 1, 0)], ordered[np.minimum(place, len(ordered) - 1)]
    return np.minimum(np.abs(first - before), np.abs(first - after)) <= _CLOSE
