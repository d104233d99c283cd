"""Whom the models of the stages see: which splits they read, and what they start from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sleepfm.data.dataset import Dataset
from sleepfm.registry.people import PeopleOfStage, Seen, TestPeople
from sleepfm.registry.registry import Package


def people_of_pretraining(config: Any, datasets: Iterable[Dataset], packages: Sequence[Package] = ()) -> PeopleOfStage:
    """Of a pretraining: what is learnt from, what the loss is validated on, and what the monitor's probes read."""
    roles = {"val": "selection"} | ({"label": "selection"} if config.monitor != "none" else {})
    return PeopleOfStage(_with_ancestors(Seen.of(datasets, roles | {config.data.split: "pretraining"}), packages))


def people_of_downstream(job: Any, datasets: Sequence[Dataset], package: Package) -> PeopleOfStage:
    """Of a probe or fine-tune on ``package``, which is judged by ``test``.

    ``val`` selects the weights, the thresholds and the temperature.

    Raises:
        LeakageError: a person of ``test`` has been seen, and ``evaluate.allow_leakage`` is not set.
    """
    seen = _with_ancestors(Seen.of(datasets, {"label": "training", "val": "selection"}), [package])
    return PeopleOfStage(seen, TestPeople(datasets, job.evaluate.allow_leakage))


def _with_ancestors(seen: Seen, packages: Iterable[Package]) -> Seen:
    for package in packages:
        seen |= Seen.of_package(package.config, package.source.label)
    return seen
