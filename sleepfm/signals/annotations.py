"""Scorings: one result type for every format, read by content, and reconciled with the recording's length."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.errors import AnnotationError
from sleepfm.signals.cohort import Cohort
from sleepfm.signals.edf_header import FIXED_BYTES, edf_kind
from sleepfm.signals.edf_scoring import from_annotations
from sleepfm.signals.event_log import is_event_log, read_event_log
from sleepfm.signals.event_table import is_event_table, read_event_table
from sleepfm.signals.files import location, matching_files, read_start
from sleepfm.signals.luna_annot import is_luna_annot, read_luna_annot
from sleepfm.signals.nsrr_xml import MAX_BYTES, parse_xml, read_nsrr
from sleepfm.signals.profusion_xml import ROOT as PROFUSION_ROOT
from sleepfm.signals.profusion_xml import read_profusion
from sleepfm.signals.recording import read_edf_header, read_recording
from sleepfm.signals.scoring_types import Event, Scoring, StageInterval

__all__ = ["Event", "Scoring", "StageInterval", "find_scoring", "read_scoring", "reconcile"]

# Formats of plain text, in the order in which they are tried: which text is one, and its reader, which gets the text, the file's
# path, and start and duration of the recording as far as they are known.
TextFormat = tuple[Callable[[str], bool], Callable[[str, Path, datetime | None, float | None], Scoring]]
TEXT_FORMATS: list[TextFormat] = [
    (is_luna_annot, read_luna_annot),
    (is_event_log, read_event_log),
    (is_event_table, read_event_table),
]

# Folders above a recording in which its scoring is looked for: NSRR keeps both two levels below the cohort.
_LEVELS = 4


def read_scoring(path: str | Path, start: datetime | None = None, duration: float | None = None) -> Scoring:
    """Read a scoring file; its format is told by its content.

    Args:
        path: of a file on disk, or a URL.
        start: date and time of the recording's first sample. Formats with clock times need it, and an EDF+
            hypnogram that starts at another time is shifted by the difference.
        duration: of the recording in s, until when a last stage without an end lasts.

    Raises:
        StageTextError: it has texts where stages stand that are not understood; the recording can be used without it.
        AnnotationError: missing, of no known format, damaged, or without stages.
        RecordingError: an EDF+ file that is damaged.
    """
    path = location(path)
    try:
        data = read_start(path, MAX_BYTES + 1)
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror or error})") from error
    if edf_kind(data[:FIXED_BYTES]):
        return _read_edf(path, start)
    if len(data) > MAX_BYTES:
        raise AnnotationError(f"{path}: more than {MAX_BYTES >> 20} MiB, too large for a scoring file")
    text = _decode(data)
    if text.lstrip().startswith("<"):
        root = parse_xml(data, str(path))
        if root.tag == "PSGAnnotation":
            return read_nsrr(root, path)
        if root.tag == PROFUSION_ROOT:
            return read_profusion(root, path)
        raise AnnotationError(
            f"{path}: XML with the root {root.tag[:40]!r}; NSRR's is PSGAnnotation, Profusion's {PROFUSION_ROOT}"
        )
    for is_one, read in TEXT_FORMATS:
        if is_one(text):
            return read(text, path, start, duration)
    raise AnnotationError(
        f"{path}: not NSRR or Profusion XML, EDF+ annotations, Luna's annot, a list of stages, or a table with a title row "
        "that names onset and stage or event; convert it to one"
    )


def find_scoring(edf: Path, root: Path | None, cohort: Cohort) -> Path | None:
    """The scoring file of the recording ``edf`` by the cohort's patterns, or None.

    Each pattern is tried in the recording's folder and in those above it, up to ``root`` and at least where NSRR
    keeps its annotations.

    Raises:
        AnnotationError: several files match equally well.
    """
    key = re.search(cohort.scoring.key, edf.name) if cohort.scoring.key else None
    folder = edf.parent
    above = [folder, *folder.parents][: _LEVELS + 1]
    if root is not None and root in folder.parents:
        above = [folder, *folder.parents][: max(_LEVELS, folder.parents.index(root) + 1) + 1]
    for pattern in cohort.scoring.files:
        if "{key}" in pattern and key is None:
            continue
        name = pattern.format(stem=_literal(edf.stem), folder=_literal(folder.name), key=_literal(key[0] if key else ""))
        for place in above:
            found = [path for path in _matching(place, name) if path != edf]
            if found:
                return _only(edf, found)
    if cohort.scoring.same_header:
        return _only(edf, _with_same_header(edf, cohort.scoring.same_header))
    return None


def reconcile(scoring: Scoring, duration: float, longer: Literal["cut", "error"], name: str) -> Scoring:
    """``scoring`` with what lies outside a recording of ``duration`` s cut off, and a warning for it.

    Raises:
        AnnotationError: it overlaps the recording nowhere; it is more than an epoch longer where that is an
            ``error``; it is more than an epoch shorter though its format scores whole nights; stages overlap.
    """
    _check_overlap(scoring, name)
    if scoring.begin >= duration or scoring.end <= 0:
        raise AnnotationError(
            f"{name}: {scoring.source} covers {scoring.begin:.0f} to {scoring.end:.0f} s, the recording 0 to "
            f"{duration:.0f} s; it belongs to another night"
        )
    excess = scoring.end - duration
    if excess > EPOCH_SECONDS and longer == "error":
        raise AnnotationError(
            f"{name}: {scoring.source} is {excess:.1f} s ({excess / EPOCH_SECONDS:.1f} epochs) longer than the "
            f"recording of {duration:.1f} s; one of them belongs to another night or is cut"
        )
    if scoring.whole_night and -excess > EPOCH_SECONDS:
        raise AnnotationError(
            f"{name}: {scoring.source} is {-excess:.1f} s ({-excess / EPOCH_SECONDS:.1f} epochs) shorter than the "
            f"recording of {duration:.1f} s; one of them belongs to another night or is cut"
        )
    events, unclear = (_inside(found, duration) for found in (scoring.events, scoring.unclear))
    warnings = []
    if excess > EPOCH_SECONDS:
        warnings.append(f"scoring goes on for {excess:.1f} s after the recording's end; cut")
    if scoring.begin < 0:
        warnings.append(f"scoring begins {-scoring.begin:.1f} s before the recording; cut")
    outside = len(scoring.events) + len(scoring.unclear) - len(events) - len(unclear)
    if outside:
        warnings.append(f"{outside} events outside the recording are left out")
    return replace(scoring, events=events, unclear=unclear, warnings=scoring.warnings + tuple(warnings))


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


def _read_edf(path: Path, start: datetime | None) -> Scoring:
    recording = read_recording(path)
    shift = (recording.start - start).total_seconds() if recording.start and start else 0.0
    scoring = from_annotations(recording.annotations, f"EDF+ annotations {path.name}", shift)
    if scoring is None:
        raise AnnotationError(f"{path}: none of its {len(recording.annotations)} annotations is a sleep stage")
    return scoring


def _decode(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif data.startswith(b"\xef\xbb\xbf"):
        encoding = "utf-8-sig"
    else:
        encoding = "utf-8"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _matching(folder: Path, pattern: str) -> list[Path]:
    try:
        return matching_files(folder, pattern)
    except OSError as error:
        raise AnnotationError(f"{folder}: cannot be searched for a scoring ({error.strerror or error})") from error


def _literal(text: str) -> str:
    """``text`` for use inside a glob pattern."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in text)


def _with_same_header(edf: Path, pattern: str) -> list[Path]:
    candidates = [path for path in _matching(edf.parent, pattern) if path != edf]
    if not candidates:
        return []
    mine = read_edf_header(edf)
    if mine.start is None:
        return []
    found = []
    for path in candidates:
        other = read_edf_header(path)
        if not other.ordinary and (other.patient, other.start) == (mine.patient, mine.start):
            found.append(path)
    return found


def _only(edf: Path, found: list[Path]) -> Path | None:
    # A scoring exported beside each format of a recording has the same ending as that recording.
    same = [path for path in found if path.suffix.lower() == edf.suffix.lower()]
    best = same if same else found
    if len(best) > 1:
        names = ", ".join(path.name for path in best)
        raise AnnotationError(f"{edf}: several scorings fit: {names}; keep one")
    return best[0] if best else None
