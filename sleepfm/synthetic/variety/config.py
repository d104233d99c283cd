"""What varies between the recordings of a training cohort (``configs/synthetic``): a section a knob, null where it is off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

from sleepfm.config import Config, load_config


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"a range needs its lower end first, found {pair[0]:g} to {pair[1]:g}")
    return pair


def _has_weight(weights: dict[str, float]) -> dict[str, float]:
    if min(weights.values(), default=0.0) < 0.0 or sum(weights.values()) <= 0.0:
        raise ValueError("weights must be 0 or more, and at least one must be above 0")
    return weights


# Lowest and highest value; between them every value is as likely, of ratios the logarithm.
Range = Annotated[tuple[float, float], AfterValidator(_rising)]
Share = Annotated[float, Field(ge=0, le=1)]
# Relative weights by name.
Weights = Annotated[dict[str, float], Field(min_length=1), AfterValidator(_has_weight)]
# A value at ages in years, the ratio between them interpolated.
Trend = Annotated[dict[float, Annotated[float, Field(gt=0)]], Field(min_length=1)]


def uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """A value between ``bounds``."""
    return float(rng.uniform(*bounds))


def ratio(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """A value between ``bounds``, both above 0, whose logarithm is uniform."""
    return float(np.exp(rng.uniform(*np.log(bounds))))


def choose(rng: np.random.Generator, weights: Mapping[str, float]) -> str:
    """A name, as likely as its weight says."""
    shares = np.array(list(weights.values()))
    return str(list(weights)[int(rng.choice(len(shares), p=shares / shares.sum()))])


class Age(Config):
    """Years, and medians of traits relative to the population's at 40 to 85 years."""

    years: Range
    trends: dict[str, Trend]


class Sex(Config):
    """Share of women, and traits of a woman relative to those of a man."""

    female: Share
    ratios: dict[str, Annotated[float, Field(gt=0)]]


class Some(Config):
    """A condition that some people have: the share of them, and ratios of their traits to those of others."""

    share: Share
    ratios: dict[str, Range] = {}


class Apnea(Config):
    """Respiratory events from none to severe: index an hour of sleep, and the kinds among them.

    Attributes:
        none: share of people with hardly any, fewer than ``few`` an hour.
        index: of the others; apnea_share: of apneas among events; central: share of people whose apneas are mostly central;
        mixed_share: of mixed ones among apneas.
        ratios: of traits beside these.
    """

    none: Share
    few: float = Field(gt=0)
    index: Range
    apnea_share: Range
    central: Share
    mixed_share: Range
    ratios: dict[str, Range] = {}


class AlphaIntrusion(Config):
    """Alpha in N2 and N3, in µV (root mean square)."""

    share: Share
    microvolts: Range


class WithoutAtonia(Config):
    """REM sleep in which chin tone is kept, by the share of that time."""

    share: Share
    of_rem: Range


class PerHour(Config):
    """How often an hour, in the ``share`` of people who have it."""

    share: Share = 1.0
    per_hour: Range


class Traits(Config):
    """Ratios of every person's traits, on top of what the population's spread is."""

    ratios: dict[str, Range]


class Montage(Config):
    """Pairs of EEG derivations, the first recorded in the place of C3-M2, the second in that of C4-M1; and of the eyes."""

    eeg: Weights
    eyes: Weights


class Rates(Config):
    """Sampling rates in Hz by weight: of EEG, EOG, EMG and ECG together, and of flow and effort."""

    signals: dict[int, float]
    breathing: dict[int, float]


class Amplifier(Config):
    """Filters of first or second order, corner frequencies in Hz; share of recorders with a notch at the mains; bits."""

    high_pass: Range
    low_pass: Range
    breathing_high_pass: Range
    breathing_low_pass: Range
    notch: Share
    bits: dict[int, float]


class Polarity(Config):
    """Share of recordings in which a signal of each group is upside down."""

    eeg: Share
    eyes: Share
    ecg: Share
    breathing: Share


class Noise(Config):
    """What a recorder adds: white noise (root mean square), mains and drift in µV, and to sensors noise relative to a breath."""

    white: Range
    mains: Range
    hertz: Weights
    drift: Range
    breathing: Range


class Channels(Config):
    """What is recorded at all: shares of recordings with one EEG alone, and of those that lack each other group."""

    one_eeg: Share
    without: dict[str, Share]


class Variety(Config):
    """All knobs. Each can be null alone, and what the others draw is then the same."""

    example = "synthetic/train.yaml"
    age: Age | None = None
    sex: Sex | None = None
    traits: Traits | None = None
    insomnia: Some | None = None
    apnea: Apnea | None = None
    alpha_intrusion: AlphaIntrusion | None = None
    rem_without_atonia: WithoutAtonia | None = None
    medication: Some | None = None
    arousals: PerHour | None = None
    ectopic: PerHour | None = None
    montage: Montage | None = None
    rates: Rates | None = None
    amplifier: Amplifier | None = None
    gains: Range | None = None
    polarity: Polarity | None = None
    noise: Noise | None = None
    channels: Channels | None = None
    faults: bool = False
    scorer: bool = False


def load_variety(path: str | Path, overrides: tuple[str, ...] = ()) -> Variety:
    """A file of ``configs/synthetic``, by its path or name, with ``key=value`` on top.

    Raises:
        ConfigError: it cannot be read, or holds what is no knob.
    """
    return load_config(Variety, path, overrides)
