"""The configuration sections that every training job shares."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_serializer, field_validator, model_validator

from sleepfm.config import Config, digest, to_dict
from sleepfm.errors import ConfigError, UsageError
from sleepfm.models.negatives import Negatives
from sleepfm.registry.store import shown
from sleepfm.signals.files import local_path


def _on_a_disk(path: str) -> str:
    try:
        local_path(path, "the path")
    except UsageError as error:
        raise ValueError(str(error)) from error
    return path


# A folder that is written to; a URL is refused.
LocalFolder = Annotated[str, AfterValidator(_on_a_disk)]


class TrainConfig(Config):
    """How long, how fast and how safely to train.

    A step is one optimiser step over ``global_batch`` items, taken as ``accumulation`` micro-steps of
    ``global_batch / accumulation`` items each, of which every rank computes its equal share. A
    contrastive loss therefore sees the same items together at any number of processes.
    """

    output: LocalFolder
    steps: int | None = Field(default=None, ge=1)
    passes: float | None = Field(default=None, gt=0)
    """Passes over the stream, instead of ``steps``."""
    global_batch: int = Field(default=256, ge=1)
    accumulation: int = Field(default=1, ge=1)
    micro_batch: int | None = Field(default=None, ge=1)
    """Items per rank and micro-step. Derived; if stated, checked."""
    lr: float = Field(gt=0)
    final_lr: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the last step as a share of ``lr``."""
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int = Field(default=0, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = Field(default=0.0, ge=0)
    """Largest global gradient norm; 0 does not clip."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then validated, selected and exported; 0 for none."""
    batch_norm: Literal["rank", "sync"] = "rank"
    """The items from which batch norms take their statistics: ``rank``, those of each rank; ``sync``, those of all ranks, which
    makes losses independent of the number of processes and costs two small collectives a norm."""
    recompute: bool = False
    """Do not keep the activations inside of blocks, but compute them again in the backward pass: same numbers, less memory."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the blocks of the model (``torch.compile``): ``auto`` does on CUDA, not on CPUs."""
    seed: int = 777
    validate_every: int = Field(default=0, ge=0)
    """Steps between validations; 0 validates once, after the last step."""
    patience: int = Field(default=0, ge=0)
    """The run ends after so many validations in a row that were no better than the best; 0: it never ends early."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between checkpoints."""
    checkpoint_minutes: float = Field(default=0.0, ge=0)
    """Longest time between checkpoints, in minutes of rank 0's clock; 0: only by steps."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept."""
    log_every: int = Field(default=10, ge=1)
    """Steps between figures sent to the tracking server; the local trace holds every step."""
    profile: str = Field(default="", pattern=r"^([1-9][0-9]*(-[1-9][0-9]*)?)?$")
    """Steps that rank 0 records with torch's profiler into the run's folder, such as ``20-25``; none by default."""
    max_skipped: int = Field(default=5, ge=1)
    """Steps in a row that may be skipped for a non-finite loss or gradient before the run stops."""
    stall_s: float = Field(default=900.0, gt=0)
    """Seconds without progress of any rank, in a step or in a long phase, after which the run ends and names the ranks that the
    others wait for. Must be longer than the slowest step; the first one includes compilation."""
    silent_s: float = Field(default=20.0, gt=0)
    """Seconds without a sign of life from a rank (a stopped process, a lost host) after which the run ends and names it. Threads
    send the signs, so that a slow step does not matter."""

    @field_validator("compile", mode="before")
    @classmethod
    def _as_yaml_reads_it(cls, value: Any) -> Any:
        # YAML takes on and off, as well as yes and no, for true and false.
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @field_validator("profile", mode="before")
    @classmethod
    def _one_step(cls, steps: Any) -> Any:
        # YAML reads the number of a single step as a number.
        return str(steps) if type(steps) is int else steps

    @property
    def profiled(self) -> range:
        """The steps of ``profile``."""
        if not self.profile:
            return range(0)
        first, _, last = self.profile.partition("-")
        return range(int(first), int(last or first) + 1)

    @model_validator(mode="after")
    def _profiled_in_order(self) -> TrainConfig:
        if self.profile and not self.profiled:
            raise ValueError(f"train.profile={self.profile!r}: the last step comes before the first")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.steps is None) == (self.passes is None):
            raise ValueError("train.steps or train.passes: set exactly one of them")
        return self

    @model_validator(mode="after")
    def _patient_between_validations(self) -> TrainConfig:
        if self.patience and not self.validate_every:
            raise ValueError("train.patience: counts validations, so train.validate_every is needed")
        return self


