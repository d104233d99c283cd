"""Hypnograms: alternating NREM and REM periods, and within them a semi-Markov chain of stages."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import STAGE_NAMES, Stage
from sleepfm.synthetic.fit import EPOCHS_PER_MINUTE, nrem_phase
from sleepfm.synthetic.statistics import Phase, statistics
from sleepfm.synthetic.subject import Subject

# Redrawing more often than this would bias the rest of the night; shorter recordings may miss a stage.
ATTEMPTS = 40
LONG_ENOUGH = 60
LATENCY_LIMIT = 0.12
FULL_NIGHT_HOURS = 8.0


def draw_hypnogram(subject: Subject, n_epochs: int) -> NDArray[np.int8]:
    """Stages [n_epochs] of one recording, lights off to lights on.

    Lengths of periods and stages are those of whole nights, compressed in recordings too short for
    ``least_cycles`` cycles. Recordings of half an hour or more are drawn again while a stage has less than
    ``subject.least_share``.
    """
    rng = subject.rng("hypnogram")
    least = subject.least_share * n_epochs
    for _ in range(ATTEMPTS if n_epochs >= LONG_ENOUGH else 1):
        stages = _draw(subject, rng, n_epochs)
        if np.bincount(stages, minlength=len(STAGE_NAMES)).min() >= least:
            break
    return stages


def _draw(subject: Subject, rng: np.random.Generator, n_epochs: int) -> NDArray[np.int8]:
    fitted, chosen = statistics().hypnogram, statistics().chosen
    hours = n_epochs / (60 * EPOCHS_PER_MINUTE)
    pace = min(1.0, hours / (chosen.cycle_hours * chosen.least_cycles))
    latency = EPOCHS_PER_MINUTE * fitted.latency_minutes.draw(rng, min(1.0, hours / FULL_NIGHT_HOURS))
    onset = max(1, int(subject.sleep_latency * min(latency, LATENCY_LIMIT * n_epochs)))
    stages = np.full(n_epochs, Stage.W, dtype=np.int8)
    last_awake = int(rng.uniform(0.0, 0.03) * n_epochs)
    end = max(onset + 1, n_epochs - last_awake)
    epoch, cycle = onset, 0
    while epoch < end:
        slot = min(int(4 * epoch / n_epochs), len(fitted.nrem_minutes) - 1)
        for kind, lengths in (("nrem", fitted.nrem_minutes), ("rem", fitted.rem_minutes)):
            period = max(2, round(EPOCHS_PER_MINUTE * lengths[slot].draw(rng, pace)))
            stop = min(end, epoch + period)
            phase = "rem" if kind == "rem" else nrem_phase((epoch + stop) / 2, onset, end)
            first = Stage.REM if kind == "rem" else Stage.N1 if cycle == 0 else Stage.N2
            _fill(stages[epoch:stop], first, fitted.phases[phase], fitted.dwell_quantiles, pace, subject, rng)
            epoch = stop
        cycle += 1
    return stages


def _fill(
    stages: NDArray[np.int8],
    stage: Stage,
    phase: Phase,
    quantiles: list[float],
    pace: float,
    subject: Subject,
    rng: np.random.Generator,
) -> None:
    epoch = 0
    while epoch < len(stages):
        name = STAGE_NAMES[stage]
        dwell = float(np.interp(rng.random(), quantiles, phase.dwell_epochs[name])) * pace
        if stage == Stage.N3:
            dwell *= subject.depth
        elif stage in (Stage.N2, Stage.REM):
            dwell /= subject.fragmentation
        else:
            dwell *= subject.fragmentation
        if stage == Stage.W:
            dwell *= subject.wakefulness
        stop = epoch + max(1, round(dwell))
        stages[epoch:stop] = stage
        epoch = stop
        weights = np.array(phase.jumps[name])
        weights[[Stage.W, Stage.N1]] *= subject.fragmentation
        weights[Stage.N3] *= subject.depth
        stage = Stage(int(rng.choice(len(weights), p=weights / weights.sum())))
