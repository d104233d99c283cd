"""A recorder that runs on after the electrodes are off."""

from __future__ import annotations

import numpy as np

from sleepfm.constants import EPOCH_SECONDS, Stage
from sleepfm.synthetic.faults.draft import Draft
from sleepfm.synthetic.faults.rates import LeftRunning
from sleepfm.synthetic.faults.scorer import blank_code
from sleepfm.synthetic.layout import SOURCES

# What is no electrode or sensor on the body; the oximeter without a finger reads 0.
MONITORS = ("SPO2", "PULSE", "POSITION", "LIGHT", "NOTHING")
# An input hums or is silent by its cable, all of them in one place.
OPEN_INPUT = 0.5


def draw_left_running(draft: Draft, rate: LeftRunning) -> None:
    """Add whole epochs after the night: no one is there, no stage is true, the scorer calls them wake, unscored or nothing."""
    rng = draft.rng("left_running")
    if not rate.happens(rng):
        return
    epochs = max(1, rate.length(rng, draft.seconds) // EPOCH_SECONDS)
    seconds = epochs * EPOCH_SECONDS
    form = "open input" if rng.random() < OPEN_INPUT else "hum"
    for name, (label, hz) in SOURCES.items():
        level = {"LIGHT": 1.0, "POSITION": float(draft.signals[label][-1])}.get(name, 0.0)
        draft.signals[label] = np.concatenate([draft.signals[label], np.full(seconds * hz, level, np.float32)])
    code = int(Stage.W) if rng.random() < rate.scored_wake else blank_code(draft, rng, at_end=True)
    draft.stages = np.concatenate([draft.stages, np.full(epochs, Stage.UNSCORED, np.int8)])
    draft.codes = np.concatenate([draft.codes, np.full(epochs, code, np.int8)])
    off = [name for name in SOURCES if name not in MONITORS]
    draft.note("left_running", draft.seconds, seconds, *off, "SPO2", "PULSE", form=form, code=code)
