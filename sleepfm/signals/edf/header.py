"""EDF and BDF headers: parsed from untrusted bytes, checked against the size of the file.

European Data Format (Kemp et al. 1992, Electroenceph Clin Neurophysiol 82:391), EDF+ (Kemp and Olivan 2003,
Clin Neurophysiol 114:1755), and BioSemi's 24-bit BDF(+), which differs in its first eight bytes and its sample
width only. Nothing is allocated from a number that the header claims before the file's size has confirmed it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction

from sleepfm.errors import RecordingError
from sleepfm.signals.files import RandomFile

FIXED_BYTES = 256
SIGNAL_BYTES = 256
ANNOTATION_LABELS = ("EDF Annotations", "BDF Annotations")
# Widths of the per-signal fields in their order in the file (EDF specification, header record).
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
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
_INTEGER = re.compile(r"[+-]?\d+(\.0*)?")
# No recording is longer; a header that claims more is damaged.
LONGEST_SECONDS = 7 * 86_400.0
_SHORTEST_RECORD = 1e-6


@dataclass(frozen=True)
class SignalHeader:
    """One signal as the header describes it; ``offset`` is its first byte in a data record."""

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
        return self.label in ANNOTATION_LABELS


@dataclass(frozen=True)
class EdfHeader:
    """A header that fits its file.

    Attributes:
        variant: ``EDF``, ``EDF+C``, ``EDF+D``, ``BDF``, ``BDF+C`` or ``BDF+D``.
        sample_bytes: 2 in EDF, 3 in BDF.
        patient: the patient field, only to tell whether two files describe one night.
        start: date and time of the first record, without what the first time stamp adds; None if invalid.
        record_seconds: exact duration of a data record; 0 only where it holds annotations alone.
        n_records: whole data records that the file really holds (as claimed, where the two agree).
        file_bytes: size of the file whose header this is.
        file_version: its version (:class:`sleepfm.signals.files.FileState`).
        warnings: what was repaired.
    """

    variant: str
    sample_bytes: int
    patient: str
    start: datetime | None
    record_seconds: Fraction
    n_records: int
    record_bytes: int
    data_offset: int
    file_bytes: int
    signals: tuple[SignalHeader, ...]
    warnings: tuple[str, ...]
    file_version: str = ""

    @property
    def ordinary(self) -> tuple[SignalHeader, ...]:
        """The signals that are not annotations."""
        return tuple(signal for signal in self.signals if not signal.is_annotation)

    @property
    def has_annotations(self) -> bool:
        """Whether there are annotation signals, which may hold time stamps too."""
        return any(signal.is_annotation for signal in self.signals)


def read_header(file: RandomFile, name: str) -> EdfHeader:
    """Parse the header of ``file``, an EDF or BDF called ``name`` in messages.

    Raises:
        RecordingError: not EDF or BDF, damaged beyond repair, or cut off before the end of its first data record.
    """
    size = file.size
    fixed = file.read(0, FIXED_BYTES, keep=False)
    if len(fixed) < FIXED_BYTES:
        raise RecordingError(f"{name}: not an EDF or BDF file: {size} bytes, shorter than the {FIXED_BYTES} of an EDF header")
    kind, version = edf_kind(fixed), fixed[:8].decode("latin-1")
    if kind is None:
        raise RecordingError(f"{name}: neither EDF nor BDF (starts with {version!r}); convert it to EDF first")
    sample_bytes = {"EDF": 2, "BDF": 3}[kind]
    warnings: list[str] = []
    if kind == "EDF" and not _is_edf_version(fixed):
        warnings.append(f"the version field is {version!r} instead of '0'; the rest of the header is that of an EDF")
    reserved = decode_text(fixed[192:236])
    variant = reserved[:5] if reserved[:5] in (f"{kind}+C", f"{kind}+D") else kind
    n_signals = _integer(fixed[252:256], name, "number of signals")
    data_offset = FIXED_BYTES + n_signals * SIGNAL_BYTES
    if n_signals < 1 or data_offset > size:
        raise RecordingError(
            f"{name}: states {n_signals} signals, whose header takes {data_offset} bytes, but the file has {size} bytes: it "
            "is damaged or truncated"
        )
    claimed_offset = decode_text(fixed[184:192])
    if claimed_offset != str(data_offset):
        warnings.append(f"header length is given as {claimed_offset!r}; {n_signals} signals make it {data_offset}")
    record_seconds = _duration(fixed[244:252], name)
    signals = _signals(file.read(FIXED_BYTES, n_signals * SIGNAL_BYTES, keep=False), n_signals, sample_bytes, name)
    record_bytes = sum(signal.samples for signal in signals) * sample_bytes
    if record_bytes == 0:
        raise RecordingError(f"{name}: its {n_signals} signals have no samples; export it again")
    n_records = _count_records(fixed[236:244], size - data_offset, record_bytes, name, warnings)
    if n_records * record_seconds > LONGEST_SECONDS:
        raise RecordingError(
            f"{name}: {n_records} records of {float(record_seconds):g} s are {LONGEST_SECONDS / 86_400:.0f} days "
            "or more; the header is damaged"
        )
    return EdfHeader(
        variant=variant,
        sample_bytes=sample_bytes,
        patient=decode_text(fixed[8:88]),
        start=_start(fixed, variant, warnings),
        record_seconds=record_seconds,
        n_records=n_records,
        record_bytes=record_bytes,
        data_offset=data_offset,
        file_bytes=size,
        signals=signals,
        warnings=tuple(warnings),
        file_version=file.state().version,
    )


def edf_kind(start: bytes) -> str | None:
    """``EDF`` or ``BDF`` by the first :data:`FIXED_BYTES` of a file; None for anything else.

    A version field with a stray byte beside its 0 is that of an EDF where the header's length agrees with its number of signals.
    """
    if start[:8] == b"\xffBIOSEMI":
        return "BDF"
    if _is_edf_version(start):
        return "EDF"
    length, signals = decode_text(start[184:192]), decode_text(start[252:256])
    counted = signals.isdecimal() and length == str(FIXED_BYTES + SIGNAL_BYTES * int(signals))
    return "EDF" if b"0" in start[:8] and counted and not start[192:].startswith((b"24BIT", b"BDF")) else None


def _is_edf_version(start: bytes) -> bool:
    return start[:8].rstrip(b" \0") == b"0"


def decode_text(field: bytes) -> str:
    """A header field as text: ASCII by the specification, UTF-8 or Latin-1 in the wild.

    A field cut inside a UTF-8 character (labels end after 16 bytes) loses that character only.
    """
    field = field.rstrip(b" \0")
    try:
        text = field.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.end >= len(field) and error.reason == "unexpected end of data" and error.start > 0:
            text = field[: error.start].decode("utf-8")
        else:
            text = field.decode("latin-1")
    return "".join(character if character.isprintable() else " " for character in text).strip()


def _signals(block: bytes, n_signals: int, sample_bytes: int, name: str) -> tuple[SignalHeader, ...]:
    columns: dict[str, list[bytes]] = {}
    position = 0
    for field, width in _WIDTHS.items():
        columns[field] = [block[position + i * width : position + (i + 1) * width] for i in range(n_signals)]
        position += n_signals * width
    signals = []
    offset = 0
    for i in range(n_signals):
        label = decode_text(columns["label"][i])
        where = f"of signal {i + 1} ({label!r})"
        samples = _integer(columns["samples"][i], name, f"samples per record {where}")
        if samples < 0:
            raise RecordingError(f"{name}: samples per record {where} is {samples}; the header is damaged")
        signals.append(
            SignalHeader(
                label=label,
                transducer=decode_text(columns["transducer"][i]),
                unit=decode_text(columns["unit"][i]),
                physical_min=_number(columns["physical_min"][i], name, f"physical minimum {where}"),
                physical_max=_number(columns["physical_max"][i], name, f"physical maximum {where}"),
                digital_min=_integer(columns["digital_min"][i], name, f"digital minimum {where}"),
                digital_max=_integer(columns["digital_max"][i], name, f"digital maximum {where}"),
                prefilter=decode_text(columns["prefilter"][i]),
                samples=samples,
                offset=offset,
            )
        )
        offset += samples * sample_bytes
    return tuple(signals)


def _count_records(field: bytes, data_bytes: int, record_bytes: int, name: str, warnings: list[str]) -> int:
    """Whole data records that are there and belong to the recording.

    A count of 0, -1 or nonsense is that of a recorder that never came to write it: the file's size tells. A file that ends early,
    also inside a record, is read as far as it has whole records. Bytes beyond the count are records only if they are whole ones;
    else something was appended, and the count stands.
    """
    whole, rest = divmod(data_bytes, record_bytes)
    text = decode_text(field)
    claimed = int(float(text)) if _INTEGER.fullmatch(text) else -1
    if whole == 0:
        held = f"{rest} bytes of its first data record" if rest else "no data records"
        raise RecordingError(f"{name}: has a header and {held}; download or export it again")
    cut = f" and {rest} bytes of the next" if rest else ""
    if claimed <= 0:
        warnings.append(f"number of records is given as {text!r}; the file holds {whole}{cut}")
        return whole
    if whole < claimed:
        warnings.append(
            f"header claims {claimed} records; the file holds {whole}{cut}: the last {claimed - whole} "
            f"({(claimed - whole) / claimed:.1%}) are missing, so fetch it again if its source is longer"
        )
        return whole
    if whole > claimed and not rest:
        warnings.append(f"header claims {claimed} records; the file holds {whole}")
        return whole
    trailing = data_bytes - claimed * record_bytes
    if trailing:
        beyond = f" ({whole - claimed} records and {rest} bytes)" if whole > claimed else ""
        warnings.append(f"{trailing} bytes{beyond} after the last record are ignored")
    return claimed


def _duration(field: bytes, name: str) -> Fraction:
    value = _number(field, name, "duration of a data record")
    if value != 0 and not _SHORTEST_RECORD <= value <= LONGEST_SECONDS:
        raise RecordingError(f"{name}: duration of a data record is {value:g} s; the header is damaged")
    return Fraction(decode_text(field).replace(",", ".")) if value else Fraction(0)


def _start(fixed: bytes, variant: str, warnings: list[str]) -> datetime | None:
    date, time = decode_text(fixed[168:176]), decode_text(fixed[176:184])
    try:
        day, month, year = (int(part) for part in re.split(r"[.\-:/]", date))
        hour, minute, second = (int(part) for part in re.split(r"[.\-:/]", time))
        # Two digits of the year: 85-99 are 1985-1999, 00-84 are 2000-2084 (EDF+ specification 2.1.3.2).
        century = 1900 if year >= 85 else 2000
        start = datetime(century + year, month, day, hour, minute, second)
    except ValueError:
        warnings.append(f"start date and time {date!r} {time!r} is not a date; the clock time is unknown")
        return None
    # EDF+ repeats the start date with all four digits of the year in the recording field.
    long_date = re.match(r"Startdate \d{1,2}-[A-Z]{3}-((?:19|20)\d\d) ", decode_text(fixed[88:168]) + " ")
    if "+" in variant and long_date and int(long_date[1]) % 100 == year:
        return start.replace(year=int(long_date[1]))
    return start


def _number(field: bytes, name: str, what: str) -> float:
    text = decode_text(field)
    value = float(text.replace(",", ".")) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise RecordingError(f"{name}: {what} is {text!r}, not a number; the header is damaged, export it again")
    return value


def _integer(field: bytes, name: str, what: str) -> int:
    text = decode_text(field)
    if not _INTEGER.fullmatch(text):
        raise RecordingError(f"{name}: {what} is {text!r}, not a whole number; the header is damaged, export it again")
    return int(text.split(".")[0])
