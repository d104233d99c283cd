"""Write one scoring in every format that is read; independent of the readers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path

from made_edf import tal, write_edf

START = datetime(2016, 2, 3, 22, 58, 47)


@dataclass(frozen=True)
class Night:
    """Stage of each epoch (-1 where nobody scored), and (type, onset, duration) of each event in tenths of seconds."""

    stages: tuple[int, ...]
    events: tuple[tuple[str, float, float], ...]

    @property
    def seconds(self) -> float:
        return 30.0 * len(self.stages)

    @property
    def runs(self) -> list[tuple[int, float, float]]:
        """(stage, onset, duration) of each stretch of one stage."""
        found, first = [], 0
        for stage, group in groupby(self.stages):
            count = len(list(group))
            found.append((stage, 30.0 * first, 30.0 * count))
            first += count
        return found

    @property
    def scored(self) -> list[tuple[int, float, float]]:
        """Stretches that somebody scored."""
        return [run for run in self.runs if run[0] >= 0]


def nsrr(night: Night, path: Path, *, typed: bool = True, ms: bool = False) -> None:
    stages = {-1: "Unscored|9", 0: "Wake|0", 1: "Stage 1 sleep|1", 2: "Stage 2 sleep|2", 3: "Stage 4 sleep|4", 4: "REM sleep|5"}
    if not typed:
        stages |= {0: "SDO:WakeState", 1: "SDO:NonRapidEyeMovementSleep-N1", 2: "SDO:NonRapidEyeMovementSleep-N2"}
        stages |= {3: "SDO:NonRapidEyeMovementSleep-N3", 4: "SDO:RapidEyeMovementSleep"}
    events = {
        "obstructive_apnea": "Obstructive apnea|Obstructive Apnea", "central_apnea": "Central apnea|Central Apnea",
        "mixed_apnea": "Mixed apnea|Mixed Apnea", "hypopnea": "Hypopnea|Hypopnea",
        "desaturation": "SpO2 desaturation|SpO2 desaturation",
        "arousal": "Arousal resulting from Chin EMG|Arousal (Cheshire)", "apnea": "Apnea|Apnea",
    }  # fmt: skip
    scale = 1000 if ms else 1
    rows: list[tuple[str, str, float, float]] = [("", "Recording Start Time", 0, night.seconds)]
    rows += [("Stages|Stages", stages[stage], onset * scale, duration) for stage, onset, duration in night.runs]
    rows += [("Respiratory|Respiratory", events[kind], onset * scale, lasts) for kind, onset, lasts in night.events]
    rows += [("Respiratory|Respiratory", "SpO2 artifact|SpO2 artifact", 5 * scale, 7), ("Respiratory", "Unsure|Unsure", 0, 10)]
    text = "".join(
        f"\r\n <ScoredEvent>\r\n  <Duration>{duration:g}</Duration><EventConcept>{concept}</EventConcept>"
        + (f"<EventType>{kind}</EventType>" if typed else "")
        + f"<Start>{onset:.12g}</Start></ScoredEvent>"
        for kind, concept, onset, duration in rows
    )
    path.write_text(f'<?xml version="1.0"?>\r\n<PSGAnnotation><ScoredEvents>{text}</ScoredEvents></PSGAnnotation>')


def profusion(night: Night, path: Path) -> None:
    codes = {-1: 9, 0: 0, 1: 1, 2: 2, 3: 3, 4: 5}
    names = {
        "obstructive_apnea": "Obstructive Apnea", "central_apnea": "Central Apnea", "mixed_apnea": "Mixed Apnea",
        "hypopnea": "Hypopnea", "desaturation": "SpO2 desaturation", "arousal": "Arousal (ARO SPONT)",
        "apnea": "Apnea",
    }  # fmt: skip
    events = "".join(
        f"<ScoredEvent><Name>{names[kind]}</Name><Start>{onset:g}</Start><Duration>{lasts:g}</Duration>"
        "<Input>ABDO RES</Input></ScoredEvent>"
        for kind, onset, lasts in night.events
    )
    stages = "".join(f"<SleepStage>{codes[stage]}</SleepStage>" for stage in night.stages)
    path.write_text(
        f'<?xml version="1.0"?><CMPStudyConfig><EpochLength>30</EpochLength><ScoredEvents>{events}'
        f"<ScoredEvent><Name>SpO2 artifact</Name><Start>1</Start><Duration>2</Duration></ScoredEvent></ScoredEvents>"
        f"<SleepStages>{stages}</SleepStages></CMPStudyConfig>"
    )


def edf_plus(night: Night, path: Path, *, aasm: bool = True) -> None:
    stages = {0: "W", 1: "N1", 2: "N2", 3: "N3", 4: "R"} if aasm else {0: "W", 1: "1", 2: "2", 3: "4", 4: "R"}
    events = {"obstructive_apnea": "Obstructive apnea", "central_apnea": "Central apnea", "mixed_apnea": "Mixed apnea"}
    events |= {
        "hypopnea": "Hypopnea",
        "desaturation": "Oxygen desaturation",
        "arousal": "EEG arousal@@EEG C4-M1",
        "apnea": "Apnoea",
    }
    texts = [tal(f"+{onset:g}", f"{lasts:g}", f"Sleep stage {stages[stage]}") for stage, onset, lasts in night.scored]
    texts += [tal(f"+{onset:g}", f"{lasts:g}", events[kind]) for kind, onset, lasts in night.events]
    texts += [tal("+3", "", "Lights off")]
    write_edf(
        path, [], seconds="0", variant="EDF+C", stamps=[tal("+0") + b"".join(texts)],
        start=(START.strftime("%d.%m.%y"), START.strftime("%H.%M.%S")),
    )  # fmt: skip


def noxturnal(night: Night, path: Path, *, french: bool = True) -> None:
    if french:
        titles, form = "Heure de début,Heure de fin,Événement,Durée,", "%d/%m/%Y %H:%M:%S.%f"
        stages = {0: "Éveil", 1: "N1", 2: "N2", 3: "N3", 4: "REM"}
        names = {"obstructive_apnea": "A. Obstructive", "central_apnea": "A. Centrale", "mixed_apnea": "A. Mixte"}
        names |= {"hypopnea": "Hypopnée", "desaturation": "Désat", "arousal": "Micro-éveil", "apnea": "Apnée"}
    else:
        titles, form = "Start Time,End Time,Event,Duration,", "%m/%d/%Y %I:%M:%S.%f %p"
        stages = {0: "Wake", 1: "N1", 2: "N2", 3: "N3", 4: "REM"}
        names = {"obstructive_apnea": "A. Obstructive", "central_apnea": "A. Central", "mixed_apnea": "A. Mixed"}
        names |= {"hypopnea": "Hypopnea", "desaturation": "Desat", "arousal": "Arousal", "apnea": "Apnea"}
    rows = [(onset, lasts, stages[stage]) for stage, onset, lasts in night.scored]
    rows += [(onset, lasts, names[kind]) for kind, onset, lasts in night.events]

    def at(seconds: float) -> str:
        return (START + timedelta(seconds=seconds)).strftime(form)

    lines = [f"{at(onset)},{at(onset + lasts)},{name},{lasts:g}," for onset, lasts, name in rows]
    path.write_text("\r\n".join([titles, "[],[],[],[s],", *lines, ""]), encoding="utf-16")


_LUNA = {"obstructive_apnea": "apnea_obstructive", "central_apnea": "apnea_central", "mixed_apnea": "apnea_mixed"}
_LUNA |= {"hypopnea": "hypopnea", "desaturation": "desat", "arousal": "arousal_spontaneous", "apnea": "apnea"}
_LUNA_STAGE = {-1: "?", 0: "W", 1: "N1", 2: "NREM2", 3: "N3", 4: "R"}


def annot(night: Night, path: Path, *, clock: bool = False) -> None:
    """Six columns with header lines; elapsed seconds, or clock times (with a date for every second row)."""

    def at(seconds: float, dated: bool) -> str:
        if not clock:
            return f"{seconds:.3f}"
        moment = START + timedelta(seconds=seconds)
        return moment.strftime("%d-%m-%y-%H:%M:%S.%f" if dated else "%H:%M:%S.%f")

    rows = [(_LUNA_STAGE[stage], onset, onset + lasts) for stage, onset, lasts in night.scored]
    rows += [(_LUNA[kind], onset, onset + lasts) for kind, onset, lasts in night.events]
    lines = ["# N1 | stage", "# desat | from oximetry | nadir[num]", "class\tinstance\tchannel\tstart\tstop\tmeta"]
    lines += [f"{name}\t.\tC3,C4\t{at(a, n % 2 == 0)}\t{at(b, n % 2 == 0)}\t." for n, (name, a, b) in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n")


def annot_ellipsis(night: Night, path: Path) -> None:
    """Three columns without titles: events with durations, then changes of stage, each until the next."""
    lines = [f"{_LUNA[kind]} {onset:g} +{lasts:g}" for kind, onset, lasts in night.events]
    lines += [f"{_LUNA_STAGE[stage]} 0+{int(onset) // 3600:02d}:{int(onset) // 60 % 60:02d}:{onset % 60:06.3f} ..."
              for stage, onset, _ in night.runs]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")


def annot_epochs(night: Night, path: Path) -> None:
    """Four columns; stages by epoch in the instances of one class."""
    lines = ["class instance start stop"]
    lines += [f"SleepStage {_LUNA_STAGE[stage]} e:{int(onset / 30) + 1} e:{int((onset + lasts) / 30)}"
              for stage, onset, lasts in night.scored]  # fmt: skip
    lines += [f"edf_annot {_LUNA[kind]} {onset:g} {onset + lasts:g}" for kind, onset, lasts in night.events]
    path.write_text("\n".join(lines) + "\n")


def eannot(night: Night, path: Path) -> None:
    names = {-1: "L", 0: "wake", 1: "N1", 2: "N2", 3: "N3", 4: "REM"}
    path.write_text("".join(f"{names[stage]}\n" for stage in night.stages))


def nchsdb(night: Night, path: Path) -> None:
    """Tabs; onset, duration and description."""
    names = {"obstructive_apnea": "Obstructive Apnea", "central_apnea": "Central Apnea", "mixed_apnea": "Mixed Apnea"}
    names |= {
        "hypopnea": "Obstructive Hypopnea",
        "desaturation": "Oxygen Desaturation",
        "arousal": "EEG Arousal",
        "apnea": "Apnea",
    }
    stages = {-1: "?", 0: "W", 1: "N1", 2: "N2", 3: "N3", 4: "R"}
    rows = [(onset, lasts, f"Sleep stage {stages[stage]}") for stage, onset, lasts in night.runs]
    rows += [(onset, lasts, names[kind]) for kind, onset, lasts in night.events]
    rows = [(0.0, 0.0, "Montage:NCH_PSG_STANDARD"), *rows]
    path.write_text("onset\tduration\tdescription\n" + "".join(f"{a:.3f}\t{b:.3f}\t{c}\n" for a, b, c in sorted(rows)))


def stages_csv(night: Night, path: Path) -> None:
    """As STAGES: clock times without dates, durations, names with a blank before them."""
    names = {"obstructive_apnea": "ObstructiveApnea", "central_apnea": "CentralApnea", "mixed_apnea": "MixedApnea"}
    names |= {"hypopnea": "Hypopnea", "desaturation": "Desaturation", "arousal": "Arousal", "apnea": "Apneas"}
    stages = {-1: "UnknownStage", 0: "Wake", 1: "Stage1", 2: "Stage2", 3: "Stage3", 4: "REM"}
    rows = [(onset, lasts, stages[stage]) for stage, onset, lasts in night.runs]
    rows += [(onset, lasts, names[kind]) for kind, onset, lasts in night.events]
    lines = [f"{START + timedelta(seconds=a):%H:%M:%S.%f},{b:.1f}, {c}\n" for a, b, c in sorted(rows)]
    path.write_text("Start Time,Duration (seconds),Event\n" + "".join(lines))


def bids(night: Night, path: Path) -> None:
    rows = [(onset, lasts, {0: "W", 1: "N1", 2: "N2", 3: "N3", 4: "REM"}[stage]) for stage, onset, lasts in night.scored]
    rows += [(onset, lasts, kind) for kind, onset, lasts in night.events]
    path.write_text("onset\tduration\ttrial_type\tsample\n" + "".join(f"{a}\t{b}\t{c}\t0\n" for a, b, c in rows))


def semicolons(night: Night, path: Path) -> None:
    """A table with ends instead of durations, milliseconds, decimal commas and a byte order mark."""
    rows = [(onset, onset + lasts, {0: "0", 1: "S1", 2: "S2", 3: "S3", 4: "REM"}[stage]) for stage, onset, lasts in night.scored]
    rows += [(onset, onset + lasts, kind) for kind, onset, lasts in night.events]
    rows = [(a, b, c.replace("0", "Wake") if c == "0" else c) for a, b, c in rows]
    lines = [f'"{1000 * a:.1f}";"{1000 * b:.1f}";"{c}"'.replace(".", ",") + "\r\n" for a, b, c in rows]
    path.write_text("Start (ms);End (ms);Label\r\n" + "".join(lines), encoding="utf-8-sig")


def numbered(night: Night, path: Path) -> None:
    names = {-1: "?", 0: "W", 1: "1", 2: "2", 3: "3", 4: "R"}
    lines = [f"{number}\t{names[stage]}\t7\n" for number, stage in enumerate(night.stages, start=1)]
    path.write_text("Epoch\tUser-Defined Stage\tCAST-Defined Stage\n" + "".join(lines))


def list_of_numbers(night: Night, path: Path, *, comment: bool = True) -> None:
    """As YASA writes: the codes in a comment, or Rechtschaffen and Kales's with a REM of 5."""
    if comment:
        path.write_text("# 0: Wake, 1: N1, 2: N2, 3: N3, 4: REM, -1: ?\n" + "".join(f"{stage}\n" for stage in night.stages))
    else:
        codes = {-1: 9, 0: 0, 1: 1, 2: 2, 3: 4, 4: 5}
        path.write_text("".join(f"{codes[stage]}\n" for stage in (*night.stages, 4)))


