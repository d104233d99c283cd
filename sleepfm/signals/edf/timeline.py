"""When each data record was taken: continuous pieces, the gaps between them, and the annotations."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from sleepfm.errors import RecordingError
from sleepfm.signals.edf.annotations import Annotation, parse_record
from sleepfm.signals.edf.blocks import iter_blocks
from sleepfm.signals.edf.header import LONGEST_SECONDS, EdfHeader
from sleepfm.signals.files import RandomFile
from sleepfm.wording import counted

# In a file declared discontinuous a record that starts this late after the end of the one before it starts a new piece.
_JITTER_SECONDS = 0.01
# In any file, so does one that is this late, at once or because rounded time stamps or a wrong rate have added up.
_DRIFT_SECONDS = 1.0
# A few damaged time stamps must not make a small file claim a large array, nor a night's file that of a week.
_LARGEST_DILUTION = 100.0
_LONGEST_PAUSES = 86_400.0
# No night has more; a file that does is not held in memory.
_MOST_ANNOTATIONS = 250_000


@dataclass(frozen=True)
class Piece:
    """Records ``first`` to ``stop`` (exclusive) without a pause, the first at ``onset`` s."""

    first: int
    stop: int
    onset: float

    def place(self, rate: Fraction) -> int:
        """Index of the piece's first sample on the timeline of a signal of ``rate`` Hz."""
        return round(self.onset * float(rate))


@dataclass(frozen=True)
class Timeline:
    """Pieces of a recording; ``first`` is the offset of the first sample from the header's start time in s."""

    first: float
    duration: float
    pieces: tuple[Piece, ...]
    gaps: tuple[tuple[float, float], ...]
    annotations: tuple[Annotation, ...]
    warnings: tuple[str, ...]

    def n_samples(self, rate: Fraction, samples: int) -> int:
        """Length of a signal of ``rate`` Hz and ``samples`` a record, gaps included."""
        last = self.pieces[-1]
        return last.place(rate) + (last.stop - last.first) * samples


def continuous(header: EdfHeader) -> Timeline:
    """The timeline of a file without annotation signals: one piece."""
    return Timeline(0.0, header.n_records * float(header.record_seconds), (Piece(0, header.n_records, 0.0),), (), (), ())


def read_extent(file: RandomFile, header: EdfHeader) -> float:
    """Seconds from the first sample to the end of the last record, told from these two records' time stamps alone.

    An upper bound where :func:`read_timeline` would refuse the file; short of it by at most the second that jitter may add up to.
    For annotations alone, which have no signal to make room for, nothing is read.
    """
    recorded = header.n_records * float(header.record_seconds)
    stamped = next((signal for signal in header.signals if signal.is_annotation), None)
    if stamped is None or not recorded or not header.ordinary:
        return recorded
    length = stamped.samples * header.sample_bytes
    starts = [header.data_offset + record * header.record_bytes + stamped.offset for record in (0, header.n_records - 1)]
    first, last = (parse_record([file.read(start, length)]).onset for start in starts)
    if first is None or last is None:
        return recorded
    return min(max(recorded, last - first + float(header.record_seconds)), _most_seconds(recorded))


def read_timeline(file: RandomFile, header: EdfHeader, name: str) -> Timeline:
    """Read every annotation signal of an open file.

    Samples lie where their records' time stamps say, whatever the header declares, for annotations are timed by the same clock
    (EDF+ specification 2.2.4).

    Raises:
        RecordingError: pauses between records of which one is not stamped, overlapping records, or absurd time stamps; an
            EDF+D without time stamps; more annotations than a night can have.
    """
    seconds = float(header.record_seconds)
    whole = continuous(header)
    pieces, gaps, duration = whole.pieces, whole.gaps, whole.duration
    stamps, found, malformed = _read_stamps(file, header, name)
    warnings = [f"{malformed} malformed annotation lists are ignored"] if malformed else []
    stamped = np.flatnonzero(~np.isnan(stamps))
    late = stamps[stamped] - stamped * seconds
    first = float(late[0]) if len(late) else 0.0
    astray = float(np.abs(late - first).max()) if seconds and len(late) else 0.0
    if seconds and header.variant.endswith("+D"):
        pieces, gaps, duration = _split(stamps, seconds, _JITTER_SECONDS, name)
    elif astray > _DRIFT_SECONDS:
        pieces, gaps, duration = _split(stamps, seconds, _DRIFT_SECONDS, name)
        paused = sum(length for _, length in gaps)
        warnings.append(
            f"declared continuous, but its time stamps leave {counted(len(gaps), 'gap')} of {paused:g} s in all, which are kept"
        )
    elif astray > _JITTER_SECONDS:
        warnings.append(f"declared continuous, and taken so, though time stamps are up to {astray:g} s off")
    annotations = sorted(
        (Annotation(item.onset - first, item.duration, item.text) for item in found), key=lambda item: item.onset
    )
    return Timeline(first, duration, pieces, gaps, tuple(annotations), tuple(warnings))


