"""Potentials about the eyes: slow rolling and rapid eye movements, blinks, and the frontal EEG that reaches each site.

The eye is a dipole, positive at the cornea, that turns up under a closing lid (Bell's phenomenon): a blink is positive above
the eyes, at Fpz and at the nasion, and slightly negative below the eyes. Gaze to one side is positive at that side and
negative at the other. Slow waves are largest at the front of the head (Massimini 2004), so that an eye electrode
against a mastoid shows them with the sign that C3 and C4 have, and one against Fpz or the nasion shows what is left of
them the other way round.

The AASM's recommended sites are below the left eye and above the right one, against a mastoid: vertical movement is in
antiphase as horizontal movement is. Its acceptable sites are below both eyes, against Fpz: vertical movement is in phase.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.signal import lfilter, resample_poly

from sleepfm.constants import Stage
from sleepfm.synthetic.artefact import add_movements
from sleepfm.synthetic.microstate import Microstates
from sleepfm.synthetic.noise import Floats, band_noise, drift, upsample
from sleepfm.synthetic.subject import Subject

RATE = 50
EEG_RATE = 125
# Slow rolling movements in µV (root mean square) by state, and in W with the eyes closed.
ROLLING = np.array([2.0, 22.0, 2.5, 1.5, 2.0], dtype=np.float32)
DROWSY = 12.0
# Of what C3 and C4 have in common, below and above about 4 Hz: beside an eye, at Fpz and at the nasion.
EYE_SHARE, FPZ_SHARE, NASION_SHARE = (0.4, 0.4), (1.15, 0.5), (0.85, 0.4)
# Of a blink above the eye: below an eye, at Fpz and at the nasion.
BLINK_BELOW, BLINK_FPZ, BLINK_NASION = -0.25, 0.6, 0.8
# Half of the amplitude is left at 4 Hz.
_SLOW_WINDOW = np.hanning(13)[1:-1] / 6.0
BLINKS_PER_MINUTE = 14.0
SACCADES_PER_MINUTE = 22.0
REM_BURSTS_PER_MINUTE = 2.8
# The amplifier's high pass and gaze drift bring the potential back to zero with this time constant (s).
RETURN_SECONDS = 0.5


class EyePotentials(NamedTuple):
    """Each [T * 50] in µV against a mastoid: below the left eye, above the right one, at Fpz, at the nasion.

    ``blinks`` are the part of ``right`` that an electrode below that eye sees :data:`BLINK_BELOW` times.
    """

    left: Floats
    right: Floats
    fpz: Floats
    nasion: Floats
    blinks: Floats


def draw_eog(subject: Subject, micro: Microstates, eeg: tuple[Floats, Floats]) -> EyePotentials:
    """The potentials about the eyes in a night with ``eeg`` at C3 and C4."""
    rng = subject.rng("eog")
    n = len(micro.state) * RATE
    awake = micro.state == Stage.W
    rolling = ROLLING[micro.body] + np.where(awake & ~micro.eyes_open, np.float32(DROWSY), np.float32(0.0))
    rolling *= np.exp(0.4 * drift(rng, len(rolling), 20.0))
    gaze = band_noise(rng, n, RATE, 0.15, 0.5)
    gaze *= upsample((rolling * np.float32(subject.eye)).astype(np.float32), RATE)
    gaze += _saccades(subject, micro, rng, n)
    blinks = _blinks(subject, awake & micro.eyes_open, rng, n)
    frontal = (resample_poly(eeg[0] + eeg[1], 2, EEG_RATE // 25)[:n] / 2.0).astype(np.float32)
    slow = np.convolve(frontal, _SLOW_WINDOW, mode="same").astype(np.float32)

    def site(share: tuple[float, float], side: float, blink: float) -> Floats:
        signal = np.float32(share[0]) * slow + np.float32(share[1]) * (frontal - slow) + np.float32(blink) * blinks
        signal += gaze * np.float32(side * rng.uniform(0.85, 1.1))
        signal += np.float32(2.5) * rng.standard_normal(n, dtype=np.float32)
        add_movements(rng, signal, RATE, micro.movements, size=45.0)
        return signal

    return EyePotentials(
        left=site(EYE_SHARE, 1.0, BLINK_BELOW),
        right=site(EYE_SHARE, -1.0, 1.0),
        fpz=site(FPZ_SHARE, 0.0, BLINK_FPZ),
        nasion=site(NASION_SHARE, 0.0, BLINK_NASION),
        blinks=blinks,
    )


def _saccades(subject: Subject, micro: Microstates, rng: np.random.Generator, n: int) -> Floats:
    steps = np.zeros(n, dtype=np.float32)
    open_eyes = (micro.state == Stage.W) & micro.eyes_open
    for second in np.flatnonzero(open_eyes & (rng.random(len(open_eyes)) < SACCADES_PER_MINUTE / 60.0)).tolist():
        steps[int((second + rng.random()) * RATE)] += rng.normal(0.0, 55.0)
    # Phasic REM comes in clusters of a few minutes (drift), each burst a few saccades to and fro.
    density = subject.rem_density * REM_BURSTS_PER_MINUTE / 60.0 * np.exp(0.9 * drift(rng, len(open_eyes), 60.0))
    bursts = np.flatnonzero((micro.body == Stage.REM) & (rng.random(len(density)) < density))
    for second in bursts.tolist():
        place, sign = (second + rng.random()) * RATE, rng.choice([-1.0, 1.0])
        for _ in range(int(rng.integers(1, 6))):
            if place < n:
                steps[int(place)] += sign * rng.uniform(30.0, 90.0)
            place += RATE * rng.uniform(0.25, 0.9)
            sign = -sign if rng.random() < 0.8 else sign
    moved = lfilter(np.hanning(7)[1:-1] / 3.0, [1.0, -np.exp(-1.0 / (RETURN_SECONDS * RATE))], steps)
    return np.float32(subject.eye) * moved.astype(np.float32)


def _blinks(subject: Subject, open_eyes: np.ndarray, rng: np.random.Generator, n: int) -> Floats:
    """As above an eye, [n] in µV."""
    hits = np.flatnonzero(open_eyes & (rng.random(len(open_eyes)) < BLINKS_PER_MINUTE / 60.0))
    impulses = np.zeros(n, dtype=np.float32)
    impulses[((hits + rng.random(len(hits))) * RATE).astype(np.int64)] = rng.uniform(60.0, 130.0, len(hits))
    time = np.arange(int(0.9 * RATE), dtype=np.float32) / RATE
    shape = np.exp(-0.5 * ((time - 0.15) / 0.06) ** 2) - 0.18 * np.exp(-0.5 * ((time - 0.45) / 0.12) ** 2)
    return np.float32(subject.eye) * np.convolve(impulses, shape.astype(np.float32))[:n]
