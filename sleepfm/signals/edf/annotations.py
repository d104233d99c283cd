"""Time-stamped annotation lists (TAL) of EDF+ and BDF+ (EDF+ specification 2.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Onset, optional duration, texts; ends with 0x14 0x00. The last 0x14 is missing in some files.
_TAL = re.compile(rb"([+-]\d+(?:\.\d*)?)(?:\x15(\d*(?:\.\d*)?))?\x14([^\x00]*)")
# Seconds, three decades: a time stamp beyond is damaged.
_LATEST_ONSET = 1e9


@dataclass(frozen=True)
class Annotation:
    """A text at ``onset`` s from the first sample, for ``duration`` s (0 where none is given)."""

    onset: float
    duration: float
    text: str


@dataclass(frozen=True)
class RecordStamps:
    """What one data record's annotation signals say: its own ``onset`` (None if not stamped) and its texts."""

    onset: float | None
    annotations: tuple[Annotation, ...]
    malformed: int


def parse_record(blocks: list[bytes]) -> RecordStamps:
    """Read the annotation signals of one data record, in their order; onsets are from the file's start time.

    The first list of the first signal keeps time: its first text is empty and its onset is that of the record.
    """
    stamp: float | None = None
    found: list[Annotation] = []
    malformed = 0
    for position, block in enumerate(blocks):
        for index, raw in enumerate(part for part in block.split(b"\0") if part):
            match = _TAL.fullmatch(raw)
            if match is None:
                malformed += 1
                continue
            onset = float(match[1])
            duration = float(match[2]) if match[2] and match[2] != b"." else 0.0
            if abs(onset) > _LATEST_ONSET or duration > _LATEST_ONSET:
                malformed += 1
                continue
            texts = match[3].removesuffix(b"\x14").split(b"\x14")
            if position == 0 and index == 0 and not texts[0]:
                stamp = onset
                texts = texts[1:]
            found += [Annotation(onset, duration, _decode(text)) for text in texts if text]
    return RecordStamps(stamp, tuple(found), malformed)


def _decode(text: bytes) -> str:
    try:
        return text.decode("utf-8").strip()
    except UnicodeDecodeError:
        return text.decode("latin-1").strip()
