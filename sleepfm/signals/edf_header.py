"""EDF and BDF headers: bounded, validated parsing.

EDF (Kemp et al. 1992), EDF+ (2003) and BDF (BioSemi): a header is text in fixed-width fields, 256 bytes for the
recording and 256 for each signal. It comes from an untrusted file, so nothing is allocated from a number that it claims
before that number has been held against the size of the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sleepfm.errors import RecordingError

ANNOTATION_LABELS = ("EDF Annotations", "BDF Annotations")
MAX_SIGNALS = 4096
_FIXED = 256
_WIDTHS = {
    "label": 16,
    "transducer": 80,
    "unit": 8,
    "physical_min": 8,
    "physical_max": 8,
    "digital_min": 8,
    "digital_max": 8,
    "prefilter": 80,
    "samples": 8,
    "reserved": 32,
}


@dataclass(frozen=True)
class SignalHeader:
    """One signal as the header states it; ``samples`` a data record, ``offset`` its first byte inside a record."""

    label: str
    transducer: str
    unit: str
    physical_min: float
    physical_max: float
    digital_min: int
    digital_max: int
    prefilter: str
    samples: int
    offset: int

    @property
    def is_annotation(self) -> bool:
        """Whether this is an EDF+ time-stamped annotation list rather than a signal."""
        return self.label in ANNOTATION_LABELS


@dataclass(frozen=True)
class Header:
    """A validated header. ``warnings`` lists the repairs that were made."""

    start: datetime | None
    discontinuous: bool
    sample_bytes: int
    header_bytes: int
    record_bytes: int
    n_records: int
    record_seconds: float
    signals: tuple[SignalHeader, ...]
    warnings: tuple[str, ...]


def parse_header(path: Path) -> Header:
    """Read and validate the header of ``path``.

    Raises:
        RecordingError: not an EDF or BDF file, a field that is no number, no or missing data records.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            fixed = stream.read(_FIXED)
            if len(fixed) < _FIXED:
                raise RecordingError(
                    f"{path}: {size} bytes are too few for an EDF header; the file is empty or cut off"
                )
            sample_bytes = _sample_bytes(path, fixed)
            n_signals = _integer(path, "number of signals", fixed[252:256])
            if not 1 <= n_signals <= MAX_SIGNALS:
                raise RecordingError(f"{path}: the header claims {n_signals} signals; 1 to {MAX_SIGNALS} are possible")
            header_bytes = _FIXED * (n_signals + 1)
            if size < header_bytes:
                raise RecordingError(
                    f"{path}: {n_signals} signals need {header_bytes} bytes of header, the file has {size}: cut off"
                )
            columns = _columns(stream.read(header_bytes - _FIXED), n_signals)
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read ({error.strerror})") from error

    warnings: list[str] = []
    signals = _signals(path, columns, sample_bytes)
    record_bytes = sample_bytes * sum(signal.samples for signal in signals)
    if record_bytes == 0:
        raise RecordingError(f"{path}: the header gives every signal 0 samples per data record")
    record_seconds = _number(path, "duration of a data record", fixed[244:252])
    if record_seconds < 0 or (record_seconds == 0 and not all(signal.is_annotation for signal in signals)):
        raise RecordingError(
            f"{path}: data records of {record_seconds:g} s give its signals no rate (only annotations may have 0 s)"
        )
    return Header(
        start=_start(fixed, warnings),
        discontinuous=fixed[192:197] in (b"EDF+D", b"BDF+D"),
        sample_bytes=sample_bytes,
        header_bytes=header_bytes,
        record_bytes=record_bytes,
        n_records=_record_count(path, fixed, size - header_bytes, record_bytes, warnings),
        record_seconds=record_seconds,
        signals=signals,
        warnings=tuple(warnings),
    )


def _sample_bytes(path: Path, fixed: bytes) -> int:
    if fixed[:8] == b"\xffBIOSEMI":
        return 3
    if fixed[:8].strip() == b"0":
        return 2
    raise RecordingError(f"{path}: neither EDF nor BDF (the first 8 bytes are {fixed[:8]!r})")


def _columns(block: bytes, n_signals: int) -> dict[str, list[bytes]]:
    columns, position = {}, 0
    for name, width in _WIDTHS.items():
        columns[name] = [block[position + i * width : position + (i + 1) * width] for i in range(n_signals)]
        position += n_signals * width
    return columns


def _signals(path: Path, columns: dict[str, list[bytes]], sample_bytes: int) -> tuple[SignalHeader, ...]:
    signals, offset = [], 0
    for i, raw_label in enumerate(columns["label"]):
        label = _text(raw_label)
        where = f"signal {i + 1} ({label!r}): "
        samples = _integer(path, where + "samples per data record", columns["samples"][i])
        if samples < 0:
            raise RecordingError(f"{path}: {where}{samples} samples per data record")
        signals.append(
            SignalHeader(
                label=label,
                transducer=_text(columns["transducer"][i]),
                unit=_text(columns["unit"][i]),
                physical_min=_number(path, where + "physical minimum", columns["physical_min"][i]),
                physical_max=_number(path, where + "physical maximum", columns["physical_max"][i]),
                digital_min=_integer(path, where + "digital minimum", columns["digital_min"][i]),
                digital_max=_integer(path, where + "digital maximum", columns["digital_max"][i]),
                prefilter=_text(columns["prefilter"][i]),
                samples=samples,
                offset=offset,
            )
        )
        offset += samples * sample_bytes
    return tuple(signals)


def _record_count(path: Path, fixed: bytes, data_bytes: int, record_bytes: int, warnings: list[str]) -> int:
    claimed = _integer(path, "number of data records", fixed[236:244])
    held, trailing = divmod(data_bytes, record_bytes)
    if held == 0:
        raise RecordingError(f"{path}: holds no whole data record; there is nothing to read")
    if claimed > held:
        raise RecordingError(
            f"{path}: the header promises {claimed} data records, the file holds {held}; it is cut off, fetch it again"
        )
    if claimed <= 0:
        warnings.append(f"number of data records is {claimed} in the header; {held} counted from the file's size")
        return held
    surplus = (held - claimed) * record_bytes + trailing
    if surplus:
        warnings.append(f"{surplus} bytes after the last of {claimed} data records left unread")
    return claimed


def _start(fixed: bytes, warnings: list[str]) -> datetime | None:
    text = f"{_text(fixed[168:176])} {_text(fixed[176:184])}"
    try:
        start = datetime.strptime(text, "%d.%m.%y %H.%M.%S")
    except ValueError:
        warnings.append(f"start {text!r} is no date and time; the start is unknown")
        return None
    # EDF: years 85 to 99 are 1985 to 1999, 00 to 84 are 2000 to 2084.
    century = 1900 if start.year % 100 >= 85 else 2000
    return start.replace(year=century + start.year % 100)


def _text(raw: bytes) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return text.strip(" \0")


def _number(path: Path, what: str, raw: bytes) -> float:
    text = _text(raw).replace(",", ".")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RecordingError(f"{path}: {what} should be a number, found {text!r}; the header is damaged")
    return value


def _integer(path: Path, what: str, raw: bytes) -> int:
    value = _number(path, what, raw)
    if value != int(value):
        raise RecordingError(f"{path}: {what} should be a whole number, found {_text(raw)!r}; the header is damaged")
    return int(value)
