"""Draw pages of the synthetic cohort for the manual: ``python -m sleepfm.synthetic.page FOLDER``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sleepfm.console import exit_with
from sleepfm.constants import EPOCH_SECONDS, STAGE_NAMES, Stage
from sleepfm.errors import UsageError
from sleepfm.synthetic.drawn_events import Event, is_respiratory
from sleepfm.synthetic.layout import load_layout
from sleepfm.synthetic.night import Night, draw_night

SEED, HOURS = 1, 3
# One with a clear alpha rhythm and of average slow waves, so that the pages show the rules at work.
PAGE_SUBJECT = 15
RATES = {channel.label: channel.rate for channel in load_layout("shhs1").channels}
# Label and half the height of its lane, in the channel's unit.
NEURAL = (
    ("EEG", 100.0),
    ("EEG(sec)", 100.0),
    ("EOG(L)", 100.0),
    ("EOG(R)", 100.0),
    ("EMG", 20.0),
    ("ECG", 1.0),
)
BREATHING = (
    ("ECG", 1.0),
    ("EMG", 20.0),
    ("EEG", 75.0),
    ("NEW AIR", 90.0),
    ("THOR RES", 0.8),
    ("ABDO RES", 0.8),
    ("H.R.", 25.0),
    ("SaO2", 8.0),
)
COLOURS = {"hypopnea": "#e8a33d", "arousal": "#7a5ea8", "desaturation": "#3d7fb8"}
APNEA_COLOUR = "#c8443c"


def draw_page(night: Night, start: float, seconds: float, rows: Sequence[tuple[str, float]], title: str) -> Figure:
    """Signals of ``night`` from ``start`` on, one row each, with scored events shaded."""
    figure = Figure(figsize=(13.0, 0.95 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots(len(rows), 1, sharex=True)
    layout = load_layout("shhs1")
    signals = dict(zip(layout.signals, layout.draw(night, 0), strict=True))
    for axis, (label, half) in zip(axes, rows, strict=True):
        rate = RATES[label]
        values = signals[label][int(start * rate) : int((start + seconds) * rate)]
        middle = float(np.median(values)) if label in ("H.R.", "SaO2") else 0.0
        axis.plot(start + np.arange(len(values)) / rate, values, linewidth=0.6, color="#222222")
        axis.set_ylim(middle - half, middle + half)
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        for event in night.events:
            _shade(axis, event, start, seconds)
    axes[0].set_title(title, fontsize=10, loc="left")
    axes[-1].set_xlim(start, start + seconds)
    axes[-1].set_xticks(np.arange(start, start + seconds + 0.1, seconds / 30 if seconds <= 30 else 30))
    axes[-1].set_xlabel("s from the start of the recording", fontsize=8)
    return figure


def _shade(axis: object, event: Event, start: float, seconds: float) -> None:
    if event.onset < start + seconds and event.end > start:
        colour = COLOURS.get(event.kind, APNEA_COLOUR)
        axis.axvspan(event.onset, event.end, color=colour, alpha=0.15, linewidth=0)  # type: ignore[attr-defined]


def draw_hypnograms(nights: Sequence[Night]) -> Figure:
    """Hypnograms with apneas (red) and hypopneas (amber) below them."""
    figure = Figure(figsize=(13.0, 1.7 * len(nights)), layout="constrained")
    depth = {Stage.W: 0, Stage.REM: 1, Stage.N1: 2, Stage.N2: 3, Stage.N3: 4}
    for axis, night in zip(figure.subplots(len(nights), 1, sharex=True), nights, strict=True):
        hours = np.arange(len(night.stages)) * EPOCH_SECONDS / 3600
        axis.step(hours, [depth[Stage(code)] for code in night.stages], where="post", linewidth=0.9)
        for event in filter(is_respiratory, night.events):
            colour = COLOURS.get(event.kind, APNEA_COLOUR)
            axis.plot([event.onset / 3600] * 2, [4.4, 4.9], color=colour, linewidth=0.8)
        axis.set_yticks(range(5), ["W", "REM", "N1", "N2", "N3"], fontsize=7)
        axis.set_ylim(5.0, -0.3)
        events = sum(map(is_respiratory, night.events)) / max((night.stages > Stage.W).sum() / 120, 1e-9)
        axis.set_xlabel("hours" if night is nights[-1] else "", fontsize=8)
        axis.set_title(f"subject {night.subject.number}: AHI {events:.0f}", fontsize=8, loc="left")
    return figure


def typical_epoch(night: Night, stage: Stage) -> int:
    """An epoch of ``stage`` that no event touches: with the calmest eyes in W, the busiest in REM, else in
    the middle of the longest run.

    Raises:
        UsageError: events touch all epochs of ``stage``.
    """
    free = night.stages == stage
    for event in night.events:
        free[int(event.onset // EPOCH_SECONDS) : int(event.end // EPOCH_SECONDS) + 1] = False
    if not free.any():
        raise UsageError(f"subject {night.subject.number} has no quiet {STAGE_NAMES[stage]}")
    if stage in (Stage.W, Stage.REM):
        gaze = (night.signals["EOG(L)"] - night.signals["EOG(R)"]).reshape(len(free), -1).std(axis=1)
        return int(np.where(free, gaze if stage == Stage.REM else -gaze, -np.inf).argmax())
    edges = np.flatnonzero(np.diff(np.concatenate([[0], free.astype(int), [0]])))
    starts, stops = edges[::2], edges[1::2]
    longest = int(np.argmax(stops - starts))
    return int((starts[longest] + stops[longest]) // 2)


def main(argv: Sequence[str]) -> int:
    """Write the manual's pictures into the folder named."""
    if len(argv) != 1:
        raise UsageError("usage: python -m sleepfm.synthetic.page FOLDER")
    folder = Path(argv[0])
    nights = [draw_night(SEED, number, HOURS * 120) for number in range(6)]
    figures = {"synthetic-hypnograms": draw_hypnograms(nights)}
    night = draw_night(SEED, PAGE_SUBJECT, HOURS * 120)
    for stage in Stage:
        if stage != Stage.UNSCORED:
            epoch = typical_epoch(night, stage)
            title = f"{STAGE_NAMES[stage]}: subject {night.subject.number}, epoch {epoch + 1}"
            page = draw_page(night, epoch * EPOCH_SECONDS, EPOCH_SECONDS, NEURAL, title)
            figures[f"synthetic-{STAGE_NAMES[stage]}"] = page
    for kind in ("obstructive_apnea", "central_apnea", "hypopnea"):
        night, event = next((n, e) for n in nights for e in n.events if e.kind == kind and e.onset > 300.0)
        title = f"{kind.replace('_', ' ')} (red apnea, amber hypopnea, violet arousal, blue desaturation)"
        figures[f"synthetic-{kind}"] = draw_page(night, float(int(event.onset) - 45), 120.0, BREATHING, title)
    for name, figure in figures.items():
        FigureCanvasAgg(figure).print_png(folder / f"{name}.png", metadata={"Software": None})
        print(folder / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(exit_with(lambda: main(sys.argv[1:])))
