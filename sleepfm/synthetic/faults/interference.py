"""What gets into a signal from elsewhere: mains, heart, sweat, snoring, legs."""

from __future__ import annotations

import numpy as np

from sleepfm.constants import EPOCH_SECONDS, Stage
from sleepfm.synthetic.artefact import add_movements
from sleepfm.synthetic.faults.draft import Draft
from sleepfm.synthetic.faults.rates import LegMovements, Share, Stretches
from sleepfm.synthetic.faults.spoil import MAINS_HZ
from sleepfm.synthetic.faults.texts import FORMATS
from sleepfm.synthetic.layout import SOURCES
from sleepfm.synthetic.night import Note
from sleepfm.synthetic.noise import Floats, add_at, band_noise, upsample

EEG = ("C3", "C4")
# The 50 Hz of the EOG do not hold mains.
HUMMING = ("C3", "C4", "CHIN", "ECG")
HUM_UV = (8.0, 50.0)
# Share of the ECG (µV for mV/1000) seen in the EEG: an R wave of 15 to 50 µV.
ECG_LEAK = (0.02, 0.06)
SWEATING = ("C3", "C4", "E1", "E2")
SWEAT_UV = (30.0, 90.0)
SWEAT_EDGE = 5.0
SNORING_SECONDS = 600.0
SNORE_UV = (4.0, 12.0)
# Vibration of the flow signal relative to its size.
SNORE_FLOW = 0.25
# AASM: a leg movement lasts 0.5 to 10 s; four or more, 5 to 90 s apart, are periodic. Usual intervals are 15 to 40 s.
LEG_SECONDS, LEG_INTERVAL, LEG_SERIES = (0.5, 4.0), (15.0, 40.0), (4, 20)
LEG_CHIN_UV, LEG_EEG_UV = (4.0, 12.0), 25.0


def draw_mains(draft: Draft, rate: Stretches) -> None:
    """Mains hum, in one or two signals that carry 60 Hz."""
    rng = draft.rng("mains")
    for first, stop in rate.draw(rng, draft.seconds):
        names = [str(name) for name in rng.choice(HUMMING, size=rng.integers(1, 3), replace=False)]
        size = float(rng.uniform(*HUM_UV))
        for name in names:
            part = draft.part(name, first, stop)
            wave = np.sin(2.0 * np.pi * MAINS_HZ / SOURCES[name][1] * np.arange(len(part)) + rng.uniform(0.0, 6.28))
            part += (size * (1e-3 if name == "ECG" else 1.0) * wave).astype(np.float32)
        draft.note("mains", first, stop - first, *names, microvolts=round(size, 1))


def draw_ecg_in_eeg(draft: Draft, rate: Share) -> None:
    """The ECG in one or both EEG all night."""
    rng = draft.rng("ecg_in_eeg")
    if not rate.happens(rng):
        return
    names = EEG if rng.random() < 0.5 else (str(rng.choice(EEG)),)
    for name in names:
        signal = draft.source(name)
        signal += np.float32(1000.0 * rng.uniform(*ECG_LEAK)) * draft.signals["ECG"]
    draft.note("ecg_in_eeg", 0, draft.seconds, *names)


def draw_sweat(draft: Draft, rate: Stretches) -> None:
    """Slow waves of 0.1 to 0.5 Hz in EEG and EOG."""
    rng = draft.rng("sweat")
    for first, stop in rate.draw(rng, draft.seconds):
        wet = rng.random(len(SWEATING)) < 0.6
        names = [name for name, chosen in zip(SWEATING, wet, strict=True) if chosen] or [SWEATING[0]]
        for name in names:
            hz = SOURCES[name][1]
            place = np.arange((stop - first) * hz, dtype=np.float32) / hz
            edge = np.clip(np.minimum(place, place[::-1]) / SWEAT_EDGE, 0.0, 1.0)
            wave = np.float32(rng.uniform(*SWEAT_UV)) * edge * band_noise(rng, len(place), hz, 0.1, 0.5)
            part = draft.part(name, first, stop)
            part += wave
        draft.note("sweat", first, stop - first, *names)


