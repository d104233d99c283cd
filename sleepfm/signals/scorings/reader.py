"""Scoring files: one result type for every format, which is told by the content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path, PurePath

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.errors import AnnotationError
from sleepfm.signals.edf.header import FIXED_BYTES, edf_kind
from sleepfm.signals.files import MemoryFile, location, name_below, random_file, read_start
from sleepfm.signals.recording import Recording, open_recording
from sleepfm.signals.scorings.edf_plus import from_annotations
from sleepfm.signals.scorings.event_log import is_event_log, read_event_log
from sleepfm.signals.scorings.event_table import is_event_table, read_event_table
from sleepfm.signals.scorings.event_words import EventWords
from sleepfm.signals.scorings.luna_annot import is_luna_annot, read_luna_annot
from sleepfm.signals.scorings.nsrr_xml import MAX_BYTES, parse_xml, read_nsrr
from sleepfm.signals.scorings.own_words import OwnWords
from sleepfm.signals.scorings.profusion_xml import ROOT as PROFUSION_ROOT
from sleepfm.signals.scorings.profusion_xml import read_profusion
from sleepfm.signals.scorings.scoring import Scoring
from sleepfm.signals.scorings.table_columns import find_titles

# Formats of plain text, in the order in which they are tried: which text is one, and its reader, which gets the text, the name of
# the file, start and duration of the recording as far as they are known, and the words for events.
TextFormat = tuple[Callable[[str], bool], Callable[[str, PurePath, datetime | None, float | None, EventWords], Scoring]]
TEXT_FORMATS: list[TextFormat] = [
    (is_luna_annot, read_luna_annot),
    (is_event_log, read_event_log),
    (is_event_table, read_event_table),
]


def read_scoring(
    path: str | Path,
    start: datetime | None = None,
    duration: float | None = None,
    names_below: Path | None = None,
    own: OwnWords | None = None,
) -> Scoring:
    """Read a scoring file; its format is told by its content.

    Args:
        path: of a file on disk, or a URL.
        start: date and time of the recording's first sample. Formats with clock times need it, and an EDF+
            hypnogram that starts at another time is shifted by the difference.
        duration: of the recording in s, until when a last stage without an end lasts.
        names_below: the folder that messages name the file relative to; None for its whole path.
        own: words of the laboratory's own for columns, stages and events.

    Raises:
        StageTextError: it has texts where stages stand that are not understood; the recording can be used without it.
        AnnotationError: missing, of no known format, damaged, or without stages.
        RecordingError: an EDF+ file that is damaged.
    """
    path, own = location(path), own or OwnWords()
    called = name_below(path, names_below)
    # A whole URL keeps its two slashes.
    name: PurePath = path if called == str(path) else PurePath(called)
    try:
        data = read_start(path, MAX_BYTES + 1)
    except OSError as error:
        raise AnnotationError(f"{name}: cannot be read ({error.strerror or error})") from error
    if edf_kind(data[:FIXED_BYTES]):
        whole = MemoryFile(data) if len(data) <= MAX_BYTES else random_file(path)
        return _of_edf(open_recording(whole, path, names_below=names_below), start, own)
    if len(data) > MAX_BYTES:
        raise AnnotationError(f"{name}: more than {MAX_BYTES >> 20} MiB, too large for a scoring file")
    text = _decode(data)
    if text.lstrip().startswith("<"):
        root = parse_xml(data, str(name))
        if root.tag == "PSGAnnotation":
            return read_nsrr(own.in_xml(root), name, own.events)
        if root.tag == PROFUSION_ROOT:
            return read_profusion(root, name, own.events)
        raise AnnotationError(
            f"{name}: XML with the root {root.tag[:40]!r}; NSRR's is PSGAnnotation, Profusion's {PROFUSION_ROOT}"
        )
    told = own.missing_titles(text)
    text = own.in_text(text)
    for is_one, read in TEXT_FORMATS:
        if is_one(text):
            if not told or find_titles(text) is None:
                return read(text, name, start, duration, own.events)
            try:
                scoring = read(text, name, start, duration, own.events)
            except AnnotationError as error:
                raise type(error)(f"{error}; {told}") from error
            return replace(scoring, warnings=(*scoring.warnings, told))
    raise AnnotationError(
        f"{name}: not NSRR or Profusion XML, EDF+ annotations, Luna's annot, a list of stages, or a table with a title row "
        "that names onset and stage or event; convert it to one of these, or say in a cohort file what its columns mean "
        "(scoring: {columns: {TITLE: onset}})" + (f"; {told}" if told else "")
    )


def _of_edf(recording: Recording, start: datetime | None, own: OwnWords) -> Scoring:
    shift = (recording.start - start).total_seconds() if recording.start and start else 0.0
    texts = own.in_annotations(recording.annotations)
    scoring = from_annotations(texts, f"EDF+ annotations {recording.path.name}", shift, own.events)
    if scoring is None:
        raise AnnotationError(f"{recording.name}: none of its {len(recording.annotations)} annotations is a sleep stage")
    if abs(shift) > EPOCH_SECONDS:
        moved = f"{abs(shift) / 60:.1f} min {'after' if shift > 0 else 'before'} the recording"
        return scoring.with_misplaced(f"its file starts {moved}, and its times are moved by that; it may be of another night")
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
