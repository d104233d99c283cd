"""Recordings: EDF, EDF+C, EDF+D, BDF and BDF+, one signal decoded at a time at its own rate.

Samples are read in blocks of records, so that neither a signal that nobody asked for nor the whole file is ever
held in memory. In EDF+D the pause between two records is a gap of NaN, as long as its time stamps say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sleepfm.errors import RecordingError
from sleepfm.signals.edf.annotations import Annotation
from sleepfm.signals.edf.blocks import iter_blocks
from sleepfm.signals.edf.header import EdfHeader, SignalHeader, read_header
from sleepfm.signals.edf.sample_digests import SampleDigests
from sleepfm.signals.edf.timeline import Timeline, continuous, read_extent, read_timeline
from sleepfm.signals.files import MemoryFile, RandomFile, is_path, is_remote, location, name_below, random_file

# Beyond this a header is damaged, and samples would not fit their type.
_LARGEST_VALUE = 1e15
# A file on disk of at most so many bytes, such as a night of SHHS, is read once and not once a channel, where samples are wanted.
# It fits into what a task of a build has in hand (shards/memory.py).
_WHOLE_BYTES = 48 * 2**20


@dataclass(frozen=True)
class SignalInfo:
    """A signal of a recording. ``rate`` is in Hz and 0 where the file gives its records no duration."""

    label: str
    unit: str
    rate: float
    n_samples: int
    physical_min: float
    physical_max: float
    digital_min: int
    digital_max: int
    prefilter: str = ""
    transducer: str = ""

    @property
    def inverted(self) -> bool:
        """Whether the header turns the signal upside down (physical minimum above maximum)."""
        return (self.physical_max - self.physical_min) * (self.digital_max - self.digital_min) < 0

    @property
    def step(self) -> float:
        """One step of the converter in ``unit``; 0 where the digital range is wider than any converter's (24 bits)."""
        levels = abs(self.digital_max - self.digital_min)
        return abs(self.physical_max - self.physical_min) / levels if levels < 1 << 24 else 0.0

    @property
    def problem(self) -> str:
        """Why the samples have no meaning, or an empty text."""
        if self.rate <= 0 or self.n_samples == 0:
            return "has no sampling rate (data records of duration 0)"
        if self.digital_min == self.digital_max:
            return f"has the digital range {self.digital_min} to {self.digital_max}, which scales nothing"
        if self.physical_min == self.physical_max:
            return f"has the physical range {self.physical_min:g} to {self.physical_max:g}, which is empty"
        if max(abs(self.physical_min), abs(self.physical_max)) > _LARGEST_VALUE:
            return f"has the physical range {self.physical_min:g} to {self.physical_max:g}, which nothing measures"
        return ""


