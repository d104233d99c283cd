"""Breathing at 10 Hz: airflow, thoracic and abdominal effort through events, snoring, and SpO2 that follows
them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from sleepfm.constants import EPOCH_SECONDS, Stage
from sleepfm.data.synthetic.events import BACK, Event
from sleepfm.data.synthetic.noise import Floats, drift
from sleepfm.data.synthetic.subject import Subject

RATE = 10
# By stage W, N1, N2, N3, REM: relative breathing rate, and log standard deviation of rate and of depth.
RATE_FACTOR = np.array([1.08, 1.02, 1.0, 0.97, 1.05], dtype=np.float32)
RATE_SD = np.array([0.14, 0.07, 0.04, 0.02, 0.12], dtype=np.float32)
DEPTH_SD = np.array([0.30, 0.15, 0.09, 0.05, 0.25], dtype=np.float32)
SNORE = np.array([0.15, 0.5, 1.0, 1.0, 0.45], dtype=np.float32)
RAMP_SECONDS = 1.5
RECOVERY_SECONDS = 7.0
# Oxygen stores refill with this time constant once breathing is back (s).
REFILL_SECONDS = 14.0
# AASM desaturation criterion of 3 %.
DESATURATION = 3.0


@dataclass(frozen=True)
class Breathing:
    """All at 10 Hz [T * 10] except ``spo2`` at 1 Hz [T].

    Attributes:
        flow: airflow, 1 at quiet peak inspiration.
        thorax, abdomen: belts, 1 at quiet peak inspiration.
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


def breathe(subject: Subject, stages: NDArray[np.int8], position: NDArray[np.int8], events: Sequence[Event]) -> Breathing:
    """Breathing through a night with its respiratory ``events``."""
    rng = subject.rng("respiration")
    n = len(stages) * EPOCH_SECONDS * RATE
    stage = np.repeat(stages, EPOCH_SECONDS * RATE)
    slow = drift(rng, n, 6.0 * RATE)
    frequency = subject.breath_hz * RATE_FACTOR[stage] * np.exp(RATE_SD[stage] * slow)
    depth = np.exp(DEPTH_SD[stage] * drift(rng, n, 5.0 * RATE)).astype(np.float32)
    phase = 2.0 * np.pi * np.cumsum(frequency, dtype=np.float64) / RATE

    flow_gain = np.ones(n, dtype=np.float32)
    effort_gain = np.ones(n, dtype=np.float32)
    paradox = np.zeros(n, dtype=np.float32)
    strain = np.zeros(n, dtype=np.float32)
    release = np.zeros(n, dtype=np.float32)
    snore = SNORE[stage] * np.where(np.repeat(position, RATE) == BACK, 1.2, 0.8).astype(np.float32)
    for event in events:
        _apply(event, rng, flow_gain, effort_gain, paradox, strain, release, snore)

    # Valves and chests take a moment; the first breath after an event is not a step.
    flow_gain, effort_gain, paradox = (_smooth(gain) for gain in (flow_gain, effort_gain, paradox))

    # Inspiration is shorter than expiration.
    phase -= 0.35 * np.cos(phase)
    wave = np.sin(phase).astype(np.float32)
    inspiration = np.maximum(wave, 0.0)
    flow = depth * flow_gain * (wave + 0.15 * np.sin(2.0 * phase + 0.6).astype(np.float32))
    effort = depth * effort_gain * wave
    lag = (0.15 + paradox * 0.9 * np.pi).astype(np.float32)
    abdomen = depth * effort_gain * np.sin(phase - lag).astype(np.float32)
    return Breathing(
        flow=flow + 0.03 * rng.standard_normal(n, dtype=np.float32),
        thorax=0.9 * effort + 0.02 * rng.standard_normal(n, dtype=np.float32),
        abdomen=1.05 * abdomen + 0.02 * rng.standard_normal(n, dtype=np.float32),
        effort=effort,
        snore=snore * inspiration * depth,
        strain=strain,
        release=release,
        spo2=_saturation(subject, rng, depth * flow_gain, stage == Stage.REM),
    )


def _apply(
    event: Event,
    rng: np.random.Generator,
    flow_gain: Floats,
    effort_gain: Floats,
    paradox: Floats,
    strain: Floats,
    release: Floats,
    snore: Floats,
) -> None:
    first, last = round(event.onset * RATE), min(round(event.end * RATE), len(flow_gain))
    length = last - first
    since = np.arange(length, dtype=np.float32) / RATE
    progress = since / max(since[-1], 1.0)
    closing = np.minimum(since / RAMP_SECONDS, 1.0)
    residual = (1.0 - event.reduction) if event.reduction < 1.0 else float(rng.uniform(0.01, 0.06))
    flow_gain[first:last] = 1.0 - closing * (1.0 - residual)
    struggling = progress >= event.central
    # Effort against a closed airway grows to the arousal (obstructive); a central part has none.
    start, growth = (0.75, 1.1) if event.reduction == 1.0 else (0.8, 0.7 * event.reduction)
    effort = np.where(struggling, start + growth * progress, 0.05)
    effort_gain[first:last] = 1.0 + closing * (effort - 1.0)
    paradox[first:last] = closing * struggling * (event.reduction if event.reduction == 1.0 else 0.6 * event.reduction)
    # A closed airway is silent; a narrowed one snores louder; struggling recruits the upper airway muscles a
    # little.
    vibration = 0.1 + 0.25 * progress * struggling if event.reduction == 1.0 else np.float32(1.0 + 0.5 * event.reduction)
    snore[first:last] *= 1.0 + closing * (vibration - 1.0)
    strain[first:last] = event.reduction * progress
    stop = min(last + round(4 * RECOVERY_SECONDS * RATE), len(flow_gain))
    after = np.arange(stop - last, dtype=np.float32) / RATE
    decay = np.exp(-after / RECOVERY_SECONDS)
    size = event.reduction * rng.uniform(0.7, 1.1)
    flow_gain[last:stop] += 0.8 * size * decay
    effort_gain[last:stop] += 0.7 * size * decay
    snore[last:stop] *= 1.0 + 0.8 * size * decay
    release[last:stop] = np.maximum(release[last:stop], size * decay * np.minimum(after / 2.0, 1.0))


def _smooth(gain: Floats) -> Floats:
    window = np.hanning(13)[1:-1].astype(np.float32)
    return np.convolve(np.pad(gain, 5, mode="edge"), window / window.sum(), mode="valid")


def _saturation(subject: Subject, rng: np.random.Generator, ventilation: Floats, rem: NDArray[np.bool_]) -> Floats:
    second = np.clip(1.0 - ventilation, 0.0, 1.0).reshape(-1, RATE).mean(axis=1)
    # Shallow breaths within normal variation do not empty the stores; REM has smaller lung volume.
    lost = np.maximum(second - 0.25, 0.0) / 0.75 * np.where(rem[::RATE], 1.25, 1.0)
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
