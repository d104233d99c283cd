"""Chin EMG: tone that falls from W to REM, breathing-locked activity, bursts at arousals, twitches in REM."""

from __future__ import annotations

import numpy as np

from sleepfm.constants import Stage
from sleepfm.synthetic.artefact import add_movements
from sleepfm.synthetic.microstate import Microstates
from sleepfm.synthetic.noise import Floats, add_at, band_noise, drift, upsample
from sleepfm.synthetic.respiration import RATE as BREATHING_RATE
from sleepfm.synthetic.respiration import Breathing
from sleepfm.synthetic.subject import Subject

RATE = 125
# Root mean square in µV by state W, N1, N2, N3; REM keeps the subject's share of N2.
TONE = np.array([5.0, 3.3, 2.5, 2.1, 2.5], dtype=np.float32)
AROUSAL_GAIN = 2.2
TWITCHES_PER_MINUTE = 2.5


def draw_emg(subject: Subject, micro: Microstates, breathing: Breathing, ecg: Floats) -> Floats:
    """Submental EMG [T * 125] in µV."""
    rng = subject.rng("emg")
    seconds = len(micro.state)
    n = seconds * RATE
    tone = TONE.copy()
    tone[Stage.REM] *= subject.rem_tone
    level = tone[micro.body] * np.exp(0.12 * drift(rng, seconds, 120.0) + 0.12 * drift(rng, seconds, 3.0))
    awake = micro.state == Stage.W
    level *= np.where(awake & (drift(rng, seconds, 8.0) > 1.2), 1.8, 1.0)
    # An arousal of NREM raises the tone at once; it dies away over the seconds after.
    burst = micro.arousal * rng.uniform(0.6, 1.4)
    for lag in range(1, 5):
        burst[lag:] = np.maximum(burst[lag:], 0.7**lag * micro.arousal[:-lag])
    level = level + ~awake * burst * AROUSAL_GAIN * TONE[Stage.N2]
    fine = upsample(level, BREATHING_RATE)
    fine *= 1.0 + np.float32(subject.snore) * (1.3 * breathing.snore - 0.2)
    envelope = upsample(0.5 * (fine[::2] + fine[1::2]), 2 * RATE // BREATHING_RATE)
    _add_twitches(envelope, micro, rng)
    emg = band_noise(rng, n, RATE, 10.0, 62.0)
    emg *= envelope
    emg *= np.float32(subject.tone)
    emg += np.float32(0.3) * rng.standard_normal(n, dtype=np.float32)
    emg += np.float32(1000.0 * subject.ecg_leak * 0.5) * ecg
    add_movements(rng, emg, RATE, micro.movements, size=7.0)
    return emg


def _add_twitches(envelope: Floats, micro: Microstates, rng: np.random.Generator) -> None:
    hits = np.flatnonzero((micro.body == Stage.REM) & (rng.random(len(micro.body)) < TWITCHES_PER_MINUTE / 60.0))
    for second in hits.tolist():
        shape = np.hanning(int(RATE * rng.uniform(0.15, 0.6))).astype(np.float32)
        add_at(envelope, int((second + rng.random()) * RATE), np.float32(rng.uniform(1.5, 5.0)) * shape)
