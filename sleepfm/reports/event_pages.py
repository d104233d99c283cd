"""Every apnea and hypopnea as a small picture of flow, belts and SpO2 with its arousal, on pages that one leafs through."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SAMPLES, RATE_HZ
from sleepfm.evaluation.events import event_family
from sleepfm.reports.night_facts import EventFact, NightExample, event_facts
from sleepfm.reports.svg import bars, trace
from sleepfm.signals.quality import unusable
from sleepfm.signals.scorings.scoring import Event

# Seconds before and after an event: breathing before it, and the blood that reaches the finger after it.
BEFORE, AFTER, LONGEST = 25, 45, 240
PER_PAGE = 24
# Values a second of flow and belts (0.05 to 1 Hz), coarser where a night has very many events, and the bytes that all may take.
RATES = (4, 2, 1)
BUDGET = 1_600_000
_BREATHING = {"AIRFLOW": "flow", "THORAX": "chest", "ABDOMEN": "abdom."}
_ROW, _FOOT = 26, 4
# Bytes that a step of a trace takes, on average.
_BYTES_A_VALUE = 4.2
# SpO2 changes slowly; of each two seconds the first is drawn.
_OXYGEN_STEP = 2


@dataclass(frozen=True)
class Thumbnail:
    """An event with its picture; ``number`` counts from 1 in the order of confidence."""

    number: int
    fact: EventFact
    picture: Markup


@dataclass(frozen=True)
class EventPages:
    """Pages of thumbnails, the surest events first; ``rows`` are what a picture shows from above."""

    pages: tuple[tuple[Thumbnail, ...], ...]
    rows: tuple[str, ...]

    @property
    def count(self) -> int:
        """Events on all pages."""
        return sum(map(len, self.pages))


def event_pages(example: NightExample) -> EventPages:
    """The pages of a night's events (of runs of positive epochs where the models tell no events)."""
    facts = event_facts(example)
    breathing = [name for name in _BREATHING if name in example.prepared.channels]
    rows = [_BREATHING[name] for name in breathing]
    oxygen = example.score.saturation
    if oxygen is not None and np.isfinite(oxygen).any():
        rows.append("SpO₂")
    else:
        oxygen = None
    rate = _rate(facts, len(breathing))
    signals = [_flow(example, name, rate) for name in breathing]
    marks = _Marks(example)
    shown = [
        Thumbnail(number, fact, _draw(fact, signals, oxygen, rate, marks, rows)) for number, fact in enumerate(facts, start=1)
    ]
    pages = tuple(tuple(shown[start : start + PER_PAGE]) for start in range(0, len(shown), PER_PAGE))
    return EventPages(pages, tuple(rows))


class _Marks:
    """Arousals and desaturations of a night, by onset."""

    def __init__(self, example: NightExample) -> None:
        self.arousals = [event for event in example.score.events if event.type == "arousal"]
        self.falls = [fall.as_event() for fall in example.score.desaturations]


def _rate(facts: Sequence[EventFact], channels: int) -> int:
    """The finest of :data:`RATES` at which all pictures stay within :data:`BUDGET`, else the coarsest."""
    seconds = sum(min(fact.event.duration + BEFORE + AFTER, LONGEST) for fact in facts)
    return next((rate for rate in RATES if seconds * rate * channels * _BYTES_A_VALUE <= BUDGET), RATES[-1])


def _flow(example: NightExample, name: str, rate: int) -> NDArray[np.float32]:
    """A breathing channel at ``rate`` values a second, nan where it is unusable."""
    night = example.prepared
    step = RATE_HZ // rate
    samples = night.channels[name][::step].copy()
    samples[np.repeat(unusable(night.quality[name]), EPOCH_SAMPLES // step)[: len(samples)]] = np.nan
    return samples


def _draw(
    fact: EventFact,
    signals: Sequence[NDArray[np.float32]],
    oxygen: NDArray[np.float64] | None,
    rate: int,
    marks: _Marks,
    rows: Sequence[str],
) -> Markup:
    """One event within its minute or two. A unit across is ``1 / rate`` s; the page stretches it to its column."""
    event = fact.event
    start = max(0, math.floor(event.onset) - BEFORE)
    stop = math.ceil(min(event.onset + event.duration + AFTER, start + LONGEST))
    width, height = (stop - start) * rate, _ROW * len(rows) + _FOOT
    parts = [f'<path class="e-{event_family(event.type)} behind" d="{_bars([event], start, stop, rate, 0, height)}"/>']
    for row, samples in enumerate(signals):
        shape = trace(_shares(samples[start * rate : stop * rate]), _ROW - 2)
        parts.append(f'<path class="t" transform="translate(0 {row * _ROW + 1})" d="{shape}"/>' if shape else "")
    told = ""
    if oxygen is not None:
        values = oxygen[start:stop]
        top = _ROW * len(signals) + 1
        if np.isfinite(values).any():
            lowest, highest = float(np.nanmin(values)), float(np.nanmax(values))
            floor, ceiling = lowest - 1, max(highest, lowest + 6)
            shape = trace((values[::_OXYGEN_STEP] - floor) / (ceiling - floor), _ROW - 4)
            parts.append(f'<path class="t o" transform="translate(0 {top})scale({rate * _OXYGEN_STEP} 1)" d="{shape}"/>')
            told = f", SpO₂ {highest:.0f} to {lowest:.0f} %"
    within = [e for e in marks.arousals if e.onset < stop and e.onset + e.duration > start]
    parts.append(f'<path class="e-arousal" d="{_bars(within, start, stop, rate, height - _FOOT, _FOOT)}"/>' if within else "")
    alt = f"{fact.name} of {event.duration:.0f} s in {stop - start} s of {', '.join(rows)}{told}"
    head = f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" aria-label="{alt}">'
    return Markup(head + "".join(parts) + "</svg>")


def _bars(events: Sequence[Event], start: int, stop: int, rate: int, y: float, height: float) -> str:
    spans = [(max(e.onset, start) - start, min(e.onset + e.duration, stop) - start) for e in events]
    return bars([(left * rate, right * rate) for left, right in spans], y, height)


def _shares(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """Samples as shares of the range that they span, so that the breathing before an event is the measure of it."""
    values = samples.astype(float)
    known = np.sort(values[np.isfinite(values)])
    if not len(known):
        return values
    # But for the last per cent at either end.
    low, high = known[len(known) // 100], known[-1 - len(known) // 100]
    return (values - low) / (high - low or 1.0)
