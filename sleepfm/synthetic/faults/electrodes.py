"""Which electrodes and sensors lose contact when, which amplifiers reach their rails, and when the oximeter has no reading."""

from __future__ import annotations

import numpy as np

from sleepfm.synthetic.faults.draft import Draft
from sleepfm.synthetic.faults.rates import ElectrodeLost, ElectrodeOff, Stretches

SATURATED = ("C3", "C4", "E1", "E2", "CHIN", "ECG", "FLOW")
# Share of dropouts that read 0; the others read far too low.
NO_FINGER = 0.7
LOW_PERCENT = (1.0, 45.0)


def draw_electrodes_off(draft: Draft, rate: ElectrodeOff) -> None:
    """Electrodes off for minutes."""
    rng = draft.rng("electrode_off")
    for first, stop in rate.draw(rng, draft.seconds):
        name, form = _which(rng, rate)
        draft.note("electrode_off", first, stop - first, name, form=form)


def draw_electrode_lost(draft: Draft, rate: ElectrodeLost, off: ElectrodeOff) -> None:
    """An electrode off for the rest of the night."""
    rng = draft.rng("electrode_lost")
    if rate.happens(rng):
        first = int(draft.seconds * rng.uniform(rate.earliest, rate.latest))
        name, form = _which(rng, off)
        draft.note("electrode_lost", first, draft.seconds - first, name, form=form)


def _which(rng: np.random.Generator, off: ElectrodeOff) -> tuple[str, str]:
    weights = np.array(list(off.weights.values()))
    name = str(rng.choice(list(off.weights), p=weights / weights.sum()))
    return name, "open input" if rng.random() < off.open_input else "hum"


def draw_saturation(draft: Draft, rate: Stretches) -> None:
    """An amplifier at its rails: too much gain, or an offset that jumps from rail to rail."""
    rng = draft.rng("saturation")
    for first, stop in rate.draw(rng, draft.seconds):
        draft.note("saturation", first, stop - first, str(rng.choice(SATURATED)), form=str(rng.choice(("gain", "rails"))))


def draw_spo2_dropouts(draft: Draft, rate: Stretches) -> None:
    """Time without a reading: 0, or numbers far too low. Desaturations in it are not scored."""
    rng = draft.rng("spo2_dropout")
    for first, stop in rate.draw(rng, draft.seconds):
        length = stop - first
        zero = rng.random() < NO_FINGER
        draft.part("SPO2", first, stop)[:] = 0.0 if zero else np.round(rng.uniform(*LOW_PERCENT, length))
        draft.part("PULSE", first, stop)[:] = 0.0
        draft.note("spo2_dropout", first, length, "SPO2", "PULSE", form="zero" if zero else "low")
        draft.events = [
            event for event in draft.events if event.kind != "desaturation" or event.end <= first or event.onset >= stop
        ]
