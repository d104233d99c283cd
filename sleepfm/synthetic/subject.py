"""What differs between synthetic people: one draw of traits a subject, and its independent random streams."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from sleepfm.synthetic.statistics import statistics

# Successive multiples of the golden section modulo 1 spread evenly, so that a small cohort spans all
# severities too.
GOLDEN = 0.6180339887498949
REM_WITHOUT_ATONIA = 0.12
# Medians of traits at 40 years, and the years after which they would have fallen by 1.
AGING = {"depth": (1.25, 100.0), "spindle_rate": (1.1, 150.0), "slow_wave": (1.15, 130.0)}


@dataclass(frozen=True)
class Subject:
    """Traits of one synthetic person.

    Attributes:
        number: 0-based place in the cohort.
        seed: seed of the cohort.
        age: years; shrinks slow waves and spindles.
        index: apneas and hypopneas an hour of sleep aimed at.
        apnea_share: share of apneas among them.
        central_share: share of central among non-mixed apneas.
        fragmentation: 1 for the population; above, stages are cut shorter and N1 and W are more frequent.
        depth: multiplies how long N3 lasts.
        eeg_gain, eeg_slope: overall EEG amplitude, exponent of the 1/f power background.
        alpha_hz, alpha, spindle_hz, spindle_rate, slow_wave, theta, beta: EEG rhythms; amplitudes relative to
            the population.
        eye: amplitude of eye movements; rem_density: rapid eye movements relative to the population.
        tone: chin EMG amplitude; rem_tone: how much of it stays in REM; snore: breathing-locked part of it.
        heart_rate: beats a minute at rest asleep; rsa: respiratory sinus arrhythmia, beats a minute.
        cyclic: heart-rate response to apnea relative to the population.
        r_wave: mV; r_breathing: relative change of R amplitude with breathing effort.
        breath_hz: breathing rate; spo2: resting saturation in %; desaturation: % lost for a second without
            flow, at first.
        delay: seconds from lung to oximeter.
        mains, ecg_leak: amplitude of 60 Hz in µV, share of ECG (µV for mV/1000) seen in EEG and EMG.
        sex: "female" or "male"; empty where no signal depends on it, and a table draws it.
        mixed_share: share of mixed apneas among apneas.
        sleep_latency, wakefulness: how long falling asleep takes and wake in the night lasts, relative to the population.
        least_share: of each stage; a night that has less of one is drawn again.
        rem_without_atonia: share of REM in which chin tone is kept.
        alpha_intrusion: µV (root mean square) of alpha in N2 and N3 beside what everybody has.
        arousals_per_hour: spontaneous ones; ectopic_per_hour: premature ventricular beats.
    """

    number: int
    seed: int
    age: float
    index: float
    apnea_share: float
    central_share: float
    fragmentation: float
    depth: float
    eeg_gain: float
    eeg_slope: float
    alpha_hz: float
    alpha: float
    spindle_hz: float
    spindle_rate: float
    slow_wave: float
    theta: float
    beta: float
    eye: float
    rem_density: float
    tone: float
    rem_tone: float
    snore: float
    heart_rate: float
    rsa: float
    cyclic: float
    r_wave: float
    r_breathing: float
    breath_hz: float
    spo2: float
    desaturation: float
    delay: float
    mains: float
    ecg_leak: float
    sex: str
    mixed_share: float
    sleep_latency: float
    wakefulness: float
    least_share: float
    rem_without_atonia: float
    alpha_intrusion: float
    arousals_per_hour: float
    ectopic_per_hour: float

    def rng(self, part: str) -> np.random.Generator:
        """The stream of one part of the simulation: changing one part leaves the others as they are."""
        return _rng(self.seed, self.number, part)


def at_age(trait: str, age: float) -> float:
    """Median of a trait that falls with age, at ``age`` years."""
    median, years = AGING[trait]
    return median - (age - 40.0) / years


def draw_subject(seed: int, number: int) -> Subject:
    """Subject ``number`` (0-based) of the cohort with ``seed``."""
    rng = _rng(seed, number, "subject")
    chosen, fitted = statistics().chosen, statistics().respiration
    offset = _rng(seed, 0, "cohort").random()
    quantile = (offset + GOLDEN * number) % 1.0
    severity = float(ndtri(np.clip(quantile, 0.01, 0.99)))
    index = chosen.index_per_hour.median * np.exp(chosen.index_per_hour.log_sd * severity)
    apneas = fitted.kinds["central_apnea"] + fitted.kinds["obstructive_apnea"]

    def spread(median: float, log_sd: float) -> float:
        return float(median * np.exp(log_sd * np.clip(rng.standard_normal(), -2.0, 2.0)))

    age = float(rng.uniform(40.0, 85.0))
    return Subject(
        number=number,
        seed=seed,
        age=age,
        index=float(np.clip(index, chosen.index_per_hour.lowest, chosen.index_per_hour.highest)),
        apnea_share=float(np.clip(rng.normal(chosen.apnea_share.mean, chosen.apnea_share.sd), 0.15, 0.85)),
        central_share=float(rng.beta(1.0, apneas / fitted.kinds["central_apnea"] - 1.0)),
        fragmentation=spread(1.0 + 0.12 * severity, 0.15),
        depth=spread(at_age("depth", age), 0.3),
        eeg_gain=spread(1.0, 0.18),
        eeg_slope=float(rng.normal(1.25, 0.15)),
        alpha_hz=float(rng.normal(9.6, 0.7)),
        alpha=spread(1.0, 0.4),
        spindle_hz=float(rng.normal(13.2, 0.6)),
        spindle_rate=spread(at_age("spindle_rate", age), 0.3),
        slow_wave=spread(at_age("slow_wave", age), 0.15),
        theta=spread(1.0, 0.2),
        beta=spread(1.0, 0.3),
        eye=spread(1.0, 0.2),
        rem_density=spread(1.0, 0.35),
        tone=spread(1.0, 0.35),
        rem_tone=spread(0.42, 0.3),
        snore=float(np.clip(0.45 + 0.15 * severity + 0.15 * rng.standard_normal(), 0.2, 0.9)),
        heart_rate=float(rng.normal(62.0, 7.0)),
        rsa=spread(3.0, 0.4),
        cyclic=spread(1.0, 0.25),
        r_wave=spread(0.75, 0.18),
        r_breathing=spread(0.16, 0.25),
        breath_hz=float(np.clip(rng.normal(0.25, 0.025), 0.19, 0.31)),
        spo2=float(np.clip(rng.normal(96.0, 1.0), 93.0, 98.0)),
        desaturation=spread(0.45, 0.3),
        delay=float(rng.uniform(14.0, 24.0)),
        mains=spread(0.5, 0.6),
        ecg_leak=spread(0.004, 0.8),
        sex="",
        mixed_share=chosen.mixed_share,
        sleep_latency=1.0,
        wakefulness=1.0,
        least_share=chosen.least_share,
        rem_without_atonia=REM_WITHOUT_ATONIA,
        alpha_intrusion=0.0,
        arousals_per_hour=chosen.spontaneous_arousals_per_hour,
        ectopic_per_hour=0.0,
    )


def _rng(seed: int, number: int, part: str) -> np.random.Generator:
    sequence = np.random.SeedSequence(seed, spawn_key=(number, zlib.crc32(part.encode())))
    return np.random.Generator(np.random.Philox(sequence))
