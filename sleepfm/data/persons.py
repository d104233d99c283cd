"""People across data sets: whoever is in two data sets of one cohort is in one split."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from sleepfm.constants import SPLITS
from sleepfm.data.dataset import Dataset
from sleepfm.errors import DatasetError

_NAMED = 3


def check_persons(datasets: Mapping[str, Dataset]) -> None:
    """The splits of ``datasets``, by name, hold across all of them: no person is in different ones, and no two of a family.

    A person is known by cohort and subject key, a family by its own. Where the keys of two data sets of one cohort cannot be
    compared, since one has digests in their place or both have digests of another salt, nobody can tell.

    Raises:
        DatasetError: people in two splits, or people that cannot be compared; with the names of all pairs of such data sets.
    """
    cohorts = {name: set(dataset.cohorts) for name, dataset in datasets.items()}
    shared: set[str] = set()
    unlike = []
    for one, other in combinations(datasets, 2):
        common = cohorts[one] & cohorts[other]
        if common and _keys(datasets[one]) != _keys(datasets[other]):
            unlike.append(f"{_place(one, datasets)} and {_place(other, datasets)} both hold people of cohort {min(common)}")
        shared |= common
    if unlike:
        raise DatasetError(
            f"{'; '.join(unlike)}: their keys are written in different ways (privacy.names, privacy.salt), so it is unknown "
            "whether a person is in two splits; build them with the same privacy.names and privacy.salt, or leave one of "
            "each pair out"
        )
    if not shared:
        return
    seen: dict[tuple[str, str], tuple[str, int]] = {}
    found: dict[tuple[str, str], list[str]] = {}
    for name, dataset in datasets.items():
        for cohort, subject, split in zip(dataset.cohorts, dataset.subjects, dataset.split_of.tolist(), strict=True):
            if cohort not in shared:
                continue
            family = dataset.people.family(subject)
            for key in dict.fromkeys((subject, family)):
                first, before = seen.setdefault((cohort, key), (name, split))
                if before != split:
                    who = subject if key == subject else f"{subject}, of family {family},"
                    text = f"{who} of cohort {cohort} is in split {SPLITS[split]} of {name} and in {SPLITS[before]} of {first}"
                    found.setdefault((first, name), []).append(text)
    told = []
    for (first, name), persons in found.items():
        people = sorted(set(persons))
        more = f" and {len(people) - _NAMED} more" if len(people) > _NAMED else ""
        told.append(f"{_place(first, datasets)} and {_place(name, datasets)}: {'; '.join(people[:_NAMED])}{more}")
    if told:
        raise DatasetError(
            f"{'; '.join(told)}; a person must be in one split only: build them with the same split.salt and fractions, or "
            "leave one of each pair out"
        )


def _place(name: str, datasets: Mapping[str, Dataset]) -> str:
    return f"{name} ({datasets[name].origin})"


def _keys(dataset: Dataset) -> tuple[Any, ...]:
    """What decides how a person's key is written."""
    privacy = dataset.config.get("privacy") or {}
    names = privacy.get("names", "keep")
    return (names, privacy.get("salt") if names == "digest" else None)
