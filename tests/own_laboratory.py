"""A laboratory with ways of its own: labels, a scoring table, nights without a scoring, two nights a person, broken files.

The signals are those of :mod:`sleepfm.synthetic`; everything that has a name is named as no shipped cohort names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.signals.edf.writer import write_edf
from sleepfm.synthetic.layout import Layout, load_layout
from sleepfm.synthetic.night import Night, draw_night

# What the recorder of the laboratory writes; shares, rates and limits as in the layouts of the cohorts.
SIGNALS = {
    "Ch 1 EOG left": ("E1", "uV", 128, (-312.5, 312.5)),
    "Ch 2 EOG right": ("E2", "uV", 128, (-312.5, 312.5)),
    "Ch 3 C4/M1": ("C4", "uV", 256, (-312.5, 312.5)),
    "Ch 4 C3/M2": ("C3", "uV", 256, (-312.5, 312.5)),
    "Ch 5 submental": ("CHIN", "uV", 256, (-125, 125)),
    "Ch 6 EKG": ("ECG", "mV", 256, (-5, 5)),
    "Ch 7 Flow": ("FLOW", "", 32, (-125, 125)),
    "Ch 8 Belt 1": ("THORAX", "", 32, (-1, 1)),
    "Ch 9 Belt 2": ("ABDOMEN", "", 32, (-1, 1)),
    "Ch 10 Sat": ("SPO2", "%", 1, (0, 100)),
    "Ch 11 Body": ("POSITION", "", 1, (0, 3)),
}
TITLES = ("Begin of finding (s)", "Lasting (s)", "Finding")
STAGE_WORDS = {0: "awake", 1: "NREM 1", 2: "NREM 2", 3: "NREM 3", 4: "NREM 3", 5: "dream", 6: "?", 9: "?"}
EVENT_WORDS = {
    "obstructive_apnea": "OA event",
    "central_apnea": "CA event",
    "mixed_apnea": "MA event",
    "apnea": "Apnea",
    "hypopnea": "shallow breathing",
    "desaturation": "Desaturation",
    "arousal": "Arousal",
}


def laboratory_layout() -> Layout:
    """How the laboratory lays out its recordings."""
    signals = {
        label: {"from": {source: 1}, "unit": unit, "rate": rate, "physical": limits}
        for label, (source, unit, rate, limits) in SIGNALS.items()
    }
    like = load_layout("shhs1").model_dump() | {"signals": signals, "upside_down": None}
    return Layout.model_validate(like)


def scoring_table(night: Night) -> str:
    """A row a stage of 30 s and a row an event, in the laboratory's words."""
    epoch = float(EPOCH_SECONDS)
    rows = [(place * epoch, epoch, STAGE_WORDS[code]) for place, code in enumerate(night.codes.tolist())]
    rows += [(event.onset, event.duration, EVENT_WORDS[event.kind]) for event in night.events]
    lines = [f"{onset:.1f};{duration:.1f};{text}" for onset, duration, text in sorted(rows)]
    return "\n".join([";".join(TITLES), *lines, ""])


def write_laboratory(out: Path, persons: Sequence[int], hours: float, seed: int, unscored: int = 4) -> Path:
    """Two nights of each of ``persons`` below ``out/recordings``, their tables in ``out/recordings/findings``.

    The second nights of the first ``unscored`` persons have no table. Beside them: a recording whose copy ended in its
    header, one that ended in the midst of the night, and a page of a web server that was saved as a recording.
    """
    layout = laboratory_layout()
    folder = out / "recordings"
    (folder / "findings").mkdir(parents=True)
    n_epochs = round(hours * 3600 / EPOCH_SECONDS)
    for place, person in enumerate(persons):
        for visit in (1, 2):
            night = draw_night(seed, 2 * person + visit, n_epochs)
            name = f"P{person:02d}_night{visit}"
            signals = layout.draw(night, 0)
            write_edf(folder / f"{name}.edf", layout.channels, signals, n_epochs * EPOCH_SECONDS, night.start)
            if visit == 1 or place >= unscored:
                (folder / "findings" / f"{name}_findings.csv").write_text(scoring_table(night), encoding="utf-8")
    whole = (folder / f"P{persons[0]:02d}_night1.edf").read_bytes()
    (folder / "P90_night1.edf").write_bytes(whole[:1000])
    header, records = int(whole[184:192]), int(whole[236:244])
    record = (len(whole) - header) // records
    # Without its first record, so that it is no second copy of that night.
    (folder / "P91_night1.edf").write_bytes(whole[:header] + whole[header + record : len(whole) // 2 + record])
    table = folder / "findings" / f"P{persons[0]:02d}_night1_findings.csv"
    (folder / "findings" / "P91_night1_findings.csv").write_bytes(table.read_bytes())
    (folder / "P92_night1.edf").write_text("<html><body>404: no such recording</body></html>\n")
    return folder
