"""What of a run may change while it goes on, and the stretches of steps with the same settings that come of it.

A run whose checkpoint is of step ``s`` may be taken up with another learning rate, length, accumulation or validation, with more
sources of data, or with other shares of them. From ``s`` on it is another segment, which ``run.json`` and the tracking server
record. Everything else would make another run of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sleepfm.data.identity import DataDigest
from sleepfm.training.run_config import differences

SOURCES, SHARES = "data.sources", "data.shares"
_TRAIN = ("lr", "final_lr", "schedule", "warmup", "steps", "passes", "accumulation", "clip", "max_skipped")
_VALIDATION = ("validate_every", "patience")
_STEERED = frozenset(
    {f"train.{name}" for name in (*_TRAIN, *_VALIDATION)} | {"registry.metric", "registry.mode", "data.validation_items"}
)
# Any of these, and what is below `monitor`, decides which weights are the best: figures before are of another kind.
_SELECTION = frozenset({"registry.metric", "registry.mode", "data.validation_items", SOURCES})
_MONITOR = "monitor"


@dataclass(frozen=True)
class Segment:
    """Steps after ``step`` up to the next segment's; ``changed`` has old and new value of every key, none for the first one."""

    step: int
    changed: dict[str, tuple[Any, Any]]

    @property
    def selects(self) -> bool:
        """Whether the best weights are chosen in another way than before."""
        return any(key in _SELECTION or _is_monitor(key) for key in self.changed)

    def describe(self) -> str:
        return ", ".join(f"{key} ({old!r} -> {new!r})" for key, (old, new) in self.changed.items())


def split(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[dict[str, tuple[Any, Any]], dict[str, tuple[Any, Any]]]:
    """The differences between two plain configurations: those that a run can take, and those that it cannot."""
    found = differences(known, wanted)
    data = known.get("data")
    # The order of the items of such a stream depends on the size of a micro-step.
    parted = isinstance(data, Mapping) and data.get("partitions", 1) != 1
    steered = {
        key: values
        for key, values in found.items()
        if (key in _STEERED or _is_monitor(key)) and not (parted and key == "train.accumulation")
    }
    return steered, {key: values for key, values in found.items() if key not in steered}


def split_data(known: DataDigest, wanted: DataDigest) -> tuple[dict[str, tuple[Any, Any]], list[str]]:
    """The same of the data: what a run can take, and in words what it cannot.

    It can take more data sets and other shares. Without one that it has learnt from it is another run.
    """
    if known.mixture == wanted.mixture:
        return {}, []
    held = {part.digest for part in wanted.parts}
    missing = [part for part in known.parts if part.digest not in held]
    if not missing:
        # With the same data sets, what is validated stays.
        return {SHARES if known == wanted else SOURCES: (known.shares(), wanted.shares())}, []
    if len(known.parts) == 1 and len(wanted.parts) == 1:
        return {}, [f"data set digest ({known[:12]} -> {wanted[:12]})"]
    names = ", ".join(f"{part.name} {part.digest[:12]}".strip() for part in missing)
    return {}, [f"{SOURCES} without {names}, which the run has learnt from"]


def counts(number: int, step: int, segments: Sequence[Segment]) -> bool:
    """Whether weights of ``step`` that were chosen in segment ``number`` are still weights of this run, chosen as it chooses."""
    return all(step <= later.step and not later.selects for later in segments[number + 1 :])


def _is_monitor(key: str) -> bool:
    return key == _MONITOR or key.startswith(f"{_MONITOR}.")
