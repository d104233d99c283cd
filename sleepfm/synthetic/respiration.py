"""Breathing at 10 Hz: airflow and effort through events, snoring, and SpO2 that follows them.

Sizes of what marks an event are those of the AASM manual for scoring of sleep (version 3, chapter VIII): in an apnea the flow
falls by 90 % or more, in a hypopnea by 30 % or more, for at least 10 s, with a fall of SpO2 by 3 % or an arousal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from sleepfm.constants import EPOCH_SECONDS, Stage
from sleepfm.synthetic.belts import RATE as RATE
from sleepfm.synthetic.belts import compartments
from sleepfm.synthetic.drawn_events import BACK, Event
from sleepfm.synthetic.noise import Floats, drift
from sleepfm.synthetic.subject import Subject

# By stage W, N1, N2, N3, REM: relative breathing rate, and log standard deviation of rate and of each breath's depth. Breathing
# is most even in N3 and least in W and REM (Douglas et al. 1982, Thorax 37:840; Tobin et al. 1988, J Appl Physiol 65:309).
RATE_FACTOR = np.array([1.08, 1.02, 1.0, 0.97, 1.05], dtype=np.float32)
RATE_SD = np.array([0.14, 0.07, 0.04, 0.02, 0.12], dtype=np.float32)
DEPTH_SD = np.array([0.30, 0.15, 0.10, 0.06, 0.22], dtype=np.float32)
# Memory of a breath's depth, in breaths, and the slow change of what sensors see of it (log standard deviation, s).
DEPTH_BREATHS = 1.5
SLOW_DEPTH, SLOW_SECONDS = 0.08, 180.0
# How much faster the lungs fill than they empty: 40 % of a breath is inspiration.
HASTE = 0.35
SNORE = np.array([0.15, 0.5, 1.0, 1.0, 0.45], dtype=np.float32)
RAMP_SECONDS = 1.0
RECOVERY_SECONDS = 7.0
# A narrowed airway lets no more than this share of the peak through, however hard the effort: inspiration is flat.
FLAT = 0.6
# Phase by which the rib cage lags behind the abdomen, in turns: half a turn is paradox. Complete obstruction lies near it,
# partial obstruction between (Hammer and Newth 2009, Paediatr Respir Rev 10:75).
APNEA_LAG, HYPOPNEA_LAG = (0.38, 0.48), (0.15, 0.35)
# Share of effort that is left when the drive to breathe is gone.
NO_EFFORT = 0.03
# Oxygen stores refill with this time constant once breathing is back (s), and empty once breathing falls below this share.
REFILL_SECONDS = 14.0
ENOUGH = 0.85
# AASM desaturation criterion of 3 %.
DESATURATION = 3.0


@dataclass(frozen=True)
class Breathing:
    """All at 10 Hz [T * 10] except ``spo2`` at 1 Hz [T].

    Attributes:
        flow: airflow, 1 at quiet peak inspiration.
        thorax, abdomen: volume of the rib cage and the abdomen, 1 at the end of quiet inspiration and -1 at its start.
        effort: what the heart and chin muscles feel: amplitude and sign of inspiratory effort.
        snore: breathing-locked vibration and muscle activity of the upper airway, 0..about 1.
        strain: 0 outside respiratory events, rising to the share of flow lost at their end (drives the heart
            rate).
        release: jumps to the share of flow lost at an event's end and decays (drives the heart rate).
        spo2: %, not rounded.
    """

    flow: Floats
    thorax: Floats
    abdomen: Floats
    effort: Floats
    snore: Floats
    strain: Floats
    release: Floats
    spo2: Floats


@dataclass(frozen=True)
class _Gains:
    """What events do to breathing [T * 10]: factors of flow, effort and snoring, lag of the rib cage in turns, share of flow
    limitation, and what the heart feels."""

    flow: Floats
    effort: Floats
    snore: Floats
    lag: Floats
    flat: Floats
    strain: Floats
    release: Floats


def breathe(subject: Subject, stages: NDArray[np.int8], position: NDArray[np.int8], events: Sequence[Event]) -> Breathing:
    """Breathing through a night with its respiratory ``events``."""
    rng = subject.rng("respiration")
    n = len(stages) * EPOCH_SECONDS * RATE
    stage = np.repeat(stages, EPOCH_SECONDS * RATE)
    frequency = subject.breath_hz * RATE_FACTOR[stage] * np.exp(RATE_SD[stage] * drift(rng, n, 6.0 * RATE))
    phase = 2.0 * np.pi * np.cumsum(frequency, dtype=np.float64) / RATE
    ones, zeros = np.ones(n, dtype=np.float32), np.zeros(n, dtype=np.float32)
    snore = SNORE[stage] * np.where(np.repeat(position, RATE) == BACK, 1.2, 0.8).astype(np.float32)
    gains = _Gains(ones, ones.copy(), snore, zeros, zeros.copy(), zeros.copy(), zeros.copy())
    for event in events:
        _apply(event, rng, gains)
    # Valves and chests take a moment; the first breath after an event is not a step.
    flow_gain, effort_gain, lag, flat = (_smooth(gain) for gain in (gains.flow, gains.effort, gains.lag, gains.flat))

    haste = 1.0 + HASTE * np.sin(phase).astype(np.float32)
    phase -= HASTE * np.cos(phase)
    # A breath has one depth from its first to its last moment: what follows changes where the lungs are empty.
    breath = np.maximum(np.floor(phase / (2.0 * np.pi)), 0.0).astype(np.int64)
    first = np.searchsorted(breath, np.arange(int(breath[-1]) + 1))
    depths = np.exp(DEPTH_SD[stage[first]] * drift(rng, len(first), DEPTH_BREATHS)).astype(np.float32)
    slow = np.exp(SLOW_DEPTH * drift(rng, n, SLOW_SECONDS * RATE)).astype(np.float32)
    depth = depths[breath] * slow
    wave = np.sin(phase).astype(np.float32)
    inspiration = np.maximum(wave, 0.0)
    flow = wave * haste / np.float32(1.0 + HASTE)
    flow = np.where(flow > 0.0, (1.0 - flat) * flow + flat * np.minimum(flow / FLAT, 1.0), flow)
    thorax, abdomen = compartments(subject, stage, phase, depths, slow * effort_gain, lag)
    return Breathing(
        flow=depth * flow_gain * flow,
        thorax=thorax,
        abdomen=abdomen,
        effort=depth * effort_gain * wave,
        snore=gains.snore * inspiration * depth,
        strain=gains.strain,
        release=gains.release,
        spo2=_saturation(subject, rng, depth * flow_gain, stage == Stage.REM),
    )


def _apply(event: Event, rng: np.random.Generator, gains: _Gains) -> None:
    apnea = event.reduction == 1.0
    n = len(gains.flow)
    first, last = round(event.onset * RATE), min(round(event.end * RATE), n)
    since = np.arange(last - first, dtype=np.float32) / RATE
    progress = since / max(since[-1], 1.0)
    closing = np.minimum(since / RAMP_SECONDS, 1.0)
    residual = float(rng.uniform(0.01, 0.06)) if apnea else 1.0 - event.reduction
    gains.flow[first:last] = 1.0 - closing * (1.0 - residual)
    struggling = progress >= event.central
    # Effort against a closed airway grows to the arousal (obstructive); a central part has none.
    start, growth = (0.75, 1.1) if apnea else (0.8, 0.7 * event.reduction)
    effort = np.where(struggling, start + growth * progress, NO_EFFORT)
    gains.effort[first:last] = 1.0 + closing * (effort - 1.0)
    gains.lag[first:last] = closing * struggling * rng.uniform(*(APNEA_LAG if apnea else HYPOPNEA_LAG))
    gains.flat[first:last] = closing * struggling * (not apnea)
    # A closed airway is silent; a narrowed one snores louder; struggling recruits the upper airway muscles a little.
    vibration = 0.1 + 0.25 * progress * struggling if apnea else np.float32(1.0 + 0.5 * event.reduction)
    gains.snore[first:last] *= 1.0 + closing * (vibration - 1.0)
    gains.strain[first:last] = event.reduction * progress
    stop = min(last + round(4 * RECOVERY_SECONDS * RATE), n)
    after = np.arange(stop - last, dtype=np.float32) / RATE
    decay = np.exp(-after / RECOVERY_SECONDS)
    size = event.reduction * rng.uniform(0.7, 1.1)
    gains.flow[last:stop] += 0.7 * size * decay
    gains.effort[last:stop] += 0.6 * size * decay
    gains.snore[last:stop] *= 1.0 + 0.8 * size * decay
    gains.release[last:stop] = np.maximum(gains.release[last:stop], size * decay * np.minimum(after / 2.0, 1.0))


def _smooth(gain: Floats) -> Floats:
    window = np.hanning(13)[1:-1].astype(np.float32)
    return np.convolve(np.pad(gain, 5, mode="edge"), window / window.sum(), mode="valid")


def _saturation(subject: Subject, rng: np.random.Generator, ventilation: Floats, rem: NDArray[np.bool_]) -> Floats:
    second = ventilation.reshape(-1, RATE).mean(axis=1)
    # Shallow breaths within normal variation do not empty the stores; REM has smaller lung volume.
    lost = np.maximum(ENOUGH - second, 0.0) / ENOUGH * np.where(rem[::RATE], 1.25, 1.0)
    decay = float(np.exp(-1.0 / REFILL_SECONDS))
    debt = lfilter([subject.desaturation], [1.0, -decay], lost)
    delay = round(subject.delay)
    delayed = np.concatenate([np.zeros(delay), debt[: len(debt) - delay]]) if delay < len(debt) else 0.0 * debt
    smooth = lfilter([0.3], [1.0, -0.7], delayed)
    calm = subject.spo2 + 0.4 * drift(rng, len(debt), 120.0)
    return np.clip(calm - 1.15 * smooth, 60.0, 99.0).astype(np.float32)


def find_desaturations(spo2: Floats, events: Sequence[Event], delay: float) -> list[Event]:
    """Falls of SpO2 by 3 % or more after respiratory events, with onset at the last baseline second and end
    at the nadir."""
    rounded = np.round(spo2)
    found: list[Event] = []
    for event in events:
        first = int(event.onset)
        before = rounded[max(first - 10, 0) : first + 15]
        window = rounded[first : int(event.end + delay + 25.0)]
        if len(window) < 5 or not len(before):
            continue
        baseline, nadir = float(before.max()), float(window.min())
        lowest = first + int(window.argmin())
        highs = np.flatnonzero(rounded[first:lowest] >= baseline - 1.0)
        onset = float(first + int(highs[-1]) if len(highs) else first)
        taken = found and found[-1].end > onset
        if baseline - nadir >= DESATURATION and lowest > onset and not taken:
            found.append(Event("desaturation", onset, lowest - onset, baseline=baseline, nadir=nadir))
    return found