def grass_log(night: Night, path: Path) -> None:
    """As WSC's allscore files: changes of stage, durations in the texts."""
    stages = {-1: "NO STAGE", 0: "W", 1: "N1", 2: "N2", 3: "N3", 4: "R"}
    names = {"obstructive_apnea": "RESPIRATORY EVENT - DUR: {} SEC. - OBSTRUCTIVE APNEA - DESAT 91.6 %"}
    names |= {"central_apnea": "RESPIRATORY EVENT - DUR: {} SEC. - CENTRAL APNEA"}
    names |= {
        "mixed_apnea": "RESPIRATORY EVENT - DUR: {} SEC. - MIXED APNEA",
        "arousal": "* AROUSAL - DUR: {} SEC. - SPONTANEOUS",
    }
    names |= {"hypopnea": "RESPIRATORY EVENT - DUR: {} SEC. - HYPOPNEA - DESAT 91.6 %"}
    names |= {"desaturation": "DESATURATION - DUR: {} SEC. - MIN 91.6 % - DROP 3.1 %"}
    names |= {"apnea": "RESPIRATORY EVENT - DUR: {} SEC. - APNEA"}
    rows = [(onset, f"STAGE - {stages[stage]}") for stage, onset, _ in night.runs]
    rows += [(onset, names[kind].format(lasts)) for kind, onset, lasts in night.events]
    rows = [(0.0, "START RECORDING"), *rows, (2.0, "LM - DUR: 0.7 SEC. - ISOLATED"), (3.0, "POSITION - LEFT")]
    rows = [*sorted(rows, key=lambda row: row[0]), (night.seconds, "LIGHTS ON")]
    path.write_text("".join(f"{START + timedelta(seconds=a):%H:%M:%S.%f}"[:-4] + f"\t{text}\r\n" for a, text in rows))


# Name, writer, whether it holds events.
FORMATS: dict[str, tuple[Callable[[Night, Path], None], bool]] = {
    "nsrr.xml": (nsrr, True),
    "sdo.xml": (lambda night, path: nsrr(night, path, typed=False), True),
    "profusion.xml": (profusion, True),
    "aasm.edf": (edf_plus, True),
    "rk.edf": (lambda night, path: edf_plus(night, path, aasm=False), True),
    "french.csv": (noxturnal, True),
    "english.csv": (lambda night, path: noxturnal(night, path, french=False), True),
    "elapsed.annot": (annot, True),
    "clock.annot": (lambda night, path: annot(night, path, clock=True), True),
    "ellipsis.annot": (annot_ellipsis, True),
    "epochs.annot": (annot_epochs, True),
    "labels.eannot": (eannot, False),
    "nchsdb.tsv": (nchsdb, True),
    "stages.csv": (stages_csv, True),
    "bids.tsv": (bids, True),
    "semicolons.csv": (semicolons, True),
    "allscore.txt": (grass_log, True),
    "numbered.stg.txt": (numbered, False),
    "yasa.txt": (list_of_numbers, False),
    "rk.txt": (lambda night, path: list_of_numbers(night, path, comment=False), False),
}
