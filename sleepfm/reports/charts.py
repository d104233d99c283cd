"""Figures of results and of training: confusion matrices and loss curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from sleepfm.reports.plots import INK, new_figure, quiet


def confusion_figure(confusion: ArrayLike, classes: Sequence[str]) -> Figure:
    """Row-normalised confusion matrix with counts; rows are truth, and one without a count has no shares."""
    counts = np.asarray(confusion, float)
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    side = 1.3 + 0.62 * len(classes)
    figure = new_figure(side, side)
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(classes)):
        for column in range(len(classes)):
            axes.text(
                column,
                row,
                f"{100 * share[row, column]:.0f}%\n{counts[row, column]:.0f}" if totals[row] else "–",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if share[row, column] > 0.55 else INK,
            )
    axes.set_xticks(range(len(classes)), list(classes), fontsize=8)
    axes.set_yticks(range(len(classes)), list(classes), fontsize=8)
    axes.set_xlabel("model", fontsize=8)
    axes.set_ylabel("scored", fontsize=8)
    return figure


def losses_figure(traces: Mapping[str, Mapping[str, NDArray[np.floating]]]) -> Figure:
    """Small multiples of loss against step, one panel a stage of training.

    ``traces`` holds per stage the arrays ``step`` and one for each part of the loss; ``loss`` is drawn heavy.
    """
    columns = min(4, max(1, len(traces)))
    rows = -(-len(traces) // columns) if traces else 1
    figure = new_figure(11, 0.5 + 2.1 * rows)
    grid = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).reshape(-1)
    for axis in grid[len(traces) :]:
        axis.set_visible(False)
    for axis, (name, trace) in zip(grid, traces.items(), strict=False):
        for part, values in trace.items():
            if part == "step":
                continue
            whole = part == "loss"
            # Guards are not of every step; a loss that is not a number is a gap.
            shown = np.isfinite(values) | whole
            axis.plot(
                trace["step"][shown],
                values[shown],
                linewidth=1.4 if whole else 0.8,
                color=INK if whole else None,
                label=part,
            )
        axis.set_title(name, fontsize=9, color=INK, loc="left")
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=7)
        quiet(axis)
        if len(trace) > 2:
            axis.legend(fontsize=6, frameon=False)
    for axis in grid[-columns:]:
        axis.set_xlabel("step", fontsize=8)
    return figure
