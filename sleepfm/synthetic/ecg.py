"""ECG: beat times with sinus arrhythmia and cyclic variation at apneas, and P-QRS-T complexes modulated by
breathing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SECONDS, Stage
from sleepfm.synthetic.drawn_events import Event
from sleepfm.synthetic.noise import Floats, band_noise, drift
from sleepfm.synthetic.respiration import RATE as BREATHING_RATE
from sleepfm.synthetic.respiration import Breathing
from sleepfm.synthetic.subject import Subject

RATE = 125
# By stage W, N1, N2, N3, REM: beats a minute above the resting rate, and slow standard deviation.
LEVEL = np.array([8.0, 3.0, 0.0, -1.0, 4.0], dtype=np.float32)
SLOW_SD = np.array([3.5, 2.0, 1.3, 0.8, 3.0], dtype=np.float32)
# Each amplitude, centre and width in s.
Waves = tuple[tuple[float, float, float], ...]
# P, Q, R, S, T: amplitude relative to R, centre and width in s from the R peak.
WAVES = (
    (0.12, -0.17, 0.022),
    (-0.12, -0.03, 0.009),
    (1.0, 0.0, 0.0105),
    (-0.22, 0.03, 0.010),
    (0.28, 0.27, 0.05),
)
# A premature ventricular beat: broad, no P, T against R; its size is relative to R too.
ECTOPIC_WAVES = (
    (1.4, 0.0, 0.03),
    (-0.5, 0.085, 0.035),
    (-0.35, 0.28, 0.06),
)
# How much of the time since the last beat it comes too early; the next sinus beat comes when it would have.
PREMATURE = (0.25, 0.42)
BEFORE, AFTER = 32, 56
PHASES = 32
# Beats drawn at a time, to bound memory.
BLOCK_BEATS = 4096
# Beats a minute: slowing at the end of an apnea with all flow lost, and the rise that follows (Guilleminault
# 1984).
SLOWING, RISE = 8.0, 15.0
AROUSAL_RISE = 8.0


def beat_times(
    subject: Subject, stages: NDArray[np.int8], breathing: Breathing, arousals: Sequence[Event]
) -> NDArray[np.float64]:
    """R peak times in seconds, in order."""
    rng = subject.rng("heart")
    stage = np.repeat(stages, EPOCH_SECONDS * BREATHING_RATE)
    n = len(stage)
    rate = subject.heart_rate + LEVEL[stage] + SLOW_SD[stage] * drift(rng, n, 25.0 * BREATHING_RATE)
    rate += np.where(stage == Stage.REM, 1.5, 0.7) * drift(rng, n, 4.0 * BREATHING_RATE)
    rate += subject.rsa * breathing.effort * np.where(stage == Stage.W, 0.7, 1.0)
    startle = np.zeros(n, dtype=np.float32)
    for arousal in arousals:
        first = round(arousal.onset * BREATHING_RATE)
        after = np.arange(max(0, min(30 * BREATHING_RATE, n - first)), dtype=np.float32) / BREATHING_RATE
        response = np.minimum(after / 3.0, 1.0) * np.exp(-np.maximum(after - arousal.duration, 0.0) / 5.0)
        startle[first : first + len(after)] = np.maximum(startle[first : first + len(after)], response)
    rate += np.maximum(subject.cyclic * RISE * breathing.release, AROUSAL_RISE * startle)
    rate -= subject.cyclic * SLOWING * breathing.strain
    turns = np.concatenate([[0.0], np.cumsum(np.clip(rate, 35.0, 160.0), dtype=np.float64)]) / (60.0 * BREATHING_RATE)
    times = np.interp(np.arange(1, int(turns[-1]) + 1), turns, np.arange(n + 1) / BREATHING_RATE)
    return times + 0.004 * rng.standard_normal(len(times))


def draw_ectopic(subject: Subject, beats: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """``beats`` with premature ventricular ones among them, and which those are; never two in a row."""
    rng = subject.rng("ectopic")
    chance = subject.ectopic_per_hour * (beats[-1] - beats[0]) / 3600.0 / len(beats)
    hit = rng.random(len(beats)) < chance
    hit[1:] &= ~hit[:-1]
    hit[[0, -1]] = False
    early = rng.uniform(*PREMATURE, len(beats)) * np.diff(beats, prepend=beats[0])
    return np.where(hit, beats - early, beats), hit


def draw_ecg(
    subject: Subject, seconds: int, beats: NDArray[np.float64], breathing: Breathing, ectopic: NDArray[np.bool_]
) -> Floats:
    """ECG [seconds * 125] in mV. R amplitude follows the chest (ECG-derived respiration, Moody 1985).

    ``ectopic`` tells which of the ``beats`` are premature ventricular ones.
    """
    rng = subject.rng("ecg")
    n = seconds * RATE
    grid = np.arange(len(breathing.effort)) / BREATHING_RATE
    chest = np.interp(beats, grid, breathing.thorax)
    slow = np.exp(0.06 * drift(rng, len(beats), 300.0))
    amplitude = subject.r_wave * slow * (1.0 + subject.r_breathing * chest)
    ecg = _complexes(beats * RATE, np.where(ectopic, 0.0, amplitude), n, WAVES)
    if ectopic.any():
        ecg += _complexes(beats[ectopic] * RATE, amplitude[ectopic], n, ECTOPIC_WAVES)
    ecg += np.float32(0.06) * band_noise(rng, n, RATE, 0.05, 0.6)
    ecg += np.float32(0.012) * band_noise(rng, n, RATE, 8.0, 60.0)
    return ecg


def heart_rate(beats: NDArray[np.float64], seconds: int) -> Floats:
    """Beats a minute each second [seconds], as an oximeter averages them over about 8 s."""
    instant = 60.0 / np.diff(beats)
    each = np.interp(np.arange(seconds) + 0.5, (beats[1:] + beats[:-1]) / 2.0, instant)
    padded = np.pad(each, (7, 0), mode="edge")
    return np.convolve(padded, np.full(8, 1.0 / 8.0), mode="valid").astype(np.float32)


def _complexes(position: NDArray[np.float64], amplitude: NDArray[np.float64], n: int, waves: Waves) -> Floats:
    """Complexes of ``waves`` [n] with R peaks at ``position`` (samples, fractional) of ``amplitude``."""
    first = np.floor(position).astype(np.int64)
    phase = ((position - first) * PHASES).astype(np.int64)
    template, reach = _template(waves), np.arange(BEFORE + AFTER)
    signal = np.zeros(n + BEFORE + 2 * AFTER, dtype=np.float32)
    for start in range(0, len(first), BLOCK_BEATS):
        block = slice(start, start + BLOCK_BEATS)
        begin = int(first[start])
        place = (first[block, None] - begin + reach).ravel()
        beats = template[phase[block]] * amplitude[block, None]
        sums = np.bincount(place, weights=beats.ravel())
        signal[begin : begin + len(sums)] += sums
    return signal[BEFORE : BEFORE + n]


def _template(waves: Waves) -> Floats:
    """One beat at each sub-sample offset: [PHASES, BEFORE + AFTER]."""
    offset = (np.arange(PHASES)[:, None] + 0.5) / PHASES
    time = (np.arange(-BEFORE, AFTER)[None, :] - offset) / RATE
    beat = np.zeros_like(time)
    for amplitude, centre, width in waves:
        beat += amplitude * np.exp(-0.5 * ((time - centre) / width) ** 2)
    return beat.astype(np.float32)
