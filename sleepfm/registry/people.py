"""Whose nights a model has seen: in its own training and selection, and by everything that it was made from.

Every package keeps the people of itself and all its ancestors together (``training.people`` in its ``config.yaml``), so that
the question needs neither the registry nor the data sets of the ancestors. A person is kept as the first 64 bits of the
SHA-256 of the key, which tells nothing to who does not know the key already. The key is the subject's, the same for every
visit and source: cohorts that share people on purpose give them the same prefix (``identity.prefix`` of a cohort file).
Relatives share the key of their family, where the data set knows it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sleepfm.constants import SPLITS
from sleepfm.data.dataset import Dataset
from sleepfm.errors import LeakageError

KEY = "people"
_BYTES = 8
_NAMED = 3
# A tag of a version has a limit.
_TAG = 1000
# How the keys of a data set are written where nothing else is said.
_PLAIN = "keep"


@dataclass(frozen=True)
class Seen:
    """People that a model has seen.

    Attributes:
        people: by (role, how keys are written) the digests of the people's and their families' keys. Roles are ``pretraining``,
            ``training`` (of heads and contexts) and ``selection`` (of weights, thresholds, the temperature).
        unknown: ancestors of which nobody can tell whom they have seen, with the reason.
    """

    people: Mapping[tuple[str, str], frozenset[bytes]] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    @classmethod
    def of(cls, datasets: Iterable[Dataset], roles: Mapping[str, str]) -> Seen:
        """The people of ``datasets`` by split, whose role ``roles`` says; of splits that it does not name, nobody."""
        found = cls()
        for dataset in datasets:
            for split, role in roles.items():
                people = frozenset(key for keys in keys_of(dataset, split).values() for key in keys)
                found = found | cls({(role, writing_of(dataset)): people})
        return found

    @classmethod
    def of_package(cls, config: Mapping[str, Any], label: str) -> Seen:
        """What the ``config.yaml`` of the package ``label`` says; one that says nothing is unknown."""
        kept = (config.get("training") or {}).get(KEY)
        return cls({}, (f"{label} (its package does not say)",)) if kept is None else cls.from_plain(kept, label)

    @classmethod
    def from_plain(cls, kept: Any, label: str) -> Seen:
        """Inverse of :meth:`to_plain`; what is not as it was written is unknown."""
        try:
            people = {
                (entry["role"], entry["keys"]): _unpacked(base64.b64decode(entry["digests"], validate=True))
                for entry in kept["seen"]
            }
            return cls(people, tuple(str(text) for text in kept["unknown"]))
        except (TypeError, KeyError, ValueError, binascii.Error):
            return cls({}, (f"{label} (what it says of people is damaged)",))

    def to_plain(self) -> dict[str, Any]:
        """Plain types, 11 characters a person."""
        seen = [
            {"role": role, "keys": keys, "count": len(people), "digests": base64.b64encode(b"".join(sorted(people))).decode()}
            for (role, keys), people in sorted(self.people.items())
        ]
        return {"seen": seen, "unknown": list(self.unknown)}

    def __or__(self, other: Seen) -> Seen:
        """Both together."""
        both = {
            key: self.people.get(key, frozenset()) | other.people.get(key, frozenset())
            for key in dict.fromkeys((*self.people, *other.people))
        }
        return Seen(both, tuple(dict.fromkeys((*self.unknown, *other.unknown))))

    def tags(self) -> dict[str, str]:
        """What a registered version says of it: how many people and families, a digest of all, and which ancestors are
        unknown."""
        everybody = sorted(set().union(*self.people.values())) if self.people else []
        tags = {"people": str(len(everybody)), "people.sha256": hashlib.sha256(b"".join(everybody)).hexdigest()}
        return tags | ({"people.unknown": "; ".join(self.unknown)[:_TAG]} if self.unknown else {})


def writing_of(dataset: Dataset) -> str:
    """How the keys of people are written in ``dataset``: as they are, or as digests of one salt. Others cannot be compared."""
    privacy = dataset.config.get("privacy") or {}
    names = str(privacy.get("names", _PLAIN))
    return names if names == _PLAIN else f"{names} {str(privacy.get('salt', ''))[:16]}"


def keys_of(dataset: Dataset, split: str) -> dict[str, tuple[bytes, ...]]:
    """Digests of the keys, own and family's, of every person of ``split``, by subject."""
    place = SPLITS.index(split)
    subjects = dict.fromkeys(s for s, at in zip(dataset.subjects, dataset.split_of.tolist(), strict=True) if at == place)
    # Data sets of earlier versions know no families.
    known = getattr(dataset, "people", None)
    families: Mapping[str, str] = known.families if known is not None else {}
    return {
        subject: (_digest("person", subject), *([_digest("family", families[subject])] if subject in families else []))
        for subject in subjects
    }


