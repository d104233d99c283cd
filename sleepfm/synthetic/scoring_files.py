"""Write a night's scoring in the format of its cohort.

Sources: NSRR's XML (:mod:`sleepfm.synthetic.nsrr_xml`); EDF+ specification and PhysioNet's sleep-edfx (texts of
stages); Luna's documentation of ``.annot`` (zzz.bwh.harvard.edu/luna/ref/annotations) for APPLES; NSRR's pages of WSC
(``.stg.txt``), NCHSDB (``.tsv``) and STAGES (``.csv``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.synthetic.night import NO_ROW, Night
from sleepfm.synthetic.nsrr_xml import nsrr_xml

# By code of Rechtschaffen and Kales: 0 W, 1-4, 5 REM, 6 movement, 9 unscored.
_EDF_STAGE = {0: "W", 1: "1", 2: "2", 3: "3", 4: "4", 5: "R", 6: "M", 9: "?"}
_AASM_STAGE = {0: "W", 1: "N1", 2: "N2", 3: "N3", 4: "N3", 5: "R", 6: "?", 9: "?"}
_STAGES_STAGE = {0: "Wake", 1: "Stage1", 2: "Stage2", 3: "Stage3", 4: "Stage3", 5: "REM", 6: "UnknownStage", 9: "UnknownStage"}
_WSC_STAGE = {6: 6, 9: 7}
_LUNA_EVENT = {
    "obstructive_apnea": "apnea_obstructive",
    "central_apnea": "apnea_central",
    "mixed_apnea": "apnea_mixed",
    "apnea": "apnea",
    "hypopnea": "hypopnea",
    "desaturation": "desat",
    "arousal": "arousal",
}
_NCHSDB_EVENT = {
    "obstructive_apnea": "Obstructive Apnea",
    "central_apnea": "Central Apnea",
    "mixed_apnea": "Mixed Apnea",
    "apnea": "Apnea",
    "hypopnea": "Hypopnea",
    "desaturation": "Oxygen Desaturation",
    "arousal": "EEG arousal",
}
_STAGES_EVENT = {
    "obstructive_apnea": "ObstructiveApnea",
    "central_apnea": "CentralApnea",
    "mixed_apnea": "MixedApnea",
    "apnea": "Apnea",
    "hypopnea": "Hypopnea",
    "desaturation": "Desaturation",
    "arousal": "Arousal",
}
# Sleep-EDF's hypnograms end after the signals, in what nobody scored.
_BEYOND_SECONDS = 1800
_HEADER_BYTES = 512


def write_scoring(name: str, path: Path, night: Night) -> None:
    """Write the scoring of ``night`` to ``path`` in format ``name``."""
    content = _WRITERS[name](night)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def _nsrr(night: Night) -> str:
    return nsrr_xml(night)


def _hypnogram(night: Night) -> bytes:
    """EDF+ with one record of annotations and no duration, as Sleep-EDF's."""
    runs = [*_runs(night), (len(night.codes) * EPOCH_SECONDS, _BEYOND_SECONDS, 9)]
    words = {code: night.words.get(str(code), f"Sleep stage {text}") for code, text in _EDF_STAGE.items()}
    rows = [(float(onset), float(duration), words[code]) for onset, duration, code in runs]
    rows = sorted(rows + _notes(night), key=lambda row: row[0])
    texts = [("+0", "", "")] + [(f"+{onset:g}", f"{duration:g}" if duration else "", text) for onset, duration, text in rows]
    body = "".join(f"{onset}{chr(21) + length if length else ''}\x14{text}\x14\0" for onset, length, text in texts).encode()
    body += b"\0" * (len(body) % 2)
    fields = [("0", 8), ("X X X X", 80), ("Startdate 01-JAN-1985 X X X", 80), ("01.01.85", 8), (night.start, 8)]
    fields += [(str(_HEADER_BYTES), 8), ("EDF+C", 44), ("1", 8), ("0", 8), ("1", 4), ("EDF Annotations", 16), ("", 88)]
    fields += [("-1", 8), ("1", 8), ("-32768", 8), ("32767", 8), ("", 80), (str(len(body) // 2), 8), ("", 32)]
    return "".join(value.ljust(width) for value, width in fields).encode("ascii") + body


def _luna(night: Night) -> str:
    clock = _clock(night)
    rows = [(begin, begin + duration, text) for begin, duration, text in _rows(night, _AASM_STAGE, _LUNA_EVENT)]
    lines = [f"{name}\t.\t.\t{clock(begin)}\t{clock(end)}\t." for begin, end, name in sorted(rows)]
    return "\n".join(["class\tinstance\tchannel\tstart\tstop\tmeta", *lines, ""])


def _nchsdb(night: Night) -> str:
    stages = {code: f"Sleep stage {text}" for code, text in _AASM_STAGE.items()}
    rows = _rows(night, stages, _NCHSDB_EVENT)
    lines = [f"{float(onset)}\t{float(duration)}\t{text}" for onset, duration, text in sorted(rows)]
    return "\n".join(["onset\tduration\tdescription", "0.0\t0.0\tLights Off", *lines, ""])


def _stages(night: Night) -> str:
    clock = _clock(night)
    rows = _rows(night, _STAGES_STAGE, _STAGES_EVENT)
    lines = [f"{clock(onset)},{duration:g},{text}" for onset, duration, text in sorted(rows)]
    remark = f"{clock(0.0)},0,technician, asks to close the eyes"  # texts are not quoted
    return "\n".join(["Start Time,Duration (seconds),Event", remark, *lines, ""])


def _wsc(night: Night) -> str:
    numbered = enumerate(night.codes.tolist(), start=1)
    lines = [f"{place}\t{_WSC_STAGE.get(code, code)}\t0" for place, code in numbered if code != NO_ROW]
    return "\n".join(["Epoch\tUser-Defined Stage\tCAST-Defined Stage", *lines, ""])


def _runs(night: Night) -> Iterator[tuple[int, int, int]]:
    """Onset and duration in s and code of every run of one stage."""
    place = 0
    for code, run in groupby(night.codes.tolist()):
        length = sum(1 for _ in run)
        if code != NO_ROW:
            yield place * EPOCH_SECONDS, length * EPOCH_SECONDS, code
        place += length


def _rows(night: Night, stages: Mapping[int, str], events: Mapping[str, str]) -> list[tuple[float, float, str]]:
    """Onset, duration and text of every epoch, event and note, each with the scorer's own word if it has one."""
    rows = [
        (float(place * EPOCH_SECONDS), float(EPOCH_SECONDS), night.words.get(str(code), stages[code]))
        for place, code in enumerate(night.codes.tolist())
        if code != NO_ROW
    ]
    rows += [(event.onset, event.duration, night.words.get(event.kind, events[event.kind])) for event in night.events]
    return rows + _notes(night)


def _notes(night: Night) -> list[tuple[float, float, str]]:
    return [(note.onset, note.duration, note.text) for note in night.notes]


def _clock(night: Night) -> Callable[[float], str]:
    """Seconds from the start as a time of day, to the second, as these cohorts write it."""
    start = datetime.strptime(f"1985-01-01 {night.start}", "%Y-%m-%d %H.%M.%S")
    return lambda seconds: (start + timedelta(seconds=round(seconds))).strftime("%H:%M:%S")


_WRITERS: dict[str, Callable[[Night], str | bytes]] = {
    "nsrr-xml": _nsrr,
    "edf-hypnogram": _hypnogram,
    "luna-annot": _luna,
    "nchsdb-tsv": _nchsdb,
    "stages-csv": _stages,
    "wsc-stages": _wsc,
}