_BRANCH = re.compile(r".+@[0-9]+")
_SET_BY_TRAIN = {
    "checkpoint",
    "datastates_ckpt",
    "optimizer",
    "scheduler",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
}


class DeepSpeedConfig(Config):
    """What is left to DeepSpeed; ``extra`` is merged into its configuration last (sizes of buckets and such)."""

    zero: Literal[0, 1, 2] = 1
    dtype: Literal["auto", "bf16", "fp32"] = "bf16"
    """Compute type; parameters, buffers and optimiser states are fp32 either way. ``auto`` is ``bf16`` where the devices of all
    ranks multiply in it, else ``fp32``; a job decides it once, see :mod:`sleepfm.training.compute_dtype`."""
    reduce_dtype: Literal["bf16", "fp32"] = "fp32"
    """Type in which gradients of matrix and convolution weights travel; bf16 halves the traffic."""
    extra: dict[str, Any] = Field(default_factory=dict)

    @property
    def compute_dtype(self) -> Literal["bf16", "fp32"]:
        """``dtype``, once it is decided. Raises :class:`ConfigError` while it is ``auto``."""
        if self.dtype == "auto":
            raise ConfigError("deepspeed.dtype: auto is only decided when a job starts; set bf16 or fp32")
        return self.dtype

    @field_validator("zero", mode="before")
    @classmethod
    def _whole_parameters(cls, zero: Any) -> Any:
        if zero in (3, "3"):
            raise ValueError("3 is not supported: these models fit on one device, and sharding them costs time; use 0, 1 or 2")
        return zero

    @field_validator("extra")
    @classmethod
    def _not_what_training_sets(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(_SET_BY_TRAIN & extra.keys()):
            raise ValueError(f"{', '.join(taken)} follow from train.*; set them there")
        zero = extra.get("zero_optimization", {})
        if isinstance(zero, dict) and (taken := sorted({"stage", "offload_param"} & zero.keys())):
            raise ValueError(f"zero_optimization: {', '.join(taken)} follow from deepspeed.zero, which has no stage 3")
        return extra


class RegistryConfig(Config):
    """Under which name the result is registered and what moves ``alias`` to it."""

    name: str
    metric: str
    mode: Literal["max", "min"] = "max"
    alias: str = "champion"
    every_best: bool = True
    """Whether every new best is exported and registered while training goes on, and the last weights under the alias ``last``;
    else only the best, at the end."""
    keep: int = Field(default=3, ge=1)
    """How many of the best versions that a run registers during training stay registered, the newest. Older ones are removed
    with their files, unless they have an alias, another model was made from them, or a person has changed them."""


class TrackingConfig(Config):
    """Where runs and models are kept: ``uri``, else ``MLFLOW_TRACKING_URI``, else the default store."""

    uri: str | None = None
    experiment: str = "sleepfm"

    @field_serializer("uri")
    def _without_password(self, uri: str | None) -> str | None:
        """What a run's files, its parameters and ``--dry-run`` have of it."""
        return None if uri is None else shown(uri)


class RunConfig(Config):
    """Base of every job's configuration."""

    init_from: str = ""
    """Address of a registered model, folder of a package or of a run, whose weights this run starts with."""
    branch_from: str = ""
    """``RUN@STEP``: folder of a run and the step of one of its checkpoints, from which this run goes on in its own folder."""
    train: TrainConfig
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    registry: RegistryConfig
    tracking: TrackingConfig = TrackingConfig()

    def parents(self) -> dict[str, str]:
        """Addresses of the models that the job starts from, by the key that names each."""
        return {"init_from": self.init_from} if self.init_from else {}

    def bound_champions(self) -> dict[str, str]:
        """Addresses of the champions that a new one of this job is bound with as a scorer, by task; none by default."""
        return {}

    def figures(self) -> tuple[str, ...]:
        """Figures of a validation beside :meth:`losses`, by which ``registry.metric`` may select; none if unknown here."""
        return ()

    def losses(self) -> tuple[str, ...]:
        """``val/loss`` and its parts, where the loss is validated on held-out items."""
        return ()

    def smaller_is_better(self) -> tuple[str, ...]:
        """Those of the figures that fall as the model gets better."""
        return ()

    def larger_is_better(self) -> tuple[str, ...]:
        """Those of the figures that rise as the model gets better."""
        return ()

    def validated_items(self) -> int | None:
        """On how many held-out items the loss is validated at most; None where it is not."""
        return None

    def rows_per_item(self) -> int:
        """Rows that an item gives the batch norm that gets the fewest; 0 where none learns, or only the stage knows."""
        return 0

    def negatives(self) -> Negatives:
        """Which ranks a contrastive loss compares."""
        return "global"

    def contrasts(self) -> tuple[int, int]:
        """Contrastive losses of a micro-step, and the width of the embeddings that they compare."""
        return 0, 0

    def is_built_at_once(self) -> bool:
        """Whether the stage is there in seconds; else it first embeds the data set."""
        return True

    @model_validator(mode="after")
    def _one_start(self) -> RunConfig:
        if self.init_from and self.branch_from:
            raise ValueError(
                "init_from and branch_from: set only one of them; a branch starts with the weights of its checkpoint"
            )
        if self.branch_from and not _BRANCH.fullmatch(self.branch_from):
            raise ValueError(f"branch_from={self.branch_from!r}: expected RUN@STEP, such as runs/pretrain-eeg@4000")
        return self


# Where a run writes, how often it reports, and how its state is spread do not change what is learnt.
_INCIDENTAL = {
    "train": (
        "output",
        "log_every",
        "profile",
        "checkpoint_every",
        "checkpoint_minutes",
        "keep",
        "micro_batch",
        "recompute",
        "stall_s",
        "silent_s",
    ),
    "registry": ("every_best", "keep"),
    "tracking": ("uri", "experiment"),
    "deepspeed": ("zero", "extra"),
    # The data sets are known by their digests, wherever they lie, and a mixture by its own, shares included.
    "data": ("path", "sources", "temperature", "max_corrupt", "slow_read", "workers"),
    # It says what is done with the figures.
    "evaluate": ("allow_leakage",),
}


# Settings of later versions, by the value with which they say nothing: then they are absent, as in the records of runs that began
# before there were any.
_LATER: dict[tuple[str, ...], Any] = {
    ("grid",): None,
    ("curve",): None,
    ("layer_decay",): 1.0,
    ("modality_dropout",): 0.0,
    ("channel_dropout",): 0.0,
    ("gain",): 1.0,
    ("filter_db",): 0.0,
    ("data", "label_draw"): None,
    ("train", "patience"): 0,
}
# Names that settings had in earlier versions, by section. Records and digests of runs that began then still hold.
_FORMER_NAMES = {"data": {"partitions": "lanes"}}


def present_names(values: dict[str, Any]) -> dict[str, Any]:
    """A plain configuration of an earlier version with the settings' names of this one; others are left as they are."""
    return _renamed(values, {section: {old: new for new, old in names.items()} for section, names in _FORMER_NAMES.items()})


def _renamed(values: dict[str, Any], names: dict[str, dict[str, str]]) -> dict[str, Any]:
    renamed = dict(values)
    for section in names.keys() & values.keys():
        content = dict(values[section])
        for name, other in names[section].items():
            if name in content and other not in content:
                content[other] = content.pop(name)
        renamed[section] = content
    return renamed


def decisive_settings(config: RunConfig) -> dict[str, Any]:
    """What of ``config`` decides the result: two runs in which this is equal must give the same loss trace.

    Raises:
        ConfigError: the compute type is not decided yet.
    """
    plain = to_dict(config)
    plain["deepspeed"]["dtype"] = config.deepspeed.compute_dtype
    for section in _INCIDENTAL.keys() & plain.keys():
        keys = _INCIDENTAL[section]
        plain[section] = {key: value for key, value in plain[section].items() if key not in keys}
    # As in the records of runs that began when it was a truth value. What `auto` does is the device's, which is not in it either.
    plain["train"]["compile"] = plain["train"]["compile"] == "on"
    for *sections, key in _LATER:
        holder = plain.get(sections[0], {}) if sections else plain
        if key in holder and holder[key] == _LATER[(*sections, key)]:
            del holder[key]
    return {key: value for key, value in plain.items() if key not in ("init_from", "branch_from") or value}


def config_digest(config: RunConfig) -> str:
    """:func:`settings_digest` of :func:`decisive_settings`."""
    return settings_digest(decisive_settings(config))


def settings_digest(settings: dict[str, Any]) -> str:
    """SHA-256 of decisive settings, under the names that they had when they were added."""
    return digest(_renamed(settings, _FORMER_NAMES))


def differences(left: Mapping[str, Any], right: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Both values of every dotted key in which two plain configurations differ; None where a key is not there."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted(left.keys() | right.keys()):
        a, b = left.get(key), right.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found[f"{prefix}{key}"] = (a, b)
    return found


def differing_keys(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """:func:`differences` as ``key (left -> right)``."""
    return [f"{key} ({a!r} -> {b!r})" for key, (a, b) in differences(left, right).items()]