def draw_snoring(draft: Draft, rate: Share) -> None:
    """Bouts of vibration with each breath in, in the chin EMG and the flow; an apnea is silent because nothing flows."""
    rng = draft.rng("snoring")
    if not rate.happens(rng):
        return
    # Bouts and silence in turn, at least a minute each.
    turns = 60 + rng.exponential(SNORING_SECONDS, 2 + draft.seconds // 60).astype(np.int64)
    loud = np.arange(len(turns)) % 2 == rng.integers(2)
    snoring = np.repeat(loud, turns)[: draft.seconds] & np.repeat(draft.stages > Stage.W, EPOCH_SECONDS)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], snoring.astype(np.int8), [0]])))
    size = float(rng.uniform(*SNORE_UV))
    for first, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        flow, chin = draft.part("FLOW", first, stop), draft.part("CHIN", first, stop)
        inspiration = np.maximum(flow, 0.0)
        usual = max(float(np.percentile(inspiration, 90)), 1e-6)
        envelope = _chin_envelope((inspiration / usual).astype(np.float32))
        chin += np.float32(size) * envelope * band_noise(rng, len(chin), SOURCES["CHIN"][1], 25.0, 60.0)
        flow += np.float32(SNORE_FLOW) * inspiration * rng.standard_normal(len(flow), dtype=np.float32)
        draft.note("snoring", first, stop - first, "CHIN", "FLOW", microvolts=round(size, 1))


def _chin_envelope(flow: Floats) -> Floats:
    """A signal at the 10 Hz of the flow at the rate of the chin EMG."""
    halves = 0.5 * (flow[::2] + flow[1::2])
    return upsample(halves, 2 * SOURCES["CHIN"][1] // SOURCES["FLOW"][1])


def draw_leg_movements(draft: Draft, rate: LegMovements) -> None:
    """Series of leg movements in NREM sleep: scored, and seen in the chin EMG and the EEG."""
    rng = draft.rng("leg_movements")
    nrem = np.repeat((draft.stages > Stage.W) & (draft.stages < Stage.REM), EPOCH_SECONDS)
    if not rate.happens(rng) or not nrem.any():
        return
    wanted = max(LEG_SERIES[0], round(rate.per_hour.draw(rng) * nrem.sum() / 3600.0))
    text = FORMATS[draft.form].leg_movement
    begins, taken = np.flatnonzero(nrem), np.zeros(draft.seconds + 1, dtype=np.bool_)
    drawn = 0
    for _ in range(4 * wanted):
        if drawn >= wanted:
            break
        time = float(rng.choice(begins))
        for _ in range(int(rng.integers(*LEG_SERIES))):
            length = float(np.round(rng.uniform(*LEG_SECONDS), 1))
            stop = int(time + length) + 1
            if stop >= draft.seconds or not nrem[int(time) : stop].all() or taken[int(time) : stop].any():
                break
            taken[int(time) : stop] = True
            onset = round(time, 1)
            _kick(draft, rng, onset, length)
            if text:
                draft.notes.append(Note(onset, length, text, "Limb Movement|Limb Movement"))
            drawn += 1
            time += float(rng.uniform(*LEG_INTERVAL))


def _kick(draft: Draft, rng: np.random.Generator, onset: float, length: float) -> None:
    chin, rate = draft.source("CHIN"), SOURCES["CHIN"][1]
    burst = np.hanning(int(length * rate)).astype(np.float32)
    burst *= np.float32(rng.uniform(*LEG_CHIN_UV)) * rng.standard_normal(len(burst), dtype=np.float32)
    add_at(chin, int(onset * rate), burst)
    name = str(rng.choice(EEG))
    add_movements(rng, draft.source(name), SOURCES[name][1], [(onset, length)], size=LEG_EEG_UV)
    draft.note("leg_movements", onset, length, "CHIN", name)
