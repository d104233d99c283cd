"""Cohorts: what a study's files look like. Harmonisation is rules in ``configs/cohorts/*.yaml``, not code."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from sleepfm.config import Config, load_config
from sleepfm.constants import CHANNELS
from sleepfm.errors import ConfigError
from sleepfm.paths import config_root
from sleepfm.signals.recording import Recording


class Rule(Config):
    """One way to make a canonical channel.

    ``signal`` lists the labels that mean the same derivation; with ``reference`` the signal found is referred to the
    signal of one of those labels, with two ``linked`` references to their mean. ``unit`` replaces a unit that the files
    leave empty or wrong; ``note`` is recorded with the choice, for substitutes.
    """

    signal: list[str] = Field(min_length=1)
    reference: list[str] = []
    linked: list[str] = []
    unit: str | None = None
    invert: bool = False
    note: str = ""


class Band(Config):
    """Pass band in Hz."""

    low: float = Field(gt=0)
    high: float = Field(gt=0)


class ScoringFiles(Config):
    """Where the scored stages and events of a recording are, relative to its folder or the source's root.

    ``files`` are patterns in which ``{stem}`` is the recording's file name without extension and ``{key}`` what ``key``
    matches in it. ``longer_is_cut`` accepts a hypnogram that goes on after the recording, as some cohorts publish it.
    """

    files: list[str] = []
    key: str = ""
    longer_is_cut: bool = False
    events: bool = True


class Cohort(Config):
    """One study. ``subject`` and ``visit`` are regular expressions on the file name; visits share the subject."""

    name: str
    source: str
    recordings: list[str] = ["**/*.edf", "**/*.EDF", "**/*.bdf", "**/*.BDF"]
    scoring: ScoringFiles = ScoringFiles()
    subject: str = r"(?P<subject>.+)"
    visit: str = ""
    subject_prefix: str = ""
    channels: dict[str, list[Rule]]
    recognised_by: list[str] = []
    recognised_name: str = ""
    minimum_rate: dict[str, float]
    filters: dict[str, Band]
    event_rule: Literal["overlap", "reference"] = "overlap"

    @field_validator("channels", "minimum_rate", "filters")
    @classmethod
    def _canonical(cls, value: dict[str, object]) -> dict[str, object]:
        unknown = sorted(set(value) - set(CHANNELS))
        if unknown:
            raise ValueError(f"{unknown} are no canonical channels; known: {', '.join(CHANNELS)}")
        return value

    @field_validator("subject", "visit", "recognised_name")
    @classmethod
    def _expression(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression ({error})") from error
        return value

    def identify(self, path: Path) -> tuple[str, str]:
        """Subject key and visit of the recording at ``path``. A name that does not match is its own subject."""
        match = re.search(self.subject, path.stem)
        subject = match["subject"] if match else path.stem
        visit = re.search(self.visit, path.stem) if self.visit else None
        return f"{self.subject_prefix or self.name}-{subject}", visit["visit"] if visit else ""


@lru_cache(maxsize=64)
def load_cohort(name: str) -> Cohort:
    """The cohort of ``configs/cohorts/NAME.yaml``, or of a YAML file given by its path.

    Raises:
        ConfigError: no such cohort (the known ones are named), or a wrong file.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = config_root() / "cohorts" / f"{name}.yaml"
        if not path.is_file():
            raise ConfigError(
                f"unknown cohort {name!r}; known: auto, {', '.join(known_cohorts())}; or give a YAML file"
            )
    return load_config(Cohort, path)


def known_cohorts() -> list[str]:
    """Names of the shipped cohorts."""
    return sorted(p.stem for p in (config_root() / "cohorts").glob("*.yaml") if p.stem != "defaults")


def recognise_cohort(recording: Recording) -> Cohort:
    """The shipped cohort whose labels and file names this recording has; ``generic`` (AASM names) where none fits.

    A cohort is recognised when all its ``recognised_by`` labels are there and ``recognised_name`` matches the file.
    """
    labels = {normalise(signal.label) for signal in recording.signals}
    for name in known_cohorts():
        cohort = load_cohort(name)
        wanted = {normalise(label) for label in cohort.recognised_by}
        if wanted and wanted <= labels and re.search(cohort.recognised_name, recording.path.name, re.IGNORECASE):
            return cohort
    return load_cohort("generic")


def normalise(label: str) -> str:
    """A label without case, spaces and punctuation: ``EEG (sec)`` and ``eeg(SEC)`` are one label."""
    return re.sub(r"[^0-9a-z\u00e0-\u00ff]+", "", label.casefold())
