"""What the page of a scored night says, without a picture: who and when, figures, channels, events with their evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np

from sleepfm.constants import EPOCH_SECONDS, STAGE_NAMES, Stage
from sleepfm.evaluation.breathing import KINDS, IndexOfPart, index_by_part
from sleepfm.evaluation.events import event_family, matched_pairs
from sleepfm.evaluation.hypopnea_rules import COMMON, DEFINITIONS, breathing_events
from sleepfm.evaluation.paired import severity_of
from sleepfm.inference.night_frames import event_confidence, event_stages
from sleepfm.inference.night_score import NightScore
from sleepfm.reports.night_tables import clock_of
from sleepfm.reports.rendering import NOT_DEFINED
from sleepfm.signals.position import BodyPosition
from sleepfm.signals.prepare import PreparedRecording
from sleepfm.signals.quality import Quality, unusable
from sleepfm.signals.scorings.free_text import provenance_without_texts
from sleepfm.signals.scorings.scoring import Event
from sleepfm.tasks import TASKS

NOT_ASSESSED = "not assessed"
# A larger share of epochs without a stage is said beside the total sleep time.
_UNSTAGED_SHARE = 0.05
# What follows the name of a line of events that a human scored.
SCORED = ", scored"
TASK_NAMES = {"stage": "sleep stages", "apnea": "apneas", "hypopnea": "hypopneas", "arousal": "arousals"}
DEFINITION_NAMES = {
    "ahi_3_percent": "hypopneas with a desaturation of 3 %",
    "ahi_3_percent_or_arousal": "hypopneas with a desaturation of 3 % or an arousal",
    "ahi_4_percent": "hypopneas with a desaturation of 4 %",
}


@dataclass(frozen=True)
class NightExample:
    """One scored night and the signals it was scored from.

    Attributes:
        held_out: in words what the models had seen of it.
        start: date and time of the first sample; of these the page has the clock time alone, unless ``identity`` is shown.
        identity: who the person is, as the recording's header says; None unless the user wants it and the date on the page.
        position: of the body, where the recording tells it.
    """

    score: NightScore
    prepared: PreparedRecording
    held_out: str = ""
    start: datetime | None = None
    identity: str | None = None
    position: BodyPosition | None = None

    @property
    def clock(self) -> Callable[[float], str]:
        """Seconds from the first sample to a time of day, empty where nobody knows it."""
        return clock_of(self.start, self.prepared.provenance.get("clock"))


@dataclass(frozen=True)
class Figure:
    """A figure of the first page: its name, value as text, what it means, and why it is not assessed where it is not."""

    name: str
    value: str
    note: str = ""

    @property
    def assessed(self) -> bool:
        """Whether there is a value."""
        return self.value != NOT_ASSESSED


class AhiRow(NamedTuple):
    """The AHI by one definition, the hours of sleep that it is of, its severity, and the definition."""

    name: str
    value: float
    hours: float
    severity: str
    meaning: str


@dataclass(frozen=True)
class ChannelFact:
    """A canonical channel: what it was made of, which models were given it, its usable share, and what was wrong with it."""

    name: str
    source: str
    tasks: tuple[str, ...]
    usable: float
    flags: str


@dataclass(frozen=True)
class EventFact:
    """An event with what speaks for it.

    Attributes:
        confidence: mean probability over its seconds (of a run over its epochs); nan where there is none.
        stage: as in ``events.csv`` and the AHI by stage (:func:`sleepfm.inference.night_frames.event_stages`), empty without one.
        depth: % of its desaturation, 0 without one, None where that is not known; ``arousal`` likewise.
        human: whether the human scored the same event; None where nobody did.
    """

    event: Event
    confidence: float
    clock: str
    stage: str
    depth: float | None
    arousal: bool | None
    human: bool | None

    @property
    def name(self) -> str:
        """Its kind in words."""
        return self.event.type.replace("_", " ")

    @property
    def told(self) -> str:
        """Its evidence in words and numbers."""
        oxygen = (
            "SpO₂ not scored" if self.depth is None else f"SpO₂ falls by {self.depth:.0f} %" if self.depth else "no desaturation"
        )
        waking = {None: "arousals not scored", True: "arousal", False: "no arousal"}[self.arousal]
        human = {None: "", True: "; human: the same", False: "; human: none here"}[self.human]
        return f"{oxygen}; {waking}{human}"


def event_facts(example: NightExample) -> tuple[EventFact, ...]:
    """Every apnea and hypopnea of the models, the most probable first; runs of positive epochs where a model tells no events."""
    score, night = example.score, example.prepared
    evidence, clock = score.evidence, example.clock
    events = [e for e in (*score.events, *score.runs) if event_family(e.type) in KINDS]
    matched = _human_matches(events, night)
    found = []
    for number, (event, stage) in enumerate(zip(events, event_stages(score, events), strict=True)):
        seen = evidence.get(event)
        found.append(
            EventFact(
                event=event,
                confidence=event_confidence(score, event),
                clock=clock(event.onset) or f"+{timedelta(seconds=int(event.onset))}",
                stage=stage or "",
                depth=seen.depth if seen else None,
                arousal=seen.arousal if seen else None,
                human=matched.get(number),
            )
        )
    return tuple(sorted(found, key=lambda fact: (-np.nan_to_num(fact.confidence, nan=-1.0), fact.event.onset)))


def _human_matches(events: Sequence[Event], night: PreparedRecording) -> dict[int, bool]:
    """Number of each event whose family a human scored in its epoch, to whether the human has the same event."""
    found: dict[int, bool] = {}
    for kind in KINDS:
        scored = night.labels[kind] >= 0
        mine = [n for n, e in enumerate(events) if event_family(e.type) == kind and scored[int(e.onset // EPOCH_SECONDS)]]
        theirs = [e for e in night.events if event_family(e.type) == kind]
        if scored.any():
            found |= dict.fromkeys(mine, False)
            found |= {mine[i]: True for i, _ in matched_pairs([events[n] for n in mine], theirs)}
    return found


def channel_facts(example: NightExample) -> tuple[ChannelFact, ...]:
    """Of every channel that the recording has, in the data contract's order."""
    score, night = example.score, example.prepared
    described = night.provenance.get("channels", {})
    facts = []
    for name in night.channels:
        quality = night.quality[name]
        flagged = [(flag, int(((quality & flag) > 0).sum())) for flag in Quality]
        flags = ", ".join(
            f"{str(flag.name).lower().replace('_', ' ')} {100 * count / len(quality):.0f} %"
            for flag, count in flagged
            if count >= len(quality) / 100
        )
        facts.append(
            ChannelFact(
                name=name,
                source=described.get(name, {}).get("derivation", ""),
                tasks=tuple(TASK_NAMES.get(task, task) for task, names in score.inputs.items() if name in names)
                + (("oximetry",) if name == "SPO2" else ()),
                usable=float(1 - unusable(quality).mean()),
                flags=flags,
            )
        )
    return tuple(facts)


