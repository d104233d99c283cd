"""Write EDF and BDF files by hand, sound ones and wrong ones; independent of the reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass
class Made:
    """A signal: header fields as they go into the file, and its digital samples [records * per_record]."""

    label: str | bytes
    digital: np.ndarray
    per_record: int
    unit: str | bytes = "uV"
    physical: tuple[str, str] = ("-100", "100")
    limits: tuple[str, str] = ("-32768", "32767")


def field(value: object, width: int) -> bytes:
    raw = value if isinstance(value, bytes) else str(value).encode("utf-8")
    return raw[:width].ljust(width)


def encode(digital: np.ndarray, width: int) -> bytes:
    assert not len(digital) or np.abs(digital).max() <= 1 << (8 * width - 1)
    return np.asarray(digital, "<i4").view(np.uint8).reshape(-1, 4)[:, :width].tobytes()


def tal(onset: str, duration: str = "", *texts: str) -> bytes:
    length = b"\x15" + duration.encode() if duration else b""
    return onset.encode() + length + b"\x14" + b"".join(t.encode() + b"\x14" for t in texts or ("",)) + b"\0"


def write_edf(
    path: Path,
    signals: Sequence[Made],
    *,
    seconds: str = "1",
    variant: str = "",
    stamps: Sequence[bytes] | None = None,
    claimed: object = None,
    tail: bytes = b"",
    start: tuple[str, str] = ("02.03.04", "22.30.00"),
    patient: str = "X X X X",
    recording: str = "",
    bdf: bool = False,
) -> Path:
    """Write a file; ``stamps`` is the content of the annotation signal of each record."""
    width = 3 if bdf else 2
    n_records = len(signals[0].digital) // signals[0].per_record if signals else len(stamps or ())
    annotated = 2 * ((max(map(len, stamps)) + 5) // 6 * 3) if stamps else 0
    rows = [(s.label, s.unit, *s.physical, *s.limits, s.per_record) for s in signals]
    if stamps:
        rows.append(("BDF Annotations" if bdf else "EDF Annotations", "", "-1", "1", "-32768", "32767", annotated // width))
    head = [b"\xffBIOSEMI" if bdf else field("0", 8), field(patient, 80), field(recording, 80), field(start[0], 8)]
    head += [field(start[1], 8), field(256 * (len(rows) + 1), 8), field(variant, 44)]
    head += [field(n_records if claimed is None else claimed, 8), field(seconds, 8), field(len(rows), 4)]
    head += [field(row[0], 16) for row in rows] + [field("", 80)] * len(rows)
    for column in range(1, 6):
        head += [field(row[column], 8) for row in rows]
    head += [field("", 80)] * len(rows) + [field(row[6], 8) for row in rows] + [field("", 32)] * len(rows)
    body = []
    for record in range(n_records):
        for s in signals:
            body.append(encode(s.digital[record * s.per_record : (record + 1) * s.per_record], width))
        if stamps:
            body.append(stamps[record].ljust(annotated, b"\0"))
    path.write_bytes(b"".join(head) + b"".join(body) + tail)
    return path


def write_another_night(source: Path, target: Path, number: int) -> None:
    """``source`` as another night: its first record and record ``number`` change places."""
    content = bytearray(source.read_bytes())
    begin, records = int(content[184:192]), int(content[236:244])
    size = (len(content) - begin) // records
    first, other = (slice(begin + size * at, begin + size * (at + 1)) for at in (0, number))
    content[first], content[other] = content[other], content[first]
    target.write_bytes(content)


def noise(n: int, seed: int = 0, scale: float = 3000.0) -> np.ndarray:
    """Digital samples of white noise [n]."""
    return np.clip(np.random.default_rng(seed).standard_normal(n) * scale, -32768, 32767).astype(int)
