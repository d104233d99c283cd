"""Signals of a recording whose electrodes have no contact or whose amplifiers are at their rails.

This is done to the signals as recorded, not to the electrodes: whatever a signal is subtracted from, it says nothing where one
of its electrodes is off, and its rails are the physical limits of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from sleepfm.synthetic.faults.truth import Fault
from sleepfm.synthetic.layout import Layout, LayoutSignal
from sleepfm.synthetic.noise import Floats, drift
from sleepfm.synthetic.subject import Subject

# Faults that take a signal's place, in the order in which one wins over the other.
REPLACING = ("saturation", "electrode_off", "electrode_lost", "left_running")
MAINS_HZ = 60.0
HUM_UV = (80.0, 400.0)
DRIFT_UV, DRIFT_SECONDS = 400.0, 20.0
# An open input that is shielded: less than a step of the converter.
OPEN_UV = 0.3
MICROVOLTS = {"uV": 1.0, "mV": 1e-3}
# What a sensor without contact gives, relative to half its range; it has no electrode to pick up hum.
SENSOR_NOISE = 1e-3
GAIN = 60.0
RAIL_SECONDS = 4.0


def spoil(signals: Iterable[Floats], layout: Layout, subject: Subject, faults: Sequence[Fault]) -> Iterator[Floats]:
    """``signals`` of ``layout`` in order, each [seconds * rate] in its unit, with what ``faults`` put in their place."""
    replacing = sorted((fault for fault in faults if fault.kind in REPLACING), key=lambda fault: REPLACING.index(fault.kind))
    for (label, item), signal in zip(layout.signals.items(), signals, strict=True):
        touching = [fault for fault in replacing if not item.source.keys().isdisjoint(fault.sources)]
        if touching:
            signal = signal.copy()
        for fault in touching:
            rng = subject.rng(f"fault/{fault.kind}/{fault.onset:g}/{label}")
            part = signal[int(fault.onset * item.rate) : int((fault.onset + fault.duration) * item.rate)]
            _replace(rng, part, item, str(fault.detail["form"]))
        yield signal


def _replace(rng: np.random.Generator, part: Floats, item: LayoutSignal, form: str) -> None:
    low, high = sorted(float(limit) for limit in item.physical)
    unit = MICROVOLTS.get(item.unit)
    if form == "gain":
        part *= np.float32(GAIN)
    elif form == "rails":
        seconds = len(part) // item.rate
        side = (np.cumsum(rng.random(seconds) < 1.0 / RAIL_SECONDS) + rng.integers(2)) % 2
        part[:] = np.repeat(np.where(side, high, low), item.rate)
    elif unit is None:
        part[:] = SENSOR_NOISE * (high - low) / 2.0 * rng.standard_normal(len(part))
    elif form == "open input":
        part[:] = OPEN_UV * unit * rng.standard_normal(len(part))
    else:
        part[:] = unit * _hum(rng, len(part), item.rate)


def _hum(rng: np.random.Generator, n: int, rate: int) -> Floats:
    """Mains, where the rate carries it, and drift out of range, in µV."""
    away = rng.choice([-1.0, 1.0]) * DRIFT_UV * (0.5 + np.abs(drift(rng, n, DRIFT_SECONDS * rate)))
    size, phase = rng.uniform(*HUM_UV), rng.uniform(0.0, 6.28)
    if rate > 2.0 * MAINS_HZ:
        away += size * np.sin(2.0 * np.pi * MAINS_HZ / rate * np.arange(n) + phase)
    return away.astype(np.float32)