def missing_channels(example: NightExample) -> dict[str, str]:
    """Canonical channels that the recording does not have, to the reason, without free text."""
    missing: dict[str, str] = provenance_without_texts(example.prepared.provenance).get("missing", {})
    return missing


def first_page(example: NightExample) -> tuple[Figure, ...]:
    """The figures that a reader looks for first, each with its meaning; never 0 for what nobody looked for."""
    score = example.score
    stats, breathing, oximetry = score.statistics, score.breathing, score.oximetry
    severity = severity_of(breathing.ahi)
    figures = [
        _figure("Total sleep time", _minutes(stats.total_sleep_time), _how_much_staged(score), why_not(score, "stage")),
        _figure("Sleep efficiency", _number(stats.efficiency, " %"), "of the time in bed", why_not(score, "stage")),
        _figure("AHI", _number(breathing.ahi, "/h"), severity and f"severity: {severity}", why_no_ahi(score)),
    ]
    no_oximetry = "no usable SpO₂" if score.saturation is None or not np.isfinite(score.saturation).any() else ""
    no_oximetry = no_oximetry or why_not(score, "stage") or "no sleep with SpO₂"
    odi = _number(oximetry.odi_3, "/h") if oximetry else NOT_ASSESSED
    lowest = f"{_number(oximetry.t90_percent, ' %')}" if oximetry else NOT_ASSESSED
    nadir = (
        f"{oximetry.t90_minutes:.0f} min of sleep below 90 %; lowest {oximetry.nadir:.0f} %"
        if oximetry and oximetry.hours
        else ""
    )
    odi_4 = f"by 4 %: {oximetry.odi_4:.1f}/h" if oximetry and oximetry.hours else ""
    figures += [
        _figure("ODI 3 %", odi, odi_4, no_oximetry),
        _figure("T90", lowest, nadir, no_oximetry),
        _figure("Arousal index", _number(score.arousal_index, "/h"), "", why_not(score, "arousal", needs_sleep=True)),
    ]
    return tuple(figures)


