"""Pictures of agreement between paired measurements."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from sleepfm.evaluation.paired import PairedAgreement
from sleepfm.reports.plots import INK, new_figure, quiet


def bland_altman_figure(found: PairedAgreement) -> Figure:
    """Difference of both against their mean, a point a night, with bias and limits of agreement (Bland and Altman 1986)."""
    theirs, mine = np.asarray(found.reference), np.asarray(found.estimate)
    figure = new_figure(4.6, 3.2)
    axes = figure.subplots()
    axes.scatter((theirs + mine) / 2, mine - theirs, s=16, color=INK, alpha=0.7, linewidths=0)
    for value, style in ((found.bias.value, "-"), (found.low.value, "--"), (found.high.value, "--")):
        if np.isfinite(value):
            axes.axhline(value, color=INK, linewidth=0.9, linestyle=style)
            axes.annotate(f"{value:.1f}", (1.0, value), xycoords=("axes fraction", "data"), fontsize=7, ha="right", va="bottom")
    unit = f" ({found.unit})" if found.unit else ""
    axes.set_xlabel(f"mean of model and human{unit}", fontsize=8)
    axes.set_ylabel(f"model less human{unit}", fontsize=8)
    axes.tick_params(labelsize=7)
    quiet(axes)
    return figure
