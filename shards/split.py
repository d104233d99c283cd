"""Splits by subject: all visits of a person, and all people of a family, together."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from shards.build_config import SplitConfig
from sleepfm.constants import SPLITS
from sleepfm.wording import counted

# Successive multiples of the golden section modulo 1 spread evenly, so that few people are spread well too.
_GOLDEN = 0.6180339887498949


def split_of(key: str, config: SplitConfig) -> str:
    """The split of a person or family, from its key alone: no order and nobody else plays a part."""
    return _at(_place(key, config), config)


def splits_of(
    subjects: Iterable[str],
    family: Callable[[str], str],
    config: SplitConfig,
    stratum: Callable[[str], str] = lambda subject: "",
    before: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """The split of each subject.

    Without ``config.stratify`` it depends on nobody else. With it, those of one stratum are spread evenly over the splits in the
    order of their hashes. Who is added later would come in between, so that whoever is in ``before`` stays where that says.

    Args:
        family: what those share who must be together; the subject itself where nobody does.
        stratum: what people are to be spread by.
        before: splits of those who were in the data set before.
    """
    together: dict[str, list[str]] = defaultdict(list)
    for subject in sorted(set(subjects)):
        together[family(subject)].append(subject)
    if not config.stratify:
        return {subject: split_of(key, config) for key, members in together.items() for subject in members}
    split: dict[str, str] = {}
    taken: Counter[str] = Counter()
    new = []
    for key, members in together.items():
        if (known := next((before[member] for member in members if member in before), None)) is not None:
            split[key] = known
            taken[stratum(members[0])] += 1
        else:
            new.append(key)
    for key in sorted(new, key=lambda key: (_place(key, config), key)):
        of = stratum(together[key][0])
        split[key] = _at((_place(f"stratum {of}", config) + _GOLDEN * taken[of]) % 1.0, config)
        taken[of] += 1
    return {subject: split[key] for key, members in together.items() for subject in members}


def empty_splits(counts: Mapping[str, Mapping[str, int]], config: SplitConfig) -> list[str]:
    """A warning where splits that have a share hold nobody; ``counts`` of each split as in ``dataset.json``."""
    people = sum(of["subjects"] for of in counts.values())
    empty = [name for name in SPLITS if getattr(config, name) > 0 and not counts[name]["subjects"]]
    if not people or not empty:
        return []
    shares = ", ".join(f"split.{name}={getattr(config, name):g}" for name in empty)
    spread = f", in groups of like {', '.join(config.stratify)}" if config.stratify else ""
    return [
        f"nobody is in {' or '.join(empty)} ({shares} of {counted(people, 'person')}{spread}); add people, or build into another "
        "folder with another split.salt or other fractions"
    ]


def _place(key: str, config: SplitConfig) -> float:
    """Where ``key`` is in [0, 1)."""
    value = hashlib.sha256(f"{config.salt}:{key}".encode()).digest()
    return int.from_bytes(value[:8], "big") / 2**64


def _at(place: float, config: SplitConfig) -> str:
    upper = 0.0
    for name in SPLITS:
        upper += getattr(config, name)
        if place < upper:
            return name
    # Rounding of the sum can leave the last edge a hair below 1.
    return next(name for name in reversed(SPLITS) if getattr(config, name) > 0)