def _how_much_staged(score: NightScore) -> str:
    """Of how much of the recording the sleep figures are, where a part that matters could not be staged."""
    staged = int((score.stages >= 0).sum())
    if score.n_epochs - staged <= _UNSTAGED_SHARE * score.n_epochs:
        return ""
    minutes = (number * EPOCH_SECONDS / 60 for number in (staged, score.n_epochs))
    return "of {:.0f} min with stages; the recording lasts {:.0f} min".format(*minutes)


def sleep_rows(score: NightScore) -> tuple[tuple[str, str], ...]:
    """The table of sleep: names and values with units. What a night has none of is not defined, and never 0."""
    stats = score.statistics
    staged, slept = not math.isnan(stats.total_sleep_time), bool(stats.total_sleep_time)

    def told(value: float | None, unit: str = " min", why: str = "", digits: int = 1) -> str:
        if value is not None and not math.isnan(value):
            return f"{value:.{digits}f}{unit}"
        return f"{NOT_DEFINED} ({why})" if staged else NOT_ASSESSED

    rows = [
        ("Recorded", told(stats.recorded)),
        ("Time in bed", told(stats.time_in_bed)),
        ("Total sleep time", told(stats.total_sleep_time)),
        ("Sleep efficiency", told(stats.efficiency, " %")),
        ("Sleep latency", told(stats.latency, why="no sleep")),
        ("REM latency, from sleep onset", told(stats.rem_latency, why="no REM" if slept else "no sleep")),
        ("Wake after sleep onset", told(stats.waso, why="no sleep")),
        ("Awakenings", told(stats.awakenings, "", digits=0)),
        ("Unscored", told(stats.unscored)),
    ]
    return (*rows, *([("Unscored within time in bed", told(stats.unscored_in_bed))] if stats.unscored else []))


def why_not(score: NightScore, task: str, needs_sleep: bool = False) -> str:
    """Why there is no figure of ``task``; empty where nothing stands against it."""
    name = TASK_NAMES.get(task, task)
    if task not in score.models:
        return f"no model of {name} was given"
    if task in score.without_evidence:
        return "no usable " + ("airflow or effort belt" if task in KINDS else "EEG")
    if task == "stage":
        return "" if (score.stages >= 0).any() else "no epoch could be staged"
    if not np.isfinite(score.probability[task]).any():
        return "no usable channel of its model"
    if task not in score.event_threshold:
        return f"the model of {name} tells epochs, not events"
    if needs_sleep and not (score.in_bed > Stage.W).any():
        return "no epoch staged as sleep"
    return ""


def why_no_ahi(score: NightScore) -> str:
    """Why there is no AHI; empty where there is one."""
    reasons = dict.fromkeys(filter(None, (why_not(score, task, needs_sleep=True) for task in KINDS)))
    return "; ".join(reasons) or (
        "" if not math.isnan(score.ahi) else why_not(score, "stage") or "no sleep in which both were scored"
    )


def ahi_rows(score: NightScore) -> tuple[AhiRow, ...]:
    """The AHI by each definition in use; the first is of all hypopneas. None where there is no AHI."""
    if math.isnan(score.ahi):
        return ()
    hours, every = score.hours_by_definition, "apneas and all hypopneas, whatever follows them"
    rows = [AhiRow("all hypopneas", score.ahi, score.breathing.hours, severity_of(score.ahi), every)]
    for name, value in score.ahi_by_definition.items():
        rows.append(AhiRow(DEFINITION_NAMES[name], value, hours[name], severity_of(value), DEFINITIONS[name]))
    return tuple(rows)


def ahi_by_stage(score: NightScore) -> tuple[IndexOfPart, ...]:
    """The AHI of each stage of sleep; empty where there is none."""
    parts = (
        np.where(score.counted_sleep("apnea"), score.in_bed.astype(int) - 1, -1)
        if not math.isnan(score.ahi)
        else np.empty(0, int)
    )
    return index_by_part(breathing_events(score.events), parts, STAGE_NAMES[1:]) if len(parts) else ()


def ahi_by_position(example: NightExample) -> tuple[IndexOfPart, ...]:
    """The AHI of sleep in each position; empty where position or AHI is not known."""
    score, position = example.score, example.position
    if position is None or math.isnan(score.ahi):
        return ()
    parts = np.where(score.counted_sleep("apnea"), position.epochs, -1)
    found = index_by_part(breathing_events(score.events), parts, position.names)
    return tuple(row for row in found if row.hours)