def _read_stamps(file: RandomFile, header: EdfHeader, name: str) -> tuple[NDArray[np.float64], list[Annotation], int]:
    """Time stamp of each record [n_records] (NaN where it has none), all texts, malformed lists."""
    places = [
        (signal.offset, signal.offset + signal.samples * header.sample_bytes) for signal in header.signals if signal.is_annotation
    ]
    stamps = np.full(header.n_records, np.nan)
    found: list[Annotation] = []
    malformed = 0
    begin, end = min(place[0] for place in places), max(place[1] for place in places)
    record = 0
    for block in iter_blocks(file, header, name, begin, end, 0, header.n_records):
        for row in block:
            line = row.tobytes()
            parsed = parse_record([line[a - begin : b - begin] for a, b in places])
            if parsed.onset is not None:
                stamps[record] = parsed.onset
            found += parsed.annotations
            if len(found) > _MOST_ANNOTATIONS:
                raise RecordingError(
                    f"{name}: more than {_MOST_ANNOTATIONS} annotations; its annotation signals are damaged, or contain samples"
                )
            malformed += parsed.malformed
            record += 1
    return stamps, found, malformed


def _split(
    stamps: NDArray[np.float64], seconds: float, jitter: float, name: str
) -> tuple[tuple[Piece, ...], tuple[tuple[float, float], ...], float]:
    """Pieces, gaps and duration of a recording whose records may be ``jitter`` s late or early without a pause."""
    unstamped = np.flatnonzero(np.isnan(stamps))
    if len(unstamped):
        raise RecordingError(f"{name}: discontinuous, but record {unstamped[0] + 1} has no time stamp; export it again")
    pieces: list[Piece] = []
    gaps: list[tuple[float, float]] = []
    start, onset = 0, 0.0
    times = (stamps - stamps[0]).tolist()
    for i in range(1, len(times)):
        end = onset + (i - start) * seconds
        if times[i - 1] + seconds - times[i] > jitter or end - times[i] > _DRIFT_SECONDS:
            raise RecordingError(
                f"{name}: record {i + 1} starts at {stamps[i]:g} s, before record {i} ends at "
                f"{stamps[0] + max(times[i - 1] + seconds, end):g} s; its time stamps are damaged"
            )
        if times[i] - times[i - 1] - seconds > jitter or times[i] - end > _DRIFT_SECONDS:
            pieces.append(Piece(start, i, onset))
            # Jitter of many records can add up to more than a short pause: pieces never overlap.
            start, onset = i, max(end, times[i])
            if onset > end:
                gaps.append((end, onset - end))
    pieces.append(Piece(start, len(times), onset))
    end = onset + (len(times) - start) * seconds
    recorded = len(stamps) * seconds
    if end > _most_seconds(recorded):
        raise RecordingError(
            f"{name}: its time stamps span {end / 3600:.1f} h for {recorded:g} s of signal; "
            "they are damaged, or the file has to be split at its pauses"
        )
    return tuple(pieces), tuple(gaps), end


def _most_seconds(recorded: float) -> float:
    """How long a recording may last, pauses included, of which ``recorded`` s are signal."""
    return min(LONGEST_SECONDS, _LARGEST_DILUTION * recorded, recorded + _LONGEST_PAUSES)
