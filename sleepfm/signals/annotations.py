"""Scored stages and events of a night: one result type for every format they come in."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.errors import AnnotationError
from sleepfm.signals.cohort import Cohort
from sleepfm.signals.recording import Recording


@dataclass(frozen=True)
class StageInterval:
    """``stage`` (:class:`~sleepfm.constants.Stage`) from ``onset`` for ``duration`` seconds."""

    onset: float
    duration: float
    stage: int


@dataclass(frozen=True)
class Event:
    """A scored event of one of :data:`~sleepfm.constants.EVENT_TYPES`; onset and duration in seconds."""

    onset: float
    duration: float
    type: str


@dataclass(frozen=True)
class Scoring:
    """What a scoring file says.

    Times are in seconds from ``start``, or from the recording's first sample where ``start`` is None.
    ``covers_recording``: the format scores every epoch from first to last, so its length must be the recording's.
    """

    stages: tuple[StageInterval, ...]
    events: tuple[Event, ...]
    source: str
    has_events: bool = True
    covers_recording: bool = False
    start: datetime | None = None

    @property
    def end(self) -> float:
        """Seconds from the start to the end of the last scored interval."""
        return max((interval.onset + interval.duration for interval in self.stages), default=0.0)


def read_scoring(path: Path) -> Scoring:
    """Read a scoring file of any known format, told apart by content.

    Raises:
        AnnotationError: unreadable, of no known format, or without any scored epoch.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror})") from error
    scoring = _reader(path, head)(path)
    if not scoring.stages:
        raise AnnotationError(f"{path}: holds no scored sleep stage")
    return scoring


def _reader(path: Path, head: bytes) -> Callable[[Path], Scoring]:
    from sleepfm.signals import edf_hypnogram, noxturnal, nsrr_xml

    if head[:8].strip() == b"0" or head.startswith(b"\xffBIOSEMI"):
        return edf_hypnogram.read
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return noxturnal.read
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return nsrr_xml.read
    raise AnnotationError(f"{path}: no known scoring format (NSRR XML, EDF+ hypnogram, Noxturnal export)")


def find_scoring(recording: Path, root: Path, cohort: Cohort) -> Path | None:
    """The scoring file of a recording by the cohort's patterns, beside it or anywhere below ``root``.

    Raises:
        AnnotationError: several files fit one pattern.
    """
    key = re.search(cohort.scoring.key, recording.stem) if cohort.scoring.key else None
    for pattern in cohort.scoring.files:
        if "{key}" in pattern and key is None:
            continue
        name = pattern.format(stem=_literal(recording.stem), key=_literal(key[0]) if key else "")
        for folder in (recording.parent, root):
            found = sorted(path for path in folder.glob(name) if path.is_file() and path != recording)
            if len(found) > 1:
                named = ", ".join(path.name for path in found[:5])
                raise AnnotationError(f"{recording}: {named} all fit the pattern {pattern!r}; keep one or name it")
            if found:
                return found[0]
    return None


def _literal(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


def align(scoring: Scoring, recording: Recording, cohort: Cohort) -> tuple[Scoring, list[str]]:
    """The scoring on the recording's own clock, and what was reconciled on the way.

    Raises:
        AnnotationError: the lengths differ by more than one epoch, or the two do not overlap in time.
    """
    remarks = []
    if scoring.start is not None:
        if recording.start is None:
            raise AnnotationError(f"{scoring.source}: has clock times, but the start of {recording.path} is unknown")
        scoring = _shift(scoring, (scoring.start - recording.start).total_seconds())
    excess = scoring.end - recording.duration
    if scoring.covers_recording and abs(excess) > EPOCH_SECONDS and not (excess > 0 and cohort.scoring.longer_is_cut):
        raise AnnotationError(
            f"{scoring.source}: scores {scoring.end:g} s, {recording.path.name} lasts {recording.duration:g} s: "
            f"{abs(excess):g} s {'more' if excess > 0 else 'less'}, which is more than one epoch; is it this night's?"
        )
    if excess > EPOCH_SECONDS:
        remarks.append(f"scoring goes on for {excess:g} s after the recording; cut")
    if not any(s.onset < recording.duration and s.onset + s.duration > 0 for s in scoring.stages):
        raise AnnotationError(f"{scoring.source}: scores no moment of {recording.path.name}; it is of another night")
    return scoring, remarks


def _shift(scoring: Scoring, seconds: float) -> Scoring:
    return replace(
        scoring,
        stages=tuple(replace(interval, onset=interval.onset + seconds) for interval in scoring.stages),
        events=tuple(replace(event, onset=event.onset + seconds) for event in scoring.events),
        start=None,
    )
