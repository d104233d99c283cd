"""Figures of a night in the field's habits: Wake on top, REM stressed, time in hours.

Drawing functions take an ``Axes``; the ``*_figure`` functions compose a page. Nothing here touches
matplotlib's global state.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from sleepfm.constants import EPOCH_SECONDS, RATE_HZ, Stage
from sleepfm.evaluation.events import event_family, runs
from sleepfm.signals.scorings.scoring import Event

# From the top of a hypnogram.
HYPNOGRAM_ORDER = (Stage.W, Stage.REM, Stage.N1, Stage.N2, Stage.N3)
STAGE_COLOURS = {
    Stage.W: "#e0a83e",
    Stage.REM: "#c0392b",
    Stage.N1: "#a9cce3",
    Stage.N2: "#5499c7",
    Stage.N3: "#1f4e79",
}
EVENT_COLOURS = {"apnea": "#8e44ad", "hypopnea": "#16a085", "desaturation": "#7f8c8d", "arousal": "#d4ac0d"}
INK, FAINT, UNUSED = "#22303c", "#d5dbe1", "#9aa4ae"


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def draw_hypnogram(axes: Axes, stages: ArrayLike, label: str = "") -> None:
    """Step line of ``stages`` [E] with a bar on every REM period; unscored epochs leave a gap, which is shaded."""
    stage = np.asarray(stages)
    height = {int(s): len(HYPNOGRAM_ORDER) - 1 - row for row, s in enumerate(HYPNOGRAM_ORDER)}
    level = np.array([height.get(int(s), np.nan) for s in stage], float)
    hours = np.arange(len(stage) + 1) * EPOCH_SECONDS / 3600
    axes.step(hours, np.append(level, level[-1:]), where="post", color=INK, linewidth=0.9)
    rem = np.where(stage == Stage.REM, height[Stage.REM], np.nan)
    for start, end in runs(np.isfinite(rem)):
        axes.plot(hours[[start, end]], [height[Stage.REM]] * 2, color=STAGE_COLOURS[Stage.REM], linewidth=4)
    for start, end in runs(stage < 0):
        axes.axvspan(hours[start], hours[end], color=FAINT, alpha=0.6, linewidth=0)
    axes.set_yticks(range(len(HYPNOGRAM_ORDER)), [s.name for s in reversed(HYPNOGRAM_ORDER)])
    axes.set_ylim(-0.5, len(HYPNOGRAM_ORDER) - 0.5)
    _night_axis(axes, len(stage), label)


def draw_hypnodensity(axes: Axes, density: NDArray[np.floating], label: str = "") -> None:
    """Stacked probability [E, 5] of the stages, Wake on top; nothing in unscored epochs."""
    hours = np.arange(len(density) + 1) * EPOCH_SECONDS / 3600
    rows = list(reversed(HYPNOGRAM_ORDER))
    steps = np.nan_to_num(np.concatenate([density, density[-1:]]))
    axes.stackplot(
        hours[: len(steps)], [steps[:, s] for s in rows], colors=[STAGE_COLOURS[s] for s in rows], linewidth=0, step="post"
    )
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "½", "1"])
    _night_axis(axes, len(density), label)


def draw_events(axes: Axes, rows: Mapping[str, Sequence[Event]], n_epochs: int, label: str = "") -> None:
    """One line of bars per entry of ``rows``, first on top; a bar is at least half a pixel wide."""
    for row, events in enumerate(reversed(list(rows.values()))):
        for event in events:
            axes.broken_barh(
                [(event.onset / 3600, max(event.duration, 5.0) / 3600)],
                (row - 0.35, 0.7),
                color=EVENT_COLOURS[event_family(event.type)],
                linewidth=0.3,
            )
    axes.set_yticks(range(len(rows)), list(reversed(list(rows))))
    axes.set_ylim(-0.6, len(rows) - 0.4)
    _night_axis(axes, n_epochs, label)


def night_figure(
    stages: ArrayLike,
    density: NDArray[np.floating],
    rows: Mapping[str, Sequence[Event]],
    *,
    title: str,
    staged: bool = True,
    scored_stages: ArrayLike | None = None,
    spo2: NDArray[np.floating] | None = None,
) -> Figure:
    """The whole night on one page: hypnodensity, hypnogram over the human one, events, oxygen saturation.

    Args:
        stages: [E] scored by the model, -1 unscored.
        density: [E, 5] probabilities, nan where unscored.
        rows: what each line of the events' panel is called, and its events; no panel without a line.
        staged: whether a model scored stages; its panels are left out if not.
        scored_stages: the human hypnogram where there is one.
        spo2: [E * 3000] oxygen saturation in percent.
    """
    n_epochs = len(np.asarray(stages))
    panels = ["density", "model"] if staged else []
    panels += ["human"] if scored_stages is not None else []
    panels += ["events"] if rows else []
    panels += ["spo2"] if spo2 is not None else []
    ratios = {"density": 1.5, "model": 1.5, "human": 1.5, "events": 1.1, "spo2": 0.9}
    figure = new_figure(11, 0.6 + 1.05 * sum(ratios[panel] for panel in panels))
    layout = {"height_ratios": [ratios[panel] for panel in panels]}
    column = np.atleast_1d(figure.subplots(len(panels), 1, sharex=True, gridspec_kw=layout))
    axes = dict(zip(panels, column, strict=True))
    if staged:
        draw_hypnodensity(axes["density"], density, "hypnodensity")
        draw_hypnogram(axes["model"], stages, "model")
    if scored_stages is not None:
        draw_hypnogram(axes["human"], scored_stages, "scored")
    if rows:
        draw_events(axes["events"], rows, n_epochs, "events")
    if spo2 is not None:
        per_epoch = spo2[: n_epochs * EPOCH_SECONDS * RATE_HZ].reshape(n_epochs, -1)[:, :: RATE_HZ * 5]
        seconds = np.arange(per_epoch.size) * 5 / 3600
        axes["spo2"].plot(seconds, per_epoch.reshape(-1), color="#b03a2e", linewidth=0.6)
        _night_axis(axes["spo2"], n_epochs, "SpO₂ (%)")
    axes[panels[-1]].set_xlabel("hours from start of recording")
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    figure.legend(
        handles=[Patch(color=STAGE_COLOURS[s], label=s.name) for s in HYPNOGRAM_ORDER],
        loc="upper right",
        ncols=5,
        frameon=False,
        fontsize=8,
    )
    return figure


def page_figure(
    signals: Mapping[str, NDArray[np.floating]],
    units: Mapping[str, str],
    start: float,
    seconds: float,
    rows: Mapping[str, Sequence[Event]],
    *,
    title: str,
    used: Collection[str],
    scored: Collection[str] = (),
) -> Figure:
    """One page of signals [seconds * 100] in their units over lines of events, which also shade the signals.

    Args:
        signals: canonical channel to the page's samples at 100 Hz.
        units: canonical channel to its unit, empty for none.
        start: second of the recording at which the page starts.
        rows: what each line of events is called, and its events; those in ``scored`` are a human's and shade more.
        used: channels that a model was given; the others are grey.
    """
    names = list(signals)
    figure = new_figure(11, 0.9 + 0.62 * (len(names) + 1))
    axes = np.atleast_1d(figure.subplots(len(names) + 1, 1, sharex=True))
    figure.align_ylabels(axes)
    time = start + np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    for axis, name in zip(axes, names, strict=False):
        samples = signals[name]
        colour = INK if name in used else UNUSED
        axis.plot(time[: len(samples)], samples, color=colour, linewidth=0.55)
        low, high = _limits(samples)
        axis.set_ylim(low, high)
        axis.set_yticks([low + 0.15 * (high - low), high - 0.15 * (high - low)])
        axis.yaxis.set_major_formatter("{x:.3g}")
        unit = f"\n({units[name].replace('uV', 'µV')})" if units.get(name) else ""
        unit += "" if name in used else "\nnot used"
        axis.set_ylabel(f"{name}{unit}", rotation=0, ha="right", va="center", fontsize=8, color=colour)
        quiet(axis)
    track = axes[-1]
    for row, (label, events) in enumerate(reversed(list(rows.items()))):
        for event in events:
            colour = EVENT_COLOURS[event_family(event.type)]
            left, right = max(event.onset, start), min(event.onset + event.duration, start + seconds)
            track.broken_barh([(left, right - left)], (row - 0.38, 0.76), color=colour)
            # The line says the family; only a kind of its own is worth saying again.
            named = event.type != label.partition(",")[0] and right - left > 6
            text = event.type.replace("_", " ") if named else ""
            track.text((left + right) / 2, row, text, ha="center", va="center", fontsize=7, color="white")
            for axis in axes[:-1]:
                axis.axvspan(left, right, color=colour, alpha=0.20 if label in scored else 0.07, linewidth=0)
    track.set_yticks(range(len(rows)), list(reversed(list(rows))), fontsize=7)
    track.set_ylim(-0.6, max(len(rows), 1) - 0.4)
    quiet(track)
    track.set_xlim(start, start + seconds)
    track.set_xlabel("seconds from start of recording")
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    return figure


def new_figure(width: float, height: float) -> Figure:
    """An empty page of ``width`` by ``height`` inches."""
    return Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")


def _night_axis(axes: Axes, n_epochs: int, label: str) -> None:
    axes.set_xlim(0, max(n_epochs, 1) * EPOCH_SECONDS / 3600)
    if label:
        axes.set_ylabel(label, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    quiet(axes)


def quiet(axes: Axes) -> None:
    """Thin, unobtrusive axes."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#99a3ad")
    axes.tick_params(colors=INK, labelsize=7, length=2)
    axes.set_axisbelow(True)


def _limits(samples: NDArray[np.floating]) -> tuple[float, float]:
    finite = samples[np.isfinite(samples)]
    if not len(finite):
        return -1.0, 1.0
    low, high = np.percentile(finite, [0.2, 99.8])
    margin = 0.15 * (high - low) or 1.0
    return float(low - margin), float(high + margin)
