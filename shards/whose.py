"""Whose the recordings of a build are where their paths do not say it: told once for all of them, and then no more changed."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.lib
import pyarrow.parquet as pq

from shards.names import shown
from shards.plan import Plan
from shards.stored_tables import check_table, told_digests
from sleepfm.data.format import MANIFEST_FOLDER
from sleepfm.errors import DatasetError
from sleepfm.signals.record_names import RecordName, name_persons, name_records, stem_key


@dataclass(frozen=True)
class Whose:
    """What stands for the person of a recording whose path does not say whose it is.

    Attributes:
        person: its own name (:func:`sleepfm.signals.record_names.name_persons`); empty for that of the file alone.
        subject: the subject that it has in the data set already, whole; empty where it is new. It stays: else a night whose
            scoring came later could come into another split, and a model may have seen it.
    """

    person: str = ""
    subject: str = ""

    def called(self, path: str, record: str) -> RecordName:
        """What the recording at ``path`` is called."""
        return RecordName(path, record, self.person or stem_key(path))


NOT_KNOWN = Whose()


def whose_recordings(
    plan: Plan, files: Mapping[str, str], shards: Container[str], subjects: Mapping[str, str]
) -> dict[str, Whose]:
    """Of recordings in ``shards``, by their paths in the plan, what is not told from the name of the file alone.

    Args:
        files: their paths below the source by their paths in the plan.
        subjects: of :func:`stored_subjects`.
    """
    if all(files.get(path, path) == path for path in plan.sizes):
        # Names of a plan stay when more is added, and so do these.
        persons = name_persons({entry.path: entry.record for entry in plan.entries()})
    else:
        of_path = name_persons(name_records(sorted(files.values()), ()))
        persons = {path: of_path[file] for path, file in files.items()}
    found: dict[str, Whose] = {}
    for shard in plan.shards:
        for entry in shard.entries if shard.name in shards else ():
            person = persons.get(entry.path, "")
            own = person if person != stem_key(files.get(entry.path, entry.path)) else ""
            whose = Whose(own, subjects.get(shown(entry.path), ""))
            if whose != NOT_KNOWN:
                found[entry.path] = whose
    return found


def stored_subjects(out: Path) -> dict[str, str]:
    """The subject of each recording in the manifest of ``out``, by its path as it stands there; none where there is no manifest,
    as a build leaves it that was killed before it wrote one.

    Raises:
        DatasetError: the table of recordings is damaged.
    """
    path = out / MANIFEST_FOLDER / "records.parquet"
    if not path.exists():
        return {}
    try:
        told = told_digests(out)
    except ValueError:
        # A damaged description is not held against a table that can be read.
        told = {}
    try:
        check_table(out, "records", told)
        table = pq.read_table(path, columns=["source", "subject"])
    except (OSError, pyarrow.lib.ArrowException, ValueError) as error:
        raise DatasetError(
            f"{path}: cannot be read ({str(error).splitlines()[0]}), and only this table says who the people of the recordings "
            "are that this build converts again; restore it from a copy, or run the same command with --rebuild, which names "
            "these people anew"
        ) from error
    return dict(zip(table["source"].to_pylist(), table["subject"].to_pylist(), strict=True))