@dataclass(frozen=True)
class Recording:
    """A recording on disk; samples are read on request.

    Attributes:
        start: date and time of the first sample; None if the header has no valid one.
        duration: seconds from the first sample to the end of the last record, gaps included.
        signals: ordinary signals in file order, annotation signals left out.
        gaps: (onset, duration) in s of every pause of an EDF+D.
        annotations: texts of EDF+ and BDF+, onset from the first sample.
        warnings: repairs of the header.
        canonical_names: signals named as a canonical channel ("EEG_C4") were named so by who made the recording.
        header: of its file; None for what is no EDF.
        names_below: the folder that messages and provenance name files relative to; None for whole paths.
        sample_digests: of the signals that were read, by which they are known again in another file
            (:mod:`sleepfm.signals.edf.sample_digests`); none for what is no EDF.
    """

    path: Path
    format: str
    patient: str
    start: datetime | None
    duration: float
    signals: tuple[SignalInfo, ...]
    gaps: tuple[tuple[float, float], ...]
    annotations: tuple[Annotation, ...]
    warnings: tuple[str, ...]
    source: Callable[[int], NDArray[np.float32]] = field(repr=False, compare=False)
    canonical_names: bool = False
    header: EdfHeader | None = field(default=None, repr=False, compare=False)
    names_below: Path | None = field(default=None, repr=False, compare=False)
    sample_digests: dict[int, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """What messages call it."""
        return name_below(self.path, self.names_below)

    def read(self, signal: int) -> NDArray[np.float32]:
        """Samples [T] of ``signals[signal]`` in its physical unit at its own rate; gaps are NaN.

        Raises:
            RecordingError: no such signal, one without a scale, or a file that changed since it was opened.
        """
        if not 0 <= signal < len(self.signals):
            raise RecordingError(f"{self.name}: has no signal {signal}; it has {len(self.signals)}")
        info = self.signals[signal]
        if info.problem:
            raise RecordingError(f"{self.name}: signal {info.label!r} {info.problem}")
        return self.source(signal)


def read_recording(path: str | Path, header: EdfHeader | None = None, names_below: Path | None = None) -> Recording:
    """Open an EDF or BDF recording: header, time stamps and annotations; no samples yet.

    Example:
        >>> recording = read_recording("night.edf")
        >>> [(signal.label, signal.rate) for signal in recording.signals]
        [('EEG C3-A2', 100.0), ('EEG C4-A1', 100.0)]
        >>> recording.read(0).shape
        (3000,)

    Args:
        path: of a file on disk, or a URL that fsspec knows (``s3://bucket/night.edf``).
        header: its header, where that was read before; it is not read again unless the file has changed since.
        names_below: the folder that messages and provenance name files relative to; None for whole paths.

    Raises:
        RecordingError: the file is missing, is not EDF or BDF, is damaged or truncated.
        ConfigError: a URL whose protocol is unknown or needs a package that is not installed.
    """
    if not is_path(path):
        raise RecordingError(f"path: expected the path or URL of an EDF or BDF file, found a {type(path).__name__}")
    path = location(path)
    return open_recording(random_file(path), path, header, names_below)


@contextmanager
def opened_recording(path: str | Path, header: EdfHeader | None = None, names_below: Path | None = None) -> Iterator[Recording]:
    """:func:`read_recording` for who reads samples as well: in this block the file stays open, and is opened this once.

    Arguments and errors as there.
    """
    path = location(path)
    file = random_file(path)
    with ExitStack() as stack:
        with _reading(name_below(path, names_below)):
            stack.enter_context(file)
            if not is_remote(path) and file.size <= _WHOLE_BYTES:
                file = MemoryFile(file.read(0, file.size), file.state())
        yield open_recording(file, path, header, names_below)


def open_recording(file: RandomFile, path: Path, header: EdfHeader | None = None, names_below: Path | None = None) -> Recording:
    """:func:`read_recording` of a file at ``path`` that somebody has, and that is read in ranges."""
    name = name_below(path, names_below)
    if header is not None:
        with _reading(name):
            header = header if file.state() == (header.file_bytes, header.file_version) else None
    if header is None or header.has_annotations:
        with _reading(name), file:
            header = header or read_header(file, name)
            timeline = read_timeline(file, header, name) if header.has_annotations else continuous(header)
    else:
        timeline = continuous(header)
    digests: dict[int, tuple[str, ...]] = {}
    return Recording(
        path=path,
        format=header.variant,
        patient=header.patient,
        start=header.start + timedelta(seconds=timeline.first) if header.start else None,
        duration=timeline.duration,
        signals=tuple(_info(header, timeline, signal) for signal in header.ordinary),
        gaps=timeline.gaps,
        annotations=timeline.annotations,
        warnings=header.warnings + timeline.warnings,
        source=partial(_read_samples, file, name, header, timeline, digests),
        header=header,
        names_below=names_below,
        sample_digests=digests,
    )


def read_edf_header(path: Path, name: str = "") -> EdfHeader:
    """The header alone; messages call the file ``name``, by default by its path. Raises as :func:`read_recording`."""
    with _reading(name or str(path)), random_file(path, spool=False) as file:
        return read_header(file, name or str(path))


def read_edf_extent(path: Path, header: EdfHeader | None = None) -> tuple[EdfHeader, float]:
    """The header, unless it was read before, and the seconds that the recording lasts with its pauses.

    Raises as :func:`read_recording`.
    """
    if header is not None and not header.has_annotations:
        return header, continuous(header).duration
    with _reading(str(path)), random_file(path, spool=False) as file:
        header = header or read_header(file, str(path))
        return header, read_extent(file, header)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordingError(f"{name}: cannot be read ({error.strerror or error})") from error


def _rate(header: EdfHeader, signal: SignalHeader) -> Fraction:
    return signal.samples / header.record_seconds if header.record_seconds else Fraction(0)


def _info(header: EdfHeader, timeline: Timeline, signal: SignalHeader) -> SignalInfo:
    rate = _rate(header, signal)
    return SignalInfo(
        label=signal.label,
        unit=signal.unit,
        rate=float(rate),
        n_samples=timeline.n_samples(rate, signal.samples),
        physical_min=signal.physical_min,
        physical_max=signal.physical_max,
        digital_min=signal.digital_min,
        digital_max=signal.digital_max,
        prefilter=signal.prefilter,
        transducer=signal.transducer,
    )


def _read_samples(
    file: RandomFile, name: str, header: EdfHeader, timeline: Timeline, digests: dict[int, tuple[str, ...]], index: int
) -> NDArray[np.float32]:
    signal = header.ordinary[index]
    rate = _rate(header, signal)
    gain = (signal.physical_max - signal.physical_min) / (signal.digital_max - signal.digital_min)
    offset = signal.physical_min - gain * signal.digital_min
    samples = np.empty(timeline.n_samples(rate, signal.samples), dtype=np.float32)
    filled = 0
    end = signal.offset + signal.samples * header.sample_bytes
    digest = SampleDigests(header.sample_bytes) if index not in digests else None
    with _reading(name), file:
        for piece in timeline.pieces:
            place = piece.place(rate)
            samples[filled:place] = np.nan
            for scattered in iter_blocks(file, header, name, signal.offset, end, piece.first, piece.stop):
                block = np.ascontiguousarray(scattered)
                if digest is not None:
                    digest.add(block)
                digital = _decode(block, header.sample_bytes)
                digital *= gain
                digital += offset
                samples[place : place + digital.size] = digital
                place += digital.size
            filled = place
    samples[filled:] = np.nan
    if digest is not None:
        digests[index] = digest.kept
    return samples


def _decode(block: NDArray[np.uint8], sample_bytes: int) -> NDArray[np.float64]:
    """Little-endian two's complement integers of two or three bytes, contiguous [records, bytes] to [T]."""
    if sample_bytes == 2:
        return block.view("<i2").ravel().astype(np.float64)
    triplets = block.reshape(-1, 3)
    digital = triplets[..., 0].astype(np.int32)
    digital |= triplets[..., 1].astype(np.int32) << 8
    digital |= triplets[..., 2].view(np.int8).astype(np.int32) << 16
    return digital.astype(np.float64)
