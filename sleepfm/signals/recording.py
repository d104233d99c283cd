"""A recording: signals at their own rates, annotations and gaps, read from EDF, EDF+, BDF or BDF+.

Only the signal that is asked for is decoded; the file stays mapped, not loaded. The gaps of a discontinuous recording
(EDF+D) stay gaps: NaN in the signal, so that nothing after them moves in time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sleepfm.errors import RecordingError
from sleepfm.signals.edf_header import Header, SignalHeader, parse_header

# Longer than any polysomnography; bounds what a hostile time stamp can make us allocate.
MAX_SECONDS = 7 * 86_400
# EDF+ 2.2.2: onset, optional duration after 0x15, texts between 0x14, closed by 0x14 0x00.
_TAL = re.compile(rb"([+-]\d+(?:\.\d*)?)(?:\x15(\d+(?:\.\d*)?))?\x14((?:[^\x00\x14]*\x14)*)\x00")


@dataclass(frozen=True)
class SignalInfo:
    """One signal: ``rate`` in Hz, ``unit`` and ``label`` as the file spells them, physical limits in that unit."""

    label: str
    unit: str
    rate: float
    n_samples: int
    physical_min: float
    physical_max: float
    digital_min: int
    digital_max: int
    prefilter: str
    transducer: str


@dataclass(frozen=True)
class Annotation:
    """An EDF+ annotation: ``onset`` and ``duration`` in seconds from the first sample."""

    onset: float
    duration: float
    text: str


@dataclass(frozen=True)
class Recording:
    """An opened recording.

    ``duration`` is in seconds from the first to the last sample, gaps included; ``gaps`` are (onset, duration) in
    seconds; ``signals`` leaves out annotation signals; ``warnings`` lists header faults that were repaired.
    """

    path: Path
    start: datetime | None
    duration: float
    signals: tuple[SignalInfo, ...]
    gaps: tuple[tuple[float, float], ...]
    annotations: tuple[Annotation, ...]
    warnings: tuple[str, ...]
    _header: Header
    _onsets: NDArray[np.float64] | None

    def read(self, signal: int) -> NDArray[np.float32]:
        """Signal number ``signal`` in its physical unit at its own rate, ``[n_samples]``, NaN inside gaps.

        Raises:
            RecordingError: the header gives this signal no usable calibration.
        """
        header = _ordinary(self._header)[signal]
        digital = _digital(self.path, self._header, header)  # [records, samples]
        span = header.digital_max - header.digital_min
        gain = (header.physical_max - header.physical_min) / span if span else 0.0
        if gain == 0.0:
            raise RecordingError(
                f"{self.path}: signal {header.label!r} has no calibration (physical {header.physical_min:g} to "
                f"{header.physical_max:g}, digital {header.digital_min} to {header.digital_max})"
            )
        physical = digital.astype(np.float32)
        physical *= np.float32(gain)
        physical += np.float32(header.physical_min - gain * header.digital_min)
        if self._onsets is None:
            return physical.reshape(-1)
        return _place(physical, self._onsets, self.signals[signal].rate, self.signals[signal].n_samples)


def read_recording(path: str | Path) -> Recording:
    """Open an EDF, EDF+C, EDF+D, BDF or BDF+ file.

    Raises:
        RecordingError: the file is not one of these, is cut off, or its header or time stamps make no sense.
    """
    path = Path(path)
    header = parse_header(path)
    onsets, annotations = _annotations(path, header)
    length = header.record_seconds
    placed = onsets if header.discontinuous and length > 0 else None
    gaps: tuple[tuple[float, float], ...] = ()
    duration = header.n_records * length
    if placed is not None:
        gaps = _gaps(path, placed, length)
        duration = float(placed[-1]) + length
    signals = tuple(_info(signal, header, duration) for signal in _ordinary(header))
    return Recording(path, header.start, duration, signals, gaps, annotations, header.warnings, header, placed)


def _ordinary(header: Header) -> list[SignalHeader]:
    return [signal for signal in header.signals if not signal.is_annotation and signal.samples > 0]


def _info(signal: SignalHeader, header: Header, duration: float) -> SignalInfo:
    rate = signal.samples / header.record_seconds
    return SignalInfo(
        label=signal.label,
        unit=signal.unit,
        rate=rate,
        n_samples=round(duration * rate),
        physical_min=signal.physical_min,
        physical_max=signal.physical_max,
        digital_min=signal.digital_min,
        digital_max=signal.digital_max,
        prefilter=signal.prefilter,
        transducer=signal.transducer,
    )


def _bytes_of(path: Path, header: Header, signal: SignalHeader) -> NDArray[np.uint8]:
    """The signal's bytes ``[records, samples x bytes]``, copied out of the mapped file."""
    try:
        mapped = np.memmap(
            path, np.uint8, "r", offset=header.header_bytes, shape=(header.n_records, header.record_bytes)
        )
    except (OSError, ValueError) as error:
        raise RecordingError(f"{path}: cannot be read ({error}); it changed since it was opened") from error
    return np.array(mapped[:, signal.offset : signal.offset + signal.samples * header.sample_bytes])


