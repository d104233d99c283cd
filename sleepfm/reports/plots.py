"""The night as one raster picture (``night.png``), in the field's habits: Wake on top, REM stressed, time in hours.

Drawing functions take an ``Axes``; nothing here touches matplotlib's global state. The pages draw their own pictures
(:mod:`sleepfm.reports.svg`), which a phone and a dark page need otherwise.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from sleepfm.constants import EPOCH_SECONDS, Stage
from sleepfm.evaluation.breathing import KINDS
from sleepfm.evaluation.events import event_family, runs
from sleepfm.inference.night_score import NightScore
from sleepfm.reports.night_drawing import HYPNOGRAM_ORDER
from sleepfm.reports.night_facts import NightExample, event_rows, found_rows, human_stages
from sleepfm.reports.palette import EVENT_COLOURS, LIGHT, STAGE_COLOURS
from sleepfm.signals.scorings.scoring import Event

INK, FAINT, EDGE = (LIGHT[name] for name in ("ink", "line", "edge"))


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def night_png(example: NightExample) -> bytes:
    """``night.png``: the whole night on one page."""
    score = example.score
    return png(
        night_figure(
            score.stages,
            score.hypnodensity,
            event_rows(example),
            title=score.record,
            staged="stage" in score.models,
            scored_stages=example.prepared.stage if human_stages(example) else None,
            spo2=score.saturation,
        )
    )


def plot_score(score: NightScore) -> Figure:
    """What the models say about a night, on one page; a human scoring is not among it."""
    rows: dict[str, Sequence[Event]] = {}
    for kind in KINDS:
        rows |= found_rows(score, kind)
    return night_figure(
        score.stages, score.hypnodensity, rows, title=score.record, staged="stage" in score.models, spo2=score.saturation
    )


def draw_hypnogram(axes: Axes, stages: ArrayLike, label: str = "") -> None:
    """Step line of ``stages`` [E] with a bar on every REM period; unscored epochs leave a gap, which is shaded."""
    stage = np.asarray(stages)
    height = {int(s): len(HYPNOGRAM_ORDER) - 1 - row for row, s in enumerate(HYPNOGRAM_ORDER)}
    level = np.array([height.get(int(s), np.nan) for s in stage], float)
    hours = np.arange(len(stage) + 1) * EPOCH_SECONDS / 3600
    axes.step(hours, np.append(level, level[-1:]), where="post", color=INK, linewidth=0.9)
    rem = np.where(stage == Stage.REM, height[Stage.REM], np.nan)
    for start, end in runs(np.isfinite(rem)):
        axes.plot(hours[[start, end]], [height[Stage.REM]] * 2, color=STAGE_COLOURS["REM"], linewidth=4)
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
        hours[: len(steps)], [steps[:, s] for s in rows], colors=[STAGE_COLOURS[s.name] for s in rows], linewidth=0, step="post"
    )
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "½", "1"])
    _night_axis(axes, len(density), label)


def draw_events(axes: Axes, rows: Mapping[str, Sequence[Event]], n_epochs: int, label: str = "") -> None:
    """One line of bars per entry of ``rows``, first on top; a bar is at least half a pixel wide."""
    for row, events in enumerate(reversed(list(rows.values()))):
        spans = [(event.onset / 3600, max(event.duration, 5.0) / 3600) for event in events]
        if spans:
            axes.broken_barh(spans, (row - 0.35, 0.7), color=EVENT_COLOURS[event_family(events[0].type)], linewidth=0.3)
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
        spo2: [30 E] oxygen saturation of every second in percent, nan where it was not scored.
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
        axes["spo2"].plot(np.arange(0, len(spo2), 5) / 3600, spo2[::5], color=INK, linewidth=0.6)
        _night_axis(axes["spo2"], n_epochs, "SpO₂ (%)")
    axes[panels[-1]].set_xlabel("hours from start of recording")
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    figure.legend(
        handles=[Patch(color=STAGE_COLOURS[s.name], label=s.name) for s in HYPNOGRAM_ORDER],
        loc="upper right",
        ncols=5,
        frameon=False,
        fontsize=8,
    )
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
    axes.spines[["left", "bottom"]].set_color(EDGE)
    axes.tick_params(colors=INK, labelsize=7, length=2)
    axes.set_axisbelow(True)
