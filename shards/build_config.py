"""Configuration of a build (``configs/shards.yaml``)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from sleepfm.config import Config, digest, load_config, to_dict
from sleepfm.constants import CHANNELS
from sleepfm.data.format import SCHEMA
from sleepfm.errors import ConfigError
from sleepfm.paths import config_root
from sleepfm.signals.cohorts.catalogue import AUTO, OWN_COHORTS, Rules, load_rules
from sleepfm.signals.cohorts.cohort import Cohort, GrowingSection
from sleepfm.signals.cohorts.subject_rules import SubjectsUse
from sleepfm.signals.prepare import PROCESSING_VERSION
from sleepfm.signals.quality import UNUSABLE, Quality
from sleepfm.signals.scorings.labels import RULE_VERSION, EventRule
from sleepfm.signals.scorings.scoring import ScoringUse


def _once(values: list[str]) -> list[str]:
    """Raises :class:`ValueError` where one of ``values`` stands twice: the second may be meant for another."""
    if twice := sorted({value for value in values if values.count(value) > 1}):
        raise ValueError(f"{', '.join(twice)} is given more than once")
    return values


# By what splits can be made alike.
Stratum = Literal["age", "sex", "ahi"]


class SplitConfig(GrowingSection):
    """Fractions of the subjects in each split, the salt of the hash that places them, and what the splits are to have alike."""

    _LATER = ("stratify",)

    salt: str
    stratify: Annotated[list[Stratum], AfterValidator(_once)] = []
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
            raise ValueError(
                f"{', '.join(lacking)} must be in the list: such epochs hold no signal, and a model learns nothing from zeros"
            )
        return value

    @property
    def mask(self) -> int:
        """The flags as one bit mask."""
        return sum(Quality[name].value for name in set(self.exclude))


class PrivacyConfig(Config):
    """What a data set keeps of the recordings' own words (:mod:`shards.privacy`).

    Attributes:
        texts: free texts of headers and scorings, as digests or as they are.
        clock: the time of day at which a recording begins; its date is never kept.
        names: names of files, and what is told from them.
        salt: of the digests; only its own digest is kept.
    """

    texts: Literal["digest", "keep"]
    clock: Literal["keep", "drop"]
    names: Literal["keep", "digest"]
    salt: str


class SubjectsConfig(Config):
    """Tables of what is known of people (``subjects`` in the cohort files); change no byte of a shard.

    Attributes:
        use: whether they are read.
        folder: where they are, a path or URL; by default in the source.
    """

    use: SubjectsUse = "if_found"
    folder: str | None = None


class RayConfig(Config):
    """How the work is spread; changes no byte of the result."""

    task_memory_mb: Annotated[int, Field(ge=64)] | Literal["auto"]
    retries: int = Field(ge=0)
    task_timeout_s: float = Field(gt=0, le=1_000_000)
    wait_for_nodes_s: float = Field(ge=0)


class StoreConfig(Config):
    """How a data set is written to a URL; changes no byte of the result."""

    lease_s: float = Field(ge=1)


class BuildConfig(Config):
    """Everything that shapes a data set, and ``max_refused``, ``ray`` and ``store``, which do not.

    ``subjects`` shapes the manifest alone.
    """

    example = "shards.yaml"
    cohort: str
    require: Annotated[list[Literal[CHANNELS]], AfterValidator(_once)]  # type: ignore[valid-type]
    channels: Annotated[list[Literal[CHANNELS]], AfterValidator(_once)] = Field(min_length=1)  # type: ignore[valid-type]
    scoring: ScoringUse = "if_valid"
    event_rule: EventRule
    segment_epochs: int = Field(ge=1, le=1200)
    recordings_per_shard: int = Field(ge=1, le=4096)
    split: SplitConfig
    quality: QualityConfig
    privacy: PrivacyConfig
    max_refused: float = Field(ge=0, le=1)
    subjects: SubjectsConfig = SubjectsConfig()
    ray: RayConfig
    store: StoreConfig

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        if isinstance(values, dict) and "recordings" in values:
            raise ValueError("`recordings` is called `recordings_per_shard` now; give its value under that key")
        return values

    @field_validator("channels")
    @classmethod
    def _in_order(cls, value: list[str]) -> list[str]:
        """In whatever order they are given, they are stored in one."""
        return [channel for channel in CHANNELS if channel in value]

    @model_validator(mode="after")
    def _required_are_stored(self) -> BuildConfig:
        lacking = [channel for channel in self.require if channel not in self.channels]
        if lacking:
            raise ValueError(f"{', '.join(lacking)} are in `require` but not in `channels`, the channels that are stored")
        return self


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


# Keys of an identity that the code decides. Where they differ the shards can be made anew; all others are the user's choice.
_MADE_BY = ("schema", "event_rule_version", "processing_version", "cohort_rules")


def identity(config: BuildConfig) -> dict[str, Any]:
    """What decides the bytes of shards beside the recordings: format, configuration, and versions of the code.

    The rules of the cohorts that were used are known once recordings are converted: each shard keeps their digests.
    """
    others = ("max_refused", "ray", "store", "subjects")
    values = {key: value for key, value in to_dict(config).items() if key not in others}
    rules = chosen_cohort(config)
    return {
        "schema": SCHEMA,
        **values,
        "cohort": rules.name if isinstance(rules, Cohort) else AUTO,
        "privacy": {**values["privacy"], "salt": digest(config.privacy.salt)},
        "event_rule_version": RULE_VERSION[config.event_rule],
        "processing_version": PROCESSING_VERSION,
    }


def check_same(stored: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    """Raises :class:`ConfigError` that names the first choice in which a build in ``folder`` differs."""
    old, new = _flat(stored), _flat(wanted)
    for values in (old, new):
        values.setdefault("split.stratify", [])
    for key in sorted(old.keys() & new.keys()):
        if old[key] != new[key] and key not in _MADE_BY:
            raise ConfigError(
                f"{folder}: holds a build with {key}={old[key]!r}, this one has {key}={new[key]!r}; "
                "build into another folder, or give the same configuration"
            )


def made_differently(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    """In what a build that is stored differs from one as :func:`check_same` lets pass, in words; empty where it does not."""
    old, new = _flat(stored), _flat(wanted)
    if "processing_version" not in old and "processing_version" in new:
        return "an earlier version, before builds named the version of their processing"
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return ", ".join(f"with {key}={old.get(key)!r}, which is {new.get(key)!r} now" for key in differing)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
