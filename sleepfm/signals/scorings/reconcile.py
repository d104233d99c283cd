"""Scorings brought to the length of their recording, or refused as those of another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.errors import AnnotationError
from sleepfm.signals.scorings.scoring import Event, Scoring
from sleepfm.wording import counted, for_number

# Of a scoring whose seconds are assumed, at most this share is cut off; what is several times longer is no scoring of the night.
_MOST_CUT = 0.5
# Seconds up to which a message names the key that cuts: a recorder that is switched off before the scoring's last minutes.
_MOST_ADVISED = 600.0
# Lengths of epochs beside 30 s that laboratories score.
_OTHER_EPOCHS = (20, 10)
# Below, a few epochs more or less look like another length of epochs.
_A_WHILE = 600.0
# No recorder of a night takes fewer samples a second.
_LEAST_RATE = 10
_CLOSE = 0.01


def reconcile(
    scoring: Scoring,
    duration: float,
    longer: Literal["cut", "error"],
    name: str,
    shorter: Literal["keep", "error"] = "error",
) -> Scoring:
    """``scoring`` brought to a recording of ``duration`` s: what lies outside is cut off, what it leaves out at either end is
    unscored; a warning says by how much where that is more than an epoch.

    Onsets stay what they are: a list of epochs begins with the recording, and nothing is moved to make ends meet.

    Args:
        longer: whether one that goes on for more than an epoch after the recording is ``cut`` or an ``error``.
        shorter: whether of one that ends more than an epoch before it, though its format scores whole nights, what is there is
            kept (``keep``) or that is an ``error``.

    Raises:
        AnnotationError: it overlaps the recording nowhere; its length is an ``error``; stages overlap; or it is longer, seconds
            are assumed, and more than half of it lies after the recording or it seems to count something else.
    """
    _check_overlap(scoring, name)
    if scoring.begin >= duration or scoring.end <= 0:
        raise AnnotationError(
            f"{name}: {scoring.source} covers {scoring.begin:.0f} to {scoring.end:.0f} s, the recording 0 to "
            f"{duration:.0f} s; it belongs to another night"
        )
    excess = scoring.end - duration
    unit = _other_unit(scoring, duration) if excess > EPOCH_SECONDS and scoring.seconds_assumed else ""
    strange = unit or (scoring.seconds_assumed and excess > _MOST_CUT * scoring.end)
    if excess > EPOCH_SECONDS and (longer == "error" or strange):
        raise AnnotationError(
            f"{name}: {scoring.source} is {excess:.1f} s ({excess / EPOCH_SECONDS:.1f} epochs) longer than the "
            f"recording of {duration:.1f} s; {unit or 'one of them belongs to another night or is cut'}"
            + (
                ". If both begin together, `scoring: {longer: cut}` in a cohort file takes it as far as the recording goes"
                if excess <= _MOST_ADVISED and not strange
                else ""
            )
        )
    if scoring.whole_night and -excess > EPOCH_SECONDS and shorter == "error":
        raise AnnotationError(
            f"{name}: {scoring.source} is {-excess:.1f} s ({-excess / EPOCH_SECONDS:.1f} epochs) shorter than the "
            f"recording of {duration:.1f} s; one of them belongs to another night or is cut. If both begin together, "
            "`scoring: {shorter: keep}` in a cohort file takes what is there and leaves the rest unscored"
        )
    events, unclear, untimed = (_inside(found, duration) for found in (scoring.events, scoring.unclear, scoring.untimed))
    warnings = []
    if excess > EPOCH_SECONDS:
        warnings.append(f"scoring goes on for {excess:.1f} s after the recording's end; cut")
    if scoring.whole_night and -excess > EPOCH_SECONDS:
        warnings.append(
            f"scoring ends {-excess:.1f} s ({-excess / EPOCH_SECONDS:.1f} epochs) before the recording; not scored there"
        )
    misplaced = scoring.misplaced
    if scoring.begin < 0:
        warnings.append(f"scoring begins {-scoring.begin:.1f} s before the recording; cut")
        misplaced += (warnings[-1],) if scoring.begin < -EPOCH_SECONDS else ()
    outside = len(scoring.events) + len(scoring.unclear) - len(events) - len(unclear)
    has_events = scoring.has_events
    if outside:
        warnings.append(f"{counted(outside, 'event')} outside the recording {for_number(outside, 'is')} left out")
        if has_events and not events and not unclear:
            has_events = False
            warnings.append("none of its events lies in the recording, whose events count as not scored")
    return replace(
        scoring,
        events=events,
        unclear=unclear,
        untimed=untimed,
        has_events=has_events,
        warnings=scoring.warnings + tuple(warnings),
        misplaced=misplaced,
    )


def _other_unit(scoring: Scoring, duration: float) -> str:
    """What a scoring whose seconds are assumed seems to count in, by how much longer it is; empty where nothing seems so."""
    ratio = scoring.end / duration
    for length in _OTHER_EPOCHS:
        if duration >= _A_WHILE and abs(scoring.end / EPOCH_SECONDS * length - duration) <= length:
            return (
                f"its epochs seem to have {length} s, not {EPOCH_SECONDS}; export it with an onset and a duration in seconds for "
                "each"
            )
    if ratio >= _LEAST_RATE and abs(ratio / round(ratio) - 1) <= _CLOSE:
        return (
            f"it is {round(ratio)} times as long, as if its times were {'milliseconds' if round(ratio) == 1000 else 'samples'}; "
            "export them in seconds, or say the unit in the title (`onset (ms)`)"
        )
    return ""


def _inside(events: Iterable[Event], duration: float) -> tuple[Event, ...]:
    """The parts of ``events`` that lie in a recording of ``duration`` s."""
    found = []
    for event in events:
        begin, end = max(event.onset, 0.0), min(event.onset + event.duration, duration)
        if begin < end or (event.duration == 0 and 0 <= event.onset < duration):
            # An event that lies inside keeps its duration to the last bit.
            whole = begin == event.onset and end < duration
            found.append(event if whole else replace(event, onset=begin, duration=end - begin))
    return tuple(found)


def _check_overlap(scoring: Scoring, name: str) -> None:
    end = float("-inf")
    for interval in scoring.stages:
        if interval.onset < end - 1.0:
            raise AnnotationError(
                f"{name}: {scoring.source}: the stage at {interval.onset:g} s starts before the one before it ends ({end:g} s)"
            )
        end = max(end, interval.end)
