"""One page of signals with the events in it: a minute on a wide page, half of it on a narrow one."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from sleepfm.constants import CHANNEL_UNIT, EPOCH_SECONDS, RATE_HZ, STAGE_NAMES
from sleepfm.evaluation.breathing import KINDS
from sleepfm.evaluation.events import event_family
from sleepfm.reports.night_drawing import row_name
from sleepfm.reports.night_facts import SCORED, NightExample, event_rows
from sleepfm.reports.svg import NARROW, Picture, Scale, bars, for_both, trace
from sleepfm.signals.scorings.scoring import Event

PAGE_SECONDS = 60.0
_ROW = 44


def signal_page(example: NightExample) -> Markup:
    """The picture of :func:`draw_page` for a wide and for a narrow page."""
    start = choose_page(example)
    return for_both(lambda width: draw_page(example, width, start, PAGE_SECONDS / 2 if width == NARROW else PAGE_SECONDS))


def draw_page(example: NightExample, width: int, start: float, seconds: float) -> Picture:
    """Every channel from ``start`` on for ``seconds``, in its unit; those that no model was given are dashed and say so."""
    night, score = example.prepared, example.score
    left = 92 if width == NARROW else 130
    rows = {
        name: [e for e in events if overlap(e, Event(start, seconds, "page"))] for name, events in event_rows(example).items()
    }
    height = 24 + _ROW * len(night.channels) + 18 * len(rows) + 12
    told = "; ".join(f"{name}: {len(events)}" for name, events in rows.items()) or "no events looked for"
    begin = example.clock(start) or f"{start:.0f} s from the start"
    picture = Picture(width, height, f"{seconds:.0f} s of {len(night.channels)} signals from {begin}. {told}.")
    x = Scale(start, start + seconds, left, width - 6)
    for row, (name, events) in enumerate(rows.items()):
        y = 24 + _ROW * len(night.channels) + 18 * row
        picture.text(left - 6, y + 12, row_name(name, width == NARROW), "small", "end")
        spans = [(x(max(e.onset, start)), x(min(e.onset + e.duration, start + seconds))) for e in events]
        shade = bars(spans, 22, y - 22)
        picture.path(shade, f"e-{event_family(name.removesuffix(SCORED).partition(',')[0])} faint")
        picture.path(bars(spans, y + 2, 12), f"e-{event_family(name.removesuffix(SCORED).partition(',')[0])}")
    for second in np.arange(0, seconds + 1, 10 if width != NARROW else 15).tolist():
        label = (example.clock(start + second) if not second else "") or f"+{second:.0f} s"
        picture.text(x(start + second), 12, label, "small", "start" if not second else "end" if second == seconds else "middle")
        picture.line(x(start + second), 20, x(start + second), height - 10, "grid")
    for row, name in enumerate(night.channels):
        used = name in score.channels
        samples = _in_unit(example, name)[int(start * RATE_HZ) : int((start + seconds) * RATE_HZ)]
        low, high = _limits(samples)
        top = 24 + _ROW * row
        columns = _extremes(samples, int(x.stop - x.start))
        shape = trace((columns - low) / (high - low), _ROW - 6)
        across = (x.stop - x.start) / max(len(columns) - 1, 1)
        picture.path(shape, f"t{'' if used else ' unused'}", f"translate({x.start:g} {top + 2}) scale({across:.4f} 1)")
        unit = CHANNEL_UNIT.get(name, "").replace("uV", "µV")
        picture.text(left - 6, top + 16, name, "small strong" if used else "small", "end")
        picture.text(left - 6, top + 29, f"{high - low:.3g} {unit}" if unit else "", "small", "end")
        if not used:
            picture.text(left - 6, top + (29 if not unit else 41), "not used", "small", "end")
    return picture


def page_caption(example: NightExample) -> str:
    """Which page it is, and the stages of its epochs by the model."""
    start = choose_page(example)
    epoch = int(start // EPOCH_SECONDS)
    stages = dict.fromkeys(STAGE_NAMES[s] if s >= 0 else "unscored" for s in example.score.stages[epoch : epoch + 2].tolist())
    named = f", {' and '.join(stages)} by the model" if "stage" in example.score.models else ""
    return f"Epochs {epoch + 1} and {epoch + 2}{named}"


def choose_page(example: NightExample) -> float:
    """Second at which the page of signals starts, a whole epoch.

    The page shows the first apnea (else hypopnea) that a human scored and the model of its own family found; else the first
    event that the models found, else one that a human scored; else the middle of N2.
    """
    score, prepared = example.score, example.prepared
    scored = [e for e in prepared.events if event_family(e.type) in KINDS]
    scored.sort(key=lambda e: (event_family(e.type) != "apnea", e.onset))
    found = [*score.events, *score.runs]
    both = [e for e in scored if any(overlap(e, f) and event_family(e.type) == event_family(f.type) for f in found)]
    n2 = np.flatnonzero(score.stages == STAGE_NAMES.index("N2"))
    onsets = [e.onset for e in (*both, *found, *scored)] + [EPOCH_SECONDS * n for n in n2[len(n2) // 2 :]]
    last = max(0.0, score.n_epochs * EPOCH_SECONDS - PAGE_SECONDS)
    return min(last, float(onsets[0] // EPOCH_SECONDS * EPOCH_SECONDS)) if onsets else 0.0


def overlap(a: Event, b: Event) -> bool:
    """Whether two events have a moment in common."""
    return a.onset < b.onset + b.duration and b.onset < a.onset + a.duration


def _in_unit(example: NightExample, name: str) -> NDArray[np.floating]:
    """Samples of a channel, back from robust-scaled to its unit."""
    night = example.prepared
    samples = night.channels[name]
    scaled = name in night.iqr and name != "SPO2"
    return samples * night.iqr[name] + night.median[name] if scaled else samples


def _extremes(samples: NDArray[np.floating], columns: int) -> NDArray[np.float64]:
    """Lowest and highest of each of ``columns``, one after the other; the samples themselves where they are no more."""
    if len(samples) <= 2 * columns:
        return samples.astype(float)
    size = -(-len(samples) // columns)
    padded = np.concatenate([samples, np.repeat(samples[-1:], -len(samples) % size)]).reshape(-1, size)
    return np.stack([padded.min(axis=1), padded.max(axis=1)], axis=1).reshape(-1).astype(float)


def _limits(samples: NDArray[np.floating]) -> tuple[float, float]:
    finite = samples[np.isfinite(samples)]
    if not len(finite):
        return -1.0, 1.0
    low, high = np.percentile(finite, [0.2, 99.8])
    margin = 0.15 * (high - low) or 1.0
    return float(low - margin), float(high + margin)
