"""Configuration of a build (``configs/shards.yaml``)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sleepfm.config import Config, digest, load_config, to_dict
from sleepfm.constants import CHANNELS
from sleepfm.data.format import SCHEMA
from sleepfm.errors import ConfigError
from sleepfm.paths import config_root
from sleepfm.signals.cohorts.cohort import AUTO, OWN_COHORTS, Cohort, Rules, all_cohorts, load_rules
from sleepfm.signals.quality import UNUSABLE, Quality
from sleepfm.signals.scorings.labels import RULE_VERSION, EventRule
from sleepfm.signals.scorings.scoring import ScoringUse


class SplitConfig(Config):
    """Fractions of the subjects in each split, and the salt of the hash that places them."""

    salt: str
    pretrain: float = Field(ge=0, le=1)
    label: float = Field(ge=0, le=1)
    val: float = Field(ge=0, le=1)
    test: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _whole(self) -> SplitConfig:
        total = self.pretrain + self.label + self.val + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the fractions of the splits sum to {total:g}, not to 1")
        return self


class QualityConfig(Config):
    """Flags that leave an epoch of a channel out of unimodal pretraining: those that make it unusable, and maybe others."""

    exclude: list[str]

    @field_validator("exclude")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        unknown = sorted(set(value) - set(Quality.__members__))
        if unknown:
            raise ValueError(f"unknown quality flags {unknown}; known: {', '.join(Quality.__members__)}")
        lacking = [str(flag.name) for flag in UNUSABLE if flag.name not in value]
        if lacking:
            raise ValueError(f"{', '.join(lacking)} cannot be left out: such epochs hold no signal, nothing is learnt from zeros")
        return value

    @property
    def mask(self) -> int:
        """The flags as one bit mask."""
        return sum(Quality[name].value for name in set(self.exclude))


class RayConfig(Config):
    """How the work is spread; changes no byte of the result."""

    task_memory_mb: Annotated[int, Field(ge=64)] | Literal["auto"]
    retries: int = Field(ge=0)


class BuildConfig(Config):
    """Everything that shapes a data set, and ``ray``, which does not."""

    cohort: str
    require: list[Literal[CHANNELS]]  # type: ignore[valid-type]
    scoring: ScoringUse = "if_valid"
    event_rule: EventRule
    segment_epochs: int = Field(ge=1, le=1200)
    recordings: int = Field(ge=1, le=4096)
    split: SplitConfig
    quality: QualityConfig
    ray: RayConfig


def load_build_config(path: Path | None = None, overrides: Sequence[str] = ()) -> BuildConfig:
    """``configs/shards.yaml``, or ``path``, with overrides. Raises :class:`ConfigError`."""
    return load_config(BuildConfig, path or config_root() / "shards.yaml", overrides)


def chosen_cohort(config: BuildConfig) -> Rules:
    """The cohort by name, None for ``auto``, or those of a folder. Raises :class:`ConfigError` for an unknown one."""
    return load_rules(config.cohort)


def everywhere(config: BuildConfig) -> BuildConfig:
    """``config`` for processes that may lack this one's environment and folder: the user's own cohorts by their whole path."""
    own = os.environ.get(OWN_COHORTS, "") if config.cohort == AUTO else config.cohort
    return config.model_copy(update={"cohort": str(Path(own).resolve())}) if own and Path(own).is_dir() else config


def identity(config: BuildConfig) -> dict[str, Any]:
    """What decides the bytes: format, configuration without ``ray``, and the content of the cohort rules."""
    plain = {key: value for key, value in to_dict(config).items() if key != "ray"}
    # The key came later: data sets that were built as its default says keep their digest.
    if config.scoring == "if_valid":
        del plain["scoring"]
    rules = chosen_cohort(config)
    cohorts = [rules] if isinstance(rules, Cohort) else (rules or all_cohorts()).all()
    return {
        "schema": SCHEMA,
        **plain,
        "event_rule_version": RULE_VERSION[config.event_rule],
        "cohort_rules": digest([to_dict(cohort) for cohort in cohorts]),
    }


def check_same(stored: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    """Raises :class:`ConfigError` that names the first key in which a build in ``folder`` differs."""
    # What a folder does not state was built as the default says.
    old, new = ({"scoring": "if_valid"} | _flat(values) for values in (stored, wanted))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            raise ConfigError(
                f"{folder}: holds a build with {key}={old.get(key)!r}, this one has {key}={new.get(key)!r}; "
                "build into another folder, or give the same configuration"
            )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