class TestPeople:
    """The people of ``test``, and whether the model that is judged by them, or an ancestor of it, has seen one of them.

    ``allowed`` says that a leak is no reason to stop, and marks what is reported instead.
    """

    __test__ = False

    def __init__(self, datasets: Iterable[Dataset], allowed: bool = False) -> None:
        self._keys: dict[tuple[str, str], tuple[bytes, ...]] = {}
        for dataset in datasets:
            self._keys |= {(subject, writing_of(dataset)): keys for subject, keys in keys_of(dataset, "test").items()}
        self._allowed = allowed

    def verdict(self, seen: Seen) -> str:
        """What is reported, in one sentence that begins with ``none``, ``unknown`` or ``LEAK``.

        Raises:
            LeakageError: a person of ``test`` is among those seen, and that is not allowed.
        """
        leaks: dict[str, set[str]] = {}
        for (role, writing), people in seen.people.items():
            for (subject, own), keys in self._keys.items():
                if own == writing and not people.isdisjoint(keys):
                    leaks.setdefault(subject, set()).add(role)
        everybody = len(set().union(*seen.people.values())) if seen.people else 0
        unknown = [*seen.unknown, *self._not_comparable(seen)]
        if leaks:
            told = "; ".join(f"{subject} in {' and '.join(sorted(roles))}" for subject, roles in sorted(leaks.items())[:_NAMED])
            more = f" and {len(leaks) - _NAMED} more" if len(leaks) > _NAMED else ""
            text = f"{len(leaks)} of {len(self._keys)} test people, or relatives of theirs, were seen before: {told}{more}"
            if not self._allowed:
                raise LeakageError(
                    f"{text}; so the test figures would not be of new people. Build the data set with the same split.salt as "
                    "that of the encoder, use another encoder, or give --allow-leakage, which marks the report. If they are "
                    "other people with the same keys, give their cohort its own identity.prefix"
                )
            return f"LEAK, allowed: {text}"
        if unknown:
            return (
                f"unknown: it cannot be told whom {'; '.join(unknown)} has seen; of the {everybody} people and families that are "
                f"known, none is among the {len(self._keys)} of test"
            )
        return (
            f"none: of the {len(self._keys)} people of test nobody, nor a relative, is among the {everybody} people "
            "and families of training, selection and pretraining of this model and its ancestors"
        )

    def _not_comparable(self, seen: Seen) -> list[str]:
        mine = {writing for _, writing in self._keys}
        theirs = {writing for (_, writing), people in seen.people.items() if people}
        told = "an ancestor whose people's keys are written in another way (privacy.names, privacy.salt)"
        return [told] if theirs - mine else []


class PeopleOfStage:
    """Whom the model of a training job has seen, which grows as it is told of ancestors; of a judged one also the verdict."""

    def __init__(self, seen: Seen, test: TestPeople | None = None) -> None:
        """Raises :class:`LeakageError`, see :meth:`TestPeople.verdict`."""
        self.seen, self._test = Seen(), test
        self.verdict = ""
        self.include(seen)

    def include(self, ancestor: Seen) -> None:
        """The model starts from what has seen ``ancestor``. Raises :class:`LeakageError`, see :meth:`TestPeople.verdict`."""
        self.seen = self.seen | ancestor
        if self._test is not None:
            self.verdict = self._test.verdict(self.seen)


def _digest(what: str, key: str) -> bytes:
    return hashlib.sha256(f"{what} {key}".encode()).digest()[:_BYTES]


def _unpacked(content: bytes) -> frozenset[bytes]:
    if len(content) % _BYTES:
        raise ValueError("not whole digests")
    return frozenset(content[start : start + _BYTES] for start in range(0, len(content), _BYTES))
