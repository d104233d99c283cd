"""How a cohort lays out its recordings: ``layouts/*.yaml``, written from the same public documentation as
``configs/cohorts``, so that every cohort's rules can be tried on files that look like its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache
from math import gcd
from pathlib import Path

import numpy as np
from pydantic import Field
from scipy.signal import resample_poly

from sleepfm.config import Config, load_config
from sleepfm.signals.edf.writer import Channel
from sleepfm.synthetic.night import Night
from sleepfm.synthetic.noise import Floats, band_noise, power_law
from sleepfm.synthetic.subject_table import LayoutTable

_FOLDER = Path(__file__).parent / "layouts"
# What a drawn night offers: name here -> its signal and rate in Hz. Electrodes are against a mastoid.
SOURCES = {
    "C3": ("EEG(sec)", 125),
    "C4": ("EEG", 125),
    "E1": ("EOG(L)", 50),
    "E2": ("EOG(R)", 50),
    "FPZ": ("Fpz", 50),
    "NASION": ("nasion", 50),
    # 1.25 of them less, E2 is below its eye instead of above.
    "BLINKS": ("blinks", 50),
    "CHIN": ("EMG", 125),
    "ECG": ("ECG", 125),
    "FLOW": ("NEW AIR", 10),
    "THORAX": ("THOR RES", 10),
    "ABDOMEN": ("ABDO RES", 10),
    "SPO2": ("SaO2", 1),
    "PULSE": ("H.R.", 1),
    "POSITION": ("POSITION", 1),
    "LIGHT": ("LIGHT", 1),
    "NOTHING": ("OX STAT", 1),
}
# Mastoids against Fpz, where Compumedics has its reference: re-referencing takes them out again.
MASTOIDS = ("M1", "M2")
_MASTOID_RATE = 125
_MASTOID_UV, _MASTOID_ECG_UV = 6.0, 30.0
# Readings that a recorder repeats between two of them.
_HELD = ("SPO2", "PULSE", "POSITION", "LIGHT", "NOTHING")


class LayoutSignal(Config):
    """One signal of the EDF: ``from`` gives the share of each source; units are uV (ECG mV, SPO2 %) times it."""

    source: dict[str, float] = Field(alias="from", min_length=1)
    unit: str = ""
    rate: int = Field(ge=1)
    physical: tuple[str | float, str | float]
    digital: tuple[int, int] = (-32768, 32767)


class LayoutScoring(Config):
    """The scoring file: a format of :mod:`sleepfm.synthetic.scoring_files` and a path."""

    format: str
    path: str


class UpsideDown(Config):
    """One of ``every`` recordings, from the second on, is upside down in the signals of one of ``groups``, taken in turn."""

    every: int = Field(ge=2)
    groups: tuple[tuple[str, ...], ...] = Field(min_length=1)

    def signals(self, number: int) -> tuple[str, ...]:
        """Those that are upside down in recording ``number`` (0-based)."""
        turn, place = divmod(number, self.every)
        return self.groups[turn % len(self.groups)] if place == 1 else ()


class Layout(Config):
    """Names, places, signals and scoring of a cohort's recordings. ``{number}`` counts from ``first``."""

    name: str
    first: int = 1
    most: int
    edf: str
    scoring: LayoutScoring
    signals: dict[str, LayoutSignal]
    upside_down: UpsideDown | None = None
    table: LayoutTable | None = None

    @cached_property
    def channels(self) -> tuple[Channel, ...]:
        """The EDF's header."""
        return tuple(
            Channel(label, item.unit, item.rate, str(item.physical[0]), str(item.physical[1]), *item.digital)
            for label, item in self.signals.items()
        )

    def place(self, out: Path, number: int) -> tuple[Path, Path]:
        """Paths of the EDF and the scoring of recording ``number`` (0-based)."""
        name = self.name.format(number=self.first + number)
        edf, scoring = (text.format(name=name, number=self.first + number) for text in (self.edf, self.scoring.path))
        return out / edf, out / scoring

    def draw(self, night: Night, number: int) -> Iterator[Floats]:
        """The signals in order, each [seconds * rate] in its unit."""
        sources = _sources(night)
        wrong = self.upside_down.signals(number) if self.upside_down else ()
        for label, item in self.signals.items():
            parts = [sources(name, item.rate) * np.float32(share) for name, share in item.source.items()]
            signal = sum(parts[1:], parts[0])
            yield -signal if label in wrong else signal


@lru_cache(maxsize=32)
def load_layout(cohort: str) -> Layout:
    """The layout of ``cohort``. Raises :class:`ConfigError`."""
    return load_config(Layout, _FOLDER / f"{cohort}.yaml")


def layout_names() -> tuple[str, ...]:
    """Cohorts that can be written."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def _sources(night: Night) -> Callable[[str, int], Floats]:
    """A function that gives a source at a rate, [seconds * rate]; mastoids are drawn once."""
    mastoids: dict[str, Floats] = {}

    def source(name: str, rate: int) -> Floats:
        if name in MASTOIDS:
            if not mastoids:
                mastoids.update(_mastoids(night))
            return _at(mastoids[name], _MASTOID_RATE, rate)
        label, own = SOURCES[name]
        if name in _HELD and rate != own:
            return np.repeat(night.signals[label], rate)
        return _at(night.signals[label], own, rate)

    return source


def _mastoids(night: Night) -> dict[str, Floats]:
    rng = night.subject.rng("mastoids")
    ecg = night.signals["ECG"]
    label, rate = SOURCES["FPZ"]
    fpz = _at(night.signals[label], rate, _MASTOID_RATE)
    return {
        name: np.float32(_MASTOID_UV) * band_noise(rng, len(ecg), _MASTOID_RATE, 0.3, 40.0, power_law(1.2))
        + np.float32(_MASTOID_ECG_UV * rng.uniform(0.5, 1.0)) * ecg
        - fpz
        for name in MASTOIDS
    }


def _at(signal: Floats, own: int, rate: int) -> Floats:
    if rate == own:
        return signal
    common = gcd(rate, own)
    resampled: Floats = resample_poly(signal, rate // common, own // common).astype(np.float32)
    return resampled[: len(signal) * rate // own]