def _digital(path: Path, header: Header, signal: SignalHeader) -> NDArray[np.integer]:
    raw = _bytes_of(path, header, signal)
    if header.sample_bytes == 2:
        return raw.view("<i2")
    parts = raw.reshape(header.n_records, signal.samples, 3)
    # The third byte carries the sign of BDF's 24-bit little-endian integers.
    high = parts[..., 2].view(np.int8).astype(np.int32) << 16
    return high | (parts[..., 1].astype(np.int32) << 8) | parts[..., 0]


def _place(
    records: NDArray[np.float32], onsets: NDArray[np.float64], rate: float, n_samples: int
) -> NDArray[np.float32]:
    signal = np.full(n_samples, np.nan, np.float32)
    for onset, record in zip(onsets, records, strict=True):
        first = round(onset * rate)
        piece = record[: n_samples - first]
        signal[first : first + len(piece)] = piece
    return signal


def _annotations(path: Path, header: Header) -> tuple[NDArray[np.float64], tuple[Annotation, ...]]:
    """Onset of every record relative to the first, and all annotations with a text, in order of onset."""
    onsets: NDArray[np.float64] = np.arange(header.n_records) * header.record_seconds
    found: list[Annotation] = []
    carriers = [signal for signal in header.signals if signal.is_annotation]
    for number, carrier in enumerate(carriers):
        for index, row in enumerate(_bytes_of(path, header, carrier)):
            for place, (onset, duration, texts) in enumerate(_tals(row.tobytes())):
                if number == 0 and place == 0 and texts[:1] == [""]:
                    onsets[index] = onset  # EDF+ 2.2.4: the first list of a record keeps its time
                found += [Annotation(onset, duration, text) for text in texts if text]
    if header.discontinuous and not carriers:
        raise RecordingError(
            f"{path}: marked discontinuous (EDF+D) but without annotations that give the records' times"
        )
    first = float(onsets[0]) if carriers else 0.0
    shifted = [Annotation(a.onset - first, a.duration, a.text) for a in found]
    return onsets - first, tuple(sorted(shifted, key=lambda a: a.onset))


def _tals(block: bytes) -> Iterator[tuple[float, float, list[str]]]:
    for match in _TAL.finditer(block):
        texts = [text.decode("utf-8", "replace").strip() for text in match[3].split(b"\x14")[:-1]]
        yield float(match[1]), float(match[2] or 0), texts or [""]


def _gaps(path: Path, onsets: NDArray[np.float64], length: float) -> tuple[tuple[float, float], ...]:
    missing = np.diff(onsets) - length
    tolerance = 1e-3 * length + 1e-6
    if (missing < -tolerance).any():
        index = int(np.argmin(missing))
        raise RecordingError(
            f"{path}: data record {index + 2} starts at {onsets[index + 1]:g} s, before the one ahead of it ends "
            f"({onsets[index] + length:g} s); its time stamps are damaged"
        )
    if onsets[-1] > MAX_SECONDS:
        raise RecordingError(f"{path}: time stamps span {onsets[-1]:g} s, more than {MAX_SECONDS // 86_400} days")
    return tuple((float(onsets[i] + length), float(missing[i])) for i in np.flatnonzero(missing > tolerance))
