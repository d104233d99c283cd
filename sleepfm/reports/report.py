"""Reports as single HTML files: images and drawings inside, no script, nothing fetched.

:func:`build_report` writes the page of a whole run (``index.html``), :func:`night_page` that of one scored
night.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sleepfm.constants import CHANNEL_UNIT, EPOCH_SAMPLES, EPOCH_SECONDS, RATE_HZ, STAGE_NAMES
from sleepfm.errors import DatasetError
from sleepfm.evaluation.breathing import KINDS
from sleepfm.evaluation.event_results import EventResult
from sleepfm.evaluation.events import EventAgreement, event_family
from sleepfm.evaluation.groups import FEW, Groups, group_rows
from sleepfm.evaluation.intervals import Metric
from sleepfm.evaluation.metrics import Evaluation
from sleepfm.evaluation.paired import SEVERITIES, PairedAgreement
from sleepfm.files import write_atomic
from sleepfm.reports import charts, plots
from sleepfm.reports.agreement_charts import bland_altman_figure
from sleepfm.reports.lineage import Lineage, to_svg
from sleepfm.signals.quality import unusable
from sleepfm.signals.scorings.scoring import Event
from sleepfm.training.tracking.trace import read_trace
from sleepfm.version import __version__

if TYPE_CHECKING:
    from sleepfm.inference.night_score import NightScore
    from sleepfm.inference.subsets import SubsetResult
    from sleepfm.signals.prepare import PreparedRecording

PAGE_SECONDS = 60.0
# What follows the name of a line of events that a human scored.
SCORED = ", scored"


@dataclass(frozen=True)
class Result:
    """What one model reached on one split.

    ``labelled_epochs`` is how many labelled epochs its head was trained on; ``events`` compares what the model found with the
    scored events of the same recordings: events if ``located``, else runs of positive epochs. ``event_result`` says more of them,
    with intervals; ``sleep`` compares sleep statistics night by night; ``leakage`` says whether a person of the split was seen
    before; ``by_group`` has figures of groups of people, by split.
    """

    title: str
    model: str
    split: str
    evaluation: Evaluation
    labelled_epochs: int | None = None
    events: EventAgreement | None = None
    located: bool = False
    by_group: Mapping[str, Groups] = field(default_factory=dict)
    event_result: EventResult | None = None
    sleep: Mapping[str, PairedAgreement] = field(default_factory=dict)
    leakage: str = ""


@dataclass(frozen=True)
class NightExample:
    """One scored night and the signals it was scored from; ``held_out`` says in words what the models had
    seen of it.
    """

    score: NightScore
    prepared: PreparedRecording
    held_out: str = ""


@dataclass(frozen=True)
class StepCost:
    """What one step of the run took."""

    name: str
    seconds: float
    peak_bytes: int | None = None


@dataclass(frozen=True)
class ReportData:
    """Everything a run's report shows. A section whose field is empty is left out.

    Args:
        title: headline; ``summary``: one sentence under it; ``notes``: what a reader must know to read the
            figures right.
        results: one per model and split, in the order shown.
        traces: stage of training to its ``trace.jsonl``.
        night: the example night.
        ahi: agreement of the nights' AHI, of the models' own stages and events; ``ahi_missing`` says why there is none.
        subsets: accuracy by subset of modalities, one task.
        lineage: from shards to models.
        environment: name to value (versions, processor, seed …); ``configuration``: name to YAML text.
        steps: cost of each step.
    """

    title: str
    summary: str = ""
    results: Sequence[Result] = ()
    traces: Mapping[str, Path] = field(default_factory=dict)
    night: NightExample | None = None
    ahi: PairedAgreement | None = None
    ahi_missing: str = ""
    subsets: Sequence[SubsetResult] = ()
    lineage: Lineage | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    configuration: Mapping[str, str] = field(default_factory=dict)
    steps: Sequence[StepCost] = ()
    notes: Sequence[str] = ()


def build_report(out_dir: Path, data: ReportData) -> Path:
    """Write ``out_dir/index.html`` whole or not at all, and return its path.

    Raises:
        DatasetError: a trace that is not JSON lines with a ``step``.
    """
    traces = {name: loss_columns(path) for name, path in data.traces.items()}
    confusions = [charts.confusion_figure(r.evaluation.confusion, r.evaluation.classes) for r in data.results]
    page = _render(
        "report.html",
        data=data,
        losses=_image(charts.losses_figure(traces)) if traces else "",
        confusions=[_image(figure) for figure in confusions],
        by_group=[list(group_rows(result.by_group)) for result in data.results],
        few=FEW,
        night=_night_context(data.night) if data.night else None,
        lineage=Markup(to_svg(data.lineage)) if data.lineage else "",
        bland_altman=_image(bland_altman_figure(data.ahi)) if data.ahi is not None and data.ahi.n_nights else "",
        severities=SEVERITIES,
    )
    write_atomic(out_dir / "index.html", page)
    return out_dir / "index.html"


def night_page(path: Path, example: NightExample) -> None:
    """Write the report of one night to ``path``, whole or not at all."""
    write_atomic(path, _render("night.html", night=_night_context(example), title=example.score.record))


def loss_columns(path: Path) -> dict[str, NDArray[np.float64]]:
    """Columns of a training trace: ``step``, ``loss`` and the parts of the loss, nan at steps that had no such part.

    Raises:
        DatasetError: no rows, or rows without ``step`` and ``loss``.
    """
    rows = read_trace(path)
    if not rows or any("step" not in row or "loss" not in row for row in rows):
        raise DatasetError(f"{path}: expected the trace of a training run, rows with 'step' and 'loss'")
    columns = {name: [row[name] for row in rows] for name in ("step", "loss")}
    names = dict.fromkeys(part for row in rows for part in row.get("parts", {}))
    columns |= {part: [row.get("parts", {}).get(part, math.nan) for row in rows] for part in names}
    return {name: np.array(values, float) for name, values in columns.items()}


def figure_bytes(example: NightExample) -> bytes:
    """``night.png``: the whole night on one page."""
    score, prepared = example.score, example.prepared
    return plots.png(
        plots.night_figure(
            score.stages,
            score.hypnodensity,
            event_rows(example),
            title=score.record,
            staged="stage" in score.models,
            scored_stages=prepared.stage if _human_stages(example) else None,
            spo2=oximetry(prepared),
        )
    )


def oximetry(prepared: PreparedRecording) -> NDArray[np.float32] | None:
    """Oxygen saturation [E * 3000] in percent, nan where the sensor was off: an absent finger is not drawn as 0 %."""
    if "SPO2" not in prepared.channels:
        return None
    off = np.repeat(unusable(prepared.quality["SPO2"]), EPOCH_SAMPLES)
    return np.where(off, np.float32(np.nan), prepared.channels["SPO2"])


def event_rows(example: NightExample) -> dict[str, list[Event]]:
    """The lines of respiratory events that a picture shows, by name: what was scored by the models (events, or the runs of
    positive epochs that do for them), and by a human. A family that nobody scored has no line.
    """
    score, prepared = example.score, example.prepared
    rows: dict[str, list[Event]] = {}
    for kind in KINDS:
        for what, spans in (("", score.events), (", positive epochs", score.runs)):
            if kind in score.threshold and (kind in score.event_threshold) == (not what):
                rows[f"{kind}{what}"] = [span for span in spans if event_family(span.type) == kind]
        if _human_events(example, kind):
            rows[f"{kind}{SCORED}"] = [event for event in prepared.events if event_family(event.type) == kind]
    return rows


def choose_page(example: NightExample) -> float:
    """Second at which the page of signals starts, a whole epoch.

    The page shows the first apnea (else hypopnea) that a human scored and the model of its own family found; else the first
    event that the models found, else one that a human scored; else the middle of N2.
    """
    score, prepared = example.score, example.prepared
    scored = [e for e in prepared.events if event_family(e.type) in KINDS]
    scored.sort(key=lambda e: (event_family(e.type) != "apnea", e.onset))
    found = [*score.events, *score.runs]
    both = [e for e in scored if any(_overlap(e, f) and event_family(e.type) == event_family(f.type) for f in found)]
    n2 = np.flatnonzero(score.stages == STAGE_NAMES.index("N2"))
    onsets = [e.onset for e in (*both, *found, *scored)] + [EPOCH_SECONDS * n for n in n2[len(n2) // 2 :]]
    last = max(0.0, score.n_epochs * EPOCH_SECONDS - PAGE_SECONDS)
    return min(last, float(onsets[0] // EPOCH_SECONDS * EPOCH_SECONDS)) if onsets else 0.0


def _overlap(a: Event, b: Event) -> bool:
    return a.onset < b.onset + b.duration and b.onset < a.onset + a.duration


def _human_stages(example: NightExample) -> bool:
    return bool((example.prepared.stage >= 0).any())


def _human_events(example: NightExample, kind: str) -> bool:
    return bool((example.prepared.labels[kind] >= 0).any())


def _night_context(example: NightExample) -> dict[str, Any]:
    score, prepared = example.score, example.prepared
    start = choose_page(example)
    used = [name for name in prepared.channels if name in score.channels]
    return {
        "score": score,
        "breathing": score.breathing,
        "held_out": example.held_out,
        "overview": _embed(figure_bytes(example)),
        "page": _image(_page(example, start)),
        "stages": STAGE_NAMES,
        "used": used,
        "shown_only": [name for name in prepared.channels if name not in used],
        "human_stages": _human_stages(example),
        "human_events": any(_human_events(example, kind) for kind in KINDS),
    }


def _page(example: NightExample, start: float) -> Figure:
    prepared = example.prepared
    first, last = int(start * RATE_HZ), int((start + PAGE_SECONDS) * RATE_HZ)
    signals = {}
    for name, samples in prepared.channels.items():
        samples = samples[first:last]
        # Back from robust-scaled to the channel's unit.
        scaled = name in prepared.iqr and name != "SPO2"
        signals[name] = samples * prepared.iqr[name] + prepared.median[name] if scaled else samples
    epoch, page = int(start // EPOCH_SECONDS), Event(start, PAGE_SECONDS, "page")
    stages = dict.fromkeys(STAGE_NAMES[s] if s >= 0 else "unscored" for s in example.score.stages[epoch : epoch + 2])
    named = f", {' and '.join(stages)} by the model" if "stage" in example.score.models else ""
    rows = {name: [e for e in events if _overlap(e, page)] for name, events in event_rows(example).items()}
    return plots.page_figure(
        signals,
        CHANNEL_UNIT,
        start,
        PAGE_SECONDS,
        rows,
        title=f"{example.score.record}, epochs {epoch + 1} and {epoch + 2}{named}",
        used=example.score.channels,
        scored=[name for name in rows if name.endswith(SCORED)],
    )


def format_metric(metric: Metric | None, scale: float = 1.0) -> Markup:
    """``0.712`` with its interval in small type below; a dash where undefined."""
    if metric is None or math.isnan(metric.value):
        return Markup("–")
    digits = 3 if scale == 1.0 else 1
    text = Markup(f"{metric.value * scale:.{digits}f}")
    if not math.isnan(metric.ci_low):
        bounds = f"{metric.ci_low * scale:.{digits}f}–{metric.ci_high * scale:.{digits}f}"
        text += Markup(f' <span class="ci">{bounds}</span>')
    return text


def format_quantity(metric: Metric | None, digits: int = 1) -> Markup:
    """A figure with a unit, and its interval in small type; a dash where undefined."""
    if metric is None or math.isnan(metric.value):
        return Markup("–")
    text = Markup(f"{metric.value:.{digits}f}")
    if not math.isnan(metric.ci_low):
        text += Markup(f' <span class="ci">{metric.ci_low:.{digits}f} to {metric.ci_high:.{digits}f}</span>')
    return text


def format_number(value: float | None, digits: int = 1) -> str:
    """``value`` with ``digits`` decimals, a dash for nan or nothing."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _image(figure: Figure) -> Markup:
    return _embed(plots.png(figure))


def _embed(content: bytes) -> Markup:
    return Markup("data:image/png;base64,") + base64.b64encode(content).decode()


def _render(template: str, **context: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sleepfm.reports", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"metric": format_metric, "number": format_number, "quantity": format_quantity}
    return environment.get_template(template).render(version=__version__, **context)
