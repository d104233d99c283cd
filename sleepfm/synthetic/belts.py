"""The chest as two compartments, rib cage and abdomen, and what two belts and an airflow sensor record of breathing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from sleepfm.constants import Stage
from sleepfm.synthetic.noise import Floats, drift
from sleepfm.synthetic.subject import Subject

if TYPE_CHECKING:
    from sleepfm.synthetic.respiration import Breathing

RATE = 10
# Share of the rib cage in REM, when its muscles go slack, relative to other stages
# (Tusiewicz et al. 1977, J Appl Physiol 43:600).
REM_RIB_CAGE = 0.7
# Lag of the rib cage behind the abdomen in quiet breathing, in turns: the range over people, more in REM, and its wander (s).
QUIET_LAG, REM_LAG = (0.035, 0.07), 0.025
LAG_SD, LAG_SECONDS = 0.012, 30.0
# Each compartment's own change from breath to breath and over minutes (log standard deviation).
OWN_BREATH, OWN_SLOW, OWN_SECONDS = 0.07, 0.10, 90.0
# Relative to quiet breathing: how far the heart beat moves a belt, and the air in an open airway; noise of belts and flow sensor.
CARDIAC_BELT, CARDIAC_FLOW = (0.02, 0.05), (0.002, 0.008)
BELT_NOISE, FLOW_NOISE = 0.015, 0.003
# Slow change of a belt is filtered out below 0.1 Hz, as the AASM manual recommends for effort.
BELT_HERTZ = 0.1
FLOW_UV, BELT_SCALE = 60.0, 0.3


def compartments(
    subject: Subject, stage: NDArray[np.int8], phase: NDArray[np.float64], depths: Floats, gain: Floats, lag: Floats
) -> tuple[Floats, Floats]:
    """Volumes of rib cage and abdomen [T * 10].

    Args:
        phase: of breathing [T * 10], 0 where a breath starts; depths: of each breath.
        gain: of effort [T * 10]; lag: of the rib cage in obstruction [T * 10], in turns, over that of quiet breathing.
    """
    rng = subject.rng("belts")
    n = len(phase)
    rem = (stage == Stage.REM).astype(np.float32)
    quiet = rng.uniform(*QUIET_LAG) + REM_LAG * rem + LAG_SD * drift(rng, n, LAG_SECONDS * RATE)
    behind = np.maximum(lag, 0.0) + quiet * (1.0 - 2.0 * np.minimum(lag, 0.5))
    volumes = []
    for share, delayed in ((1.0 - (1.0 - REM_RIB_CAGE) * rem, behind), (1.0, 0.0)):
        turned = phase - 2.0 * np.pi * delayed
        breath = np.clip(np.floor(turned / (2.0 * np.pi)), 0, len(depths) - 1).astype(np.int64)
        own = depths * np.exp(OWN_BREATH * rng.standard_normal(len(depths)))
        slow = np.exp(OWN_SLOW * drift(rng, n, OWN_SECONDS * RATE))
        volume = share * gain * slow * own[breath] * (1.0 - np.cos(turned)) - 1.0
        volumes.append(volume.astype(np.float32))
    return volumes[0], volumes[1]


def record_breathing(subject: Subject, breathing: Breathing, beats: NDArray[np.float64]) -> tuple[Floats, Floats, Floats]:
    """Airflow in uV, and thorax and abdomen belts without a unit, each [T * 10], as the recorder has them.

    The heart beats into all three, seen best where effort stops (cardiogenic oscillations: Ayappa et al. 1999, Chest 116:660).

    Args:
        beats: R peak times in s, in order.
    """
    rng = subject.rng("sensors")
    n = len(breathing.flow)
    turns = np.interp(np.arange(n) / RATE, beats, np.arange(len(beats), dtype=np.float64))
    pulse = np.sin(2.0 * np.pi * turns).astype(np.float32)
    decay = float(np.exp(-2.0 * np.pi * BELT_HERTZ / RATE))
    recorded = []
    for volume in (breathing.thorax, breathing.abdomen):
        moved = lfilter([1.0, -1.0], [1.0, -decay], volume - volume[0])
        moved += np.float32(rng.uniform(*CARDIAC_BELT)) * pulse
        moved += np.float32(BELT_NOISE) * rng.standard_normal(n, dtype=np.float32)
        recorded.append((BELT_SCALE * moved).astype(np.float32))
    flow = breathing.flow + np.float32(rng.uniform(*CARDIAC_FLOW)) * pulse
    flow += np.float32(FLOW_NOISE) * rng.standard_normal(n, dtype=np.float32)
    return np.float32(FLOW_UV) * flow, recorded[0], recorded[1]
