"""The population's numbers, read from ``statistics.yaml`` (sources and fit stated there)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from sleepfm.config import Config, load_config

PATH = Path(__file__).with_name("statistics.yaml")


class LogNormal(Config):
    """A log-normal distribution by its median and the standard deviation of its logarithm."""

    median: float
    log_sd: float

    def draw(self, rng: np.random.Generator, scale: float = 1.0) -> float:
        """One value, its median multiplied by ``scale``."""
        return float(self.median * scale * np.exp(self.log_sd * rng.standard_normal()))


class Phase(Config):
    """How stages follow each other in one kind of period: next stage, and quantiles of epochs a stage lasts.
    How stages follow each other in one kind of period: next stage, and quantiles of epochs a stage lasts."""

    jumps: dict[str, list[float]]
    dwell_epochs: dict[str, list[float]]


class HypnogramStatistics(Config):
    """Fitted to DOD-H and DOD-O."""

    latency_minutes: LogNormal
    nrem_minutes: list[LogNormal]
    rem_minutes: list[LogNormal]
    dwell_quantiles: list[float]
    shares: dict[str, float]
    phases: dict[str, Phase]


class RespirationStatistics(Config):
    """Fitted to slpdb."""

    rate_per_hour: dict[str, float]
    index_per_hour: LogNormal
    kinds: dict[str, float]
    arousal_probability: dict[str, float]


class IndexRange(Config):
    """Events an hour of sleep over subjects."""

    median: float
    log_sd: float
    lowest: float
    highest: float


class Spread(Config):
    """A mean and a standard deviation over subjects."""

    mean: float
    sd: float


class Durations(Config):
    """Log-normal durations between two bounds, in seconds."""

    median: float
    log_sd: float
    lowest: float
    highest: float


class Chosen(Config):
    """Set by hand: neither source holds them."""

    index_per_hour: IndexRange
    apnea_share: Spread
    mixed_share: float
    duration_seconds: Durations
    recovery_seconds: float
    supine_factor: float
    spontaneous_arousals_per_hour: float
    least_share: float
    cycle_hours: float
    least_cycles: int


class Statistics(Config):
    """All of ``statistics.yaml``."""

    hypnogram: HypnogramStatistics
    respiration: RespirationStatistics
    chosen: Chosen


@cache
def statistics() -> Statistics:
    """The shipped numbers."""
    return load_config(Statistics, PATH)
