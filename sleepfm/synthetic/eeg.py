"""EEG at C3 and C4: background and rhythms whose size follows the state, and the waves that define the
stages."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import Stage
from sleepfm.synthetic.artefact import add_movements, add_pops
from sleepfm.synthetic.microstate import Microstates
from sleepfm.synthetic.noise import Floats, add_at, band_noise, drift, peak, power_law, upsample
from sleepfm.synthetic.subject import Subject

RATE = 125
# Root mean square in µV by state W, N1, N2, N3, REM. The background has a steep and a shallow part, because power falls the
# faster with frequency the deeper sleep is (Schneider et al. 2022, Front Neuroinform 16:989262): here between 2 and 30 Hz
# about as 1/f^1.1 awake, 1/f^2.1 in N2 and 1/f^2.6 in N3.
STEEP = np.array([8.0, 8.0, 8.0, 13.0, 8.0], dtype=np.float32)
SHALLOW = np.array([5.5, 3.5, 2.6, 2.4, 3.2], dtype=np.float32)
DELTA = np.array([2.0, 4.0, 7.0, 26.0, 3.5], dtype=np.float32)
THETA = np.array([3.0, 6.5, 5.5, 8.0, 4.5], dtype=np.float32)
ALPHA = np.array([11.0, 3.0, 2.8, 4.5, 2.8], dtype=np.float32)
SIGMA = np.array([1.8, 1.6, 1.5, 2.4, 1.3], dtype=np.float32)
BETA = np.array([3.8, 2.2, 1.3, 1.1, 2.0], dtype=np.float32)
# Exponent of the steep part where that of the shallow one is 1.
STEEPER = 1.8
# Arousal (AASM: abrupt shift to alpha, theta or above 16 Hz for at least 3 s).
AROUSAL_FACTOR = {"steep": 1.1, "shallow": 1.1, "delta": 0.5, "theta": 1.2, "alpha": 1.0, "sigma": 1.2, "beta": 2.2}
AROUSAL_ALPHA = 9.0
# Waves a minute by state.
SPINDLES = np.array([0.0, 0.1, 4.5, 2.5, 0.0])
K_COMPLEXES = np.array([0.0, 0.0, 1.6, 0.4, 0.0])
VERTEX_WAVES = np.array([0.0, 2.5, 0.5, 0.0, 0.0])
SAWTOOTH_TRAINS = np.array([0.0, 0.0, 0.0, 0.0, 1.3])
# Each channel has its own part, so that C3 and C4 correlate at about 0.8.
OWN = 0.48


def draw_eeg(subject: Subject, micro: Microstates, ecg: Floats) -> tuple[Floats, Floats]:
    """C3 and C4 against the opposite mastoid, each [T * 125] in µV."""
    rng = subject.rng("eeg")
    levels = _levels(subject, micro, rng)
    n = len(micro.state) * RATE
    spectra: dict[str, tuple[float, float, Callable[[Floats], Floats] | None]] = {
        "steep": (0.3, 60.0, power_law(STEEPER * subject.eeg_slope, knee=0.8)),
        "shallow": (0.3, 60.0, power_law(subject.eeg_slope)),
        "delta": (0.3, 4.5, peak(1.2, 1.2)),
        "theta": (3.0, 8.5, peak(5.5, 1.1)),
        "alpha": (6.5, 13.5, peak(subject.alpha_hz, 0.7)),
        "sigma": (10.5, 16.5, peak(13.0, 1.5)),
        "beta": (15.0, 40.0, peak(20.0, 6.0)),
    }
    channels = [np.zeros(n, dtype=np.float32) for _ in range(2)]
    for name, (low, high, shape) in spectra.items():
        rhythm = band_noise(rng, n, RATE, low, high, shape)
        level = upsample(levels[name], RATE)
        for number, channel in enumerate(channels):
            # The rhythm of another hour is as good as one of its own, and has the same spectrum.
            own = np.roll(rhythm, (number + 1) * n // 3)
            own *= np.float32(OWN)
            own += rhythm
            own *= level
            channel += own
    _add_waves(subject, micro, rng, channels)
    mains = np.sin(2.0 * np.pi * 60.0 / RATE * np.arange(RATE)).astype(np.float32)  # 60 whole turns
    for channel in channels:
        channel *= np.float32(subject.eeg_gain)
        channel.reshape(-1, RATE)[:] += np.float32(rng.uniform(0.3, 1.0) * subject.mains) * mains
        channel += np.float32(1000.0 * rng.uniform(0.0, 1.0) * subject.ecg_leak) * ecg[:n]
        add_movements(rng, channel, RATE, micro.movements, size=55.0)
        add_pops(rng, channel, RATE, per_hour=1.5, size=90.0)
    return channels[0], channels[1]


def _levels(subject: Subject, micro: Microstates, rng: np.random.Generator) -> dict[str, Floats]:
    """Root mean square of each rhythm in each second [T], µV."""
    state, seconds = micro.state, len(micro.state)
    awake = state == Stage.W
    shut = np.where(awake & micro.eyes_open, np.float32(0.25), np.float32(1.0))
    levels = {
        "steep": STEEP[state],
        "shallow": SHALLOW[state],
        "delta": DELTA[state] * np.float32(subject.slow_wave),
        "theta": THETA[state] * np.float32(subject.theta),
        "alpha": ALPHA[state] * np.where(awake, np.float32(subject.alpha), np.float32(1.0)) * shut,
        "sigma": SIGMA[state],
        "beta": BETA[state] * np.where(awake & micro.eyes_open, np.float32(1.25), np.float32(1.0)) * np.float32(subject.beta),
    }
    for name in levels:
        wander = np.exp(0.18 * drift(rng, seconds, 25.0) + 0.15 * drift(rng, seconds, 2.0))
        factor = 1.0 + micro.arousal * (AROUSAL_FACTOR[name] - 1.0)
        levels[name] = (levels[name] * wander * factor).astype(np.float32)
    deep = (state == Stage.N2) | (state == Stage.N3)
    levels["alpha"] += deep * np.float32(subject.alpha_intrusion)
    levels["alpha"] += micro.arousal * ~awake * np.float32(AROUSAL_ALPHA * np.sqrt(subject.alpha))
    return levels


def _add_waves(subject: Subject, micro: Microstates, rng: np.random.Generator, channels: list[Floats]) -> None:
    calm = np.where(micro.arousal > 0.0, 0.0, 1.0)

    def onsets(per_minute: NDArray[np.float64]) -> list[int]:
        hits = np.flatnonzero(rng.random(len(micro.state)) < per_minute[micro.state] * calm / 60.0)
        return ((hits + rng.random(len(hits))) * RATE).astype(np.int64).tolist()

    def add(start: int, wave: Floats) -> None:
        for channel in channels:
            add_at(channel, start, np.float32(rng.uniform(0.75, 1.1)) * wave)

    for start in onsets(SPINDLES * subject.spindle_rate):
        add(start, spindle(rng, subject.spindle_hz))
    for start in onsets(K_COMPLEXES):
        add(start, k_complex(rng, subject.slow_wave))
        if rng.random() < 0.4:
            add(start + int(0.5 * RATE), spindle(rng, subject.spindle_hz))
    for start in onsets(VERTEX_WAVES):
        add(start, vertex_wave(rng))
    for start in onsets(SAWTOOTH_TRAINS):
        add(start, sawtooth(rng))


def spindle(rng: np.random.Generator, centre: float) -> Floats:
    """A sleep spindle in µV: 0.5-1.5 s of 11-15 Hz, waxing and waning (AASM)."""
    frequency = float(np.clip(rng.normal(centre, 0.4), 11.2, 15.5))
    time = np.arange(int(RATE * rng.uniform(0.5, 1.5)), dtype=np.float32) / RATE
    size = np.float32(rng.uniform(13.0, 28.0))
    return size * np.hanning(len(time)).astype(np.float32) * np.sin(2.0 * np.pi * frequency * time + rng.uniform(0.0, 6.28))


def k_complex(rng: np.random.Generator, relative: float) -> Floats:
    """A K-complex in µV: sharp negative, then slower positive wave, at least 0.5 s in all (AASM)."""
    size, stretch = relative * rng.uniform(75.0, 125.0), rng.uniform(0.85, 1.25)
    time = np.arange(int(1.3 * stretch * RATE), dtype=np.float32) / (RATE * stretch)
    sharp = np.exp(-0.5 * ((time - 0.28) / 0.09) ** 2)
    slow = np.exp(-0.5 * ((time - 0.68) / 0.18) ** 2)
    return (size * (0.62 * slow - sharp)).astype(np.float32)


def vertex_wave(rng: np.random.Generator) -> Floats:
    """A vertex sharp wave in µV: negative, under 0.5 s (AASM)."""
    time = np.arange(int(0.5 * RATE), dtype=np.float32) / RATE
    width = rng.uniform(0.04, 0.07)
    size = rng.uniform(40.0, 75.0)
    wave = 0.3 * np.exp(-0.5 * ((time - 0.36) / 0.06) ** 2) - np.exp(-0.5 * ((time - 0.2) / width) ** 2)
    return (size * wave).astype(np.float32)


def sawtooth(rng: np.random.Generator) -> Floats:
    """A train of sawtooth waves in µV: 2-6 Hz, triangular, over centre (AASM)."""
    frequency = rng.uniform(2.3, 4.5)
    time = np.arange(int(RATE * rng.integers(4, 12) / frequency), dtype=np.float32) / RATE
    turn = (time * frequency) % 1.0
    edge = np.minimum(1.0, np.minimum(time, time[-1] - time) / 0.4)
    wave = np.where(turn < 0.7, turn / 0.35 - 1.0, 1.0 - (turn - 0.7) / 0.15)
    return (rng.uniform(13.0, 24.0) * edge * wave).astype(np.float32)