def event_rows(example: NightExample) -> dict[str, list[Event]]:
    """The lines of respiratory events that a picture shows, by name: what was scored by the models (events, or the runs of
    positive epochs that do for them), and by a human. A family that nobody scored has no line.
    """
    rows: dict[str, list[Event]] = {}
    for kind in KINDS:
        rows |= found_rows(example.score, kind)
        if human_events(example, kind):
            rows[f"{kind}{SCORED}"] = [event for event in example.prepared.events if event_family(event.type) == kind]
    return rows


def found_rows(score: NightScore, kind: str) -> dict[str, list[Event]]:
    """The lines of :func:`event_rows` that models scored of ``kind``; none of what they had nothing to look at for."""
    if not looked_for(score, kind):
        return {}
    return {
        f"{kind}{what}": [span for span in spans if event_family(span.type) == kind]
        for what, spans in (("", score.events), (", positive epochs", score.runs))
        if kind in score.threshold and (kind in score.event_threshold) == (not what)
    }


def looked_for(score: NightScore, task: str) -> bool:
    """Whether a model of ``task`` had anything to look at in some epoch."""
    return task not in score.without_evidence and bool(np.isfinite(score.probability.get(task, np.nan)).any())


def human_stages(example: NightExample) -> bool:
    """Whether a human staged the recording."""
    return bool((example.prepared.stage >= 0).any())


def human_events(example: NightExample, kind: str) -> bool:
    """Whether a human scored events of ``kind``."""
    return bool((example.prepared.labels[kind] >= 0).any())


def when(example: NightExample) -> str:
    """When the recording was made: the time of day where it is known, with the date only where the user wants it."""
    minutes = round(example.score.n_epochs * EPOCH_SECONDS / 60)
    lasted = f"{minutes // 60} h {minutes % 60:02d} min"
    begin, end = example.clock(0.0), example.clock(example.score.n_epochs * float(EPOCH_SECONDS))
    if not begin:
        return f"{lasted}; the time of day is not known"
    date = f"{example.start.date().isoformat()}, " if example.identity is not None and example.start else ""
    return f"{date}{begin[:5]} to {end[:5]}, {lasted}"


def lights_told(example: NightExample) -> tuple[str, ...]:
    """When lights went off and on, and who says so."""
    lights, told = example.score.lights, []
    for name, second, source in (("Lights off", lights.off, lights.off_from), ("Lights on", lights.on, lights.on_from)):
        at = "" if second is None else f" {example.clock(second)[:5] or f'{second / 60:.0f} min from the start'}"
        told.append(f"{name}{at}: {source}" if at else f"{name} {source}")
    return (
        tuple(told)
        if told[0].removeprefix("Lights off") != told[1].removeprefix("Lights on")
        else (told[0].replace("Lights off", "Lights off and on"),)
    )


def model_lines(example: NightExample) -> tuple[str, ...]:
    """Each model with what it was given."""
    score = example.score
    return tuple(
        f"{TASK_NAMES.get(task, task)}: {uri}, from {', '.join(score.inputs.get(task, ())) or 'no channel'}"
        for task, uri in score.models.items()
    )


def _figure(name: str, value: str, note: str, reason: str) -> Figure:
    return Figure(name, value, note) if value != NOT_ASSESSED else Figure(name, value, reason)


def _number(value: float, unit: str) -> str:
    return NOT_ASSESSED if math.isnan(value) else f"{value:z.1f}{unit}"


def _minutes(value: float) -> str:
    if math.isnan(value):
        return NOT_ASSESSED
    minutes = round(value)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def page_facts(example: NightExample) -> dict[str, Any]:
    """All of it by name, for a template."""
    score = example.score
    return {
        "score": score,
        "when": when(example),
        "identity": example.identity,
        "held_out": example.held_out,
        "lights": lights_told(example),
        "models": model_lines(example),
        "figures": first_page(example),
        "sleep": sleep_rows(score),
        "breathing": score.breathing,
        "ahi_rows": ahi_rows(score),
        "ahi_missing": why_no_ahi(score),
        "ahi_common": COMMON.removeprefix("; "),
        "by_stage": ahi_by_stage(score),
        "by_position": ahi_by_position(example),
        "oximetry": score.oximetry,
        "channels": channel_facts(example),
        "missing": missing_channels(example),
        "stages": STAGE_NAMES,
        "n_tasks": len(TASKS),
        "human_stages": human_stages(example),
        "human_events": any(human_events(example, kind) for kind in KINDS),
    }
