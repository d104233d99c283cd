"""Which data a run learns from: the digest of its data set or data sets, with what the digest stands for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from sleepfm.config import digest
from sleepfm.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Part:
    """One data set of a mixture: its name there, its digest, where it lies, and its share as it was stated."""

    name: str
    digest: str
    path: str = ""
    weight: float | None = None
    epochs: float | None = None

    def share(self) -> str:
        """The share in words; empty where none was stated."""
        if self.epochs is not None:
            return f"epochs {self.epochs:g}"
        return "" if self.weight is None else f"weight {self.weight:g}"


class DataDigest(str):
    """The digest of one data set, or of several together: the same whatever their shares and their order.

    ``parts`` are the data sets, sorted by their digests; none for a digest that nothing more is known of. ``mixture`` is the
    digest of the data sets with their shares: two runs with the same one see the same items in the same order.
    """

    parts: tuple[Part, ...]
    temperature: float

    def __new__(cls, parts: Sequence[Part], temperature: float = 1.0) -> DataDigest:
        ordered = tuple(sorted(parts, key=lambda part: part.digest))
        digests = [part.digest for part in ordered]
        found = super().__new__(cls, digests[0] if len(ordered) == 1 else digest(digests))
        found.parts, found.temperature = ordered, temperature
        return found

    @property
    def mixture(self) -> str:
        if len(self.parts) < 2:
            return str(self)
        return digest([[[part.digest, part.weight, part.epochs] for part in self.parts], self.temperature])

    def to_record(self) -> dict[str, Any]:
        """As ``run.json`` keeps it, beside the digest itself; nothing for one data set."""
        if len(self.parts) < 2:
            return {}
        return {"mixture": {"temperature": self.temperature, "parts": [asdict(part) for part in self.parts]}}

    @staticmethod
    def from_record(known: Mapping[str, Any]) -> DataDigest:
        """What :meth:`to_record` wrote, or the digest of one data set."""
        mixture = known.get("mixture")
        if mixture is None:
            return DataDigest([Part("", known["dataset_digest"])])
        return DataDigest([Part(**part) for part in mixture["parts"]], mixture["temperature"])

    def tags(self) -> dict[str, str]:
        """What a mixture is made of, for runs and registered versions; nothing for one data set."""
        if len(self.parts) < 2:
            return {}
        told = {f"source.{part.name}": " ".join(filter(None, [part.digest, part.share()])) for part in self.parts}
        return {"mixture_digest": self.mixture, **told}

    def shares(self) -> str:
        """The data sets and their shares in a few words."""
        told = [" ".join(filter(None, [part.name or part.digest[:12], part.share()])) for part in self.parts]
        by = f" at temperature {self.temperature:g}" if self.temperature != 1 else ""
        return ", ".join(told) + by

    def describe(self) -> str:
        """For model cards: the digest, and every part with its own."""
        if len(self.parts) < 2:
            return f"`{self}`"
        parts = ", ".join(f"{part.name} `{part.digest}`{f' ({part.share()})' if part.share() else ''}" for part in self.parts)
        by = "" if any(part.share() for part in self.parts) else f", shares by size at temperature {self.temperature:g}"
        return f"`{self}`, mixture `{self.mixture}` of {parts}{by}"


def as_digest(found: str) -> DataDigest:
    """``found`` with its parts; a plain digest is that of one data set."""
    return found if isinstance(found, DataDigest) else DataDigest([Part("", found)])


def source_names(stated: Sequence[tuple[str, str]]) -> list[str]:
    """A name for each (name, path): the one that is stated, else the end of the path, as long as it takes to tell them apart.

    Raises:
        ConfigError: two of the same name.
    """
    components = [[part for part in PurePosixPath(path.split("://", 1)[-1]).parts if part != "/"] for _, path in stated]

    def named(depth: int) -> list[str]:
        return [
            name or "-".join(re.sub(r"[^A-Za-z0-9_.-]+", "-", part) for part in parts[-depth:]) or "data"
            for (name, _), parts in zip(stated, components, strict=True)
        ]

    longest = max(map(len, components), default=1)
    for depth in range(1, max(2, longest + 1)):
        names = named(depth)
        if len(set(names)) == len(names):
            return names
    names = named(longest)
    twice = next(name for name in names if names.count(name) > 1)
    raise ConfigError(f"data.sources: two of them are called {twice!r}; give one of them another `name`")


def is_name(text: str) -> bool:
    """Whether a source may be called so: it stands in names of figures and tags."""
    return _NAME.fullmatch(text) is not None
