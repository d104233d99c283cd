"""Write a night's scoring in the format of its cohort.

Sources: NSRR's XML (:mod:`sleepfm.synthetic.nsrr_xml`); EDF+ specification and PhysioNet's sleep-edfx (texts of
stages); Luna's documentation of ``.annot`` (zzz.bwh.harvard.edu/luna/ref/annotations) for APPLES; NSRR's pages of WSC
(``.stg.txt``), NCHSDB (``.tsv``) and STAGES (``.csv``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.signals.scorings.scoring import Event
from sleepfm.signals.scorings.writers.edf_plus import edf_annotations
from sleepfm.signals.scorings.writers.luna_annot import luna_annot
from sleepfm.signals.scorings.writers.night import stage_runs
from sleepfm.signals.scorings.writers.texts import AASM_STAGE, EDF_STAGE, LUNA_EVENT
from sleepfm.synthetic.night import NO_ROW, Night
from sleepfm.synthetic.nsrr_xml import nsrr_xml

# By code of Rechtschaffen and Kales: 0 W, 1-4, 5 REM, 6 movement, 9 unscored.
_STAGES_STAGE = {0: "Wake", 1: "Stage1", 2: "Stage2", 3: "Stage3", 4: "Stage3", 5: "REM", 6: "UnknownStage", 9: "UnknownStage"}
_WSC_STAGE = {6: 6, 9: 7}
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


def write_scoring(name: str, path: Path, night: Night) -> None:
    """Write the scoring of ``night`` to ``path`` in format ``name``."""
    content = _WRITERS[name](night)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def _nsrr(night: Night) -> str:
    return nsrr_xml(night)


def _hypnogram(night: Night) -> bytes:
    """EDF+ with one record of annotations and no duration, as Sleep-EDF's."""
    runs = [*_runs(night), (len(night.codes) * EPOCH_SECONDS, _BEYOND_SECONDS, 9)]
    words = {code: night.words.get(str(code), f"Sleep stage {text}") for code, text in EDF_STAGE.items()}
    rows = [Event(float(onset), float(duration), words[code]) for onset, duration, code in runs]
    rows += [Event(onset, duration, text) for onset, duration, text in _notes(night)]
    return edf_annotations(sorted(rows, key=lambda row: row.onset), _start(night))


def _luna(night: Night) -> str:
    rows = sorted((begin, begin + lasts, text, lasts) for begin, lasts, text in _rows(night, AASM_STAGE, LUNA_EVENT))
    return luna_annot([Event(begin, lasts, text) for begin, _, text, lasts in rows], _clock(night))


def _nchsdb(night: Night) -> str:
    stages = {code: f"Sleep stage {text}" for code, text in AASM_STAGE.items()}
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
    for first, length, code in stage_runs(night.codes.tolist()):
        if code != NO_ROW:
            yield first * EPOCH_SECONDS, length * EPOCH_SECONDS, code


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
    return lambda seconds: (_start(night) + timedelta(seconds=round(seconds))).strftime("%H:%M:%S")


def _start(night: Night) -> datetime:
    return datetime.strptime(f"1985-01-01 {night.start}", "%Y-%m-%d %H.%M.%S")


_WRITERS: dict[str, Callable[[Night], str | bytes]] = {
    "nsrr-xml": _nsrr,
    "edf-hypnogram": _hypnogram,
    "luna-annot": _luna,
    "nchsdb-tsv": _nchsdb,
    "stages-csv": _stages,
    "wsc-stages": _wsc,
}
