"""A registered version in a SQLite store, read from its tables without MLflow.

Importing MLflow and opening its store takes three seconds, which is a third of scoring a night with small models. Only stores of
the table layouts named here are read, and only what is plainly there is answered; everything else is left to MLflow, which says
what is wrong.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import quote

from sleepfm.registry.store import sqlite_file, store_uri

# Revisions of MLflow's tables (its `alembic_version`) whose layout is the one below; a test holds the pinned MLflow's among them.
KNOWN_LAYOUTS = frozenset({"dc11669786a5"})
_WORKSPACE = "default"
_DELETED = "Deleted_Internal"
T = TypeVar("T")


@dataclass(frozen=True)
class StoredVersion:
    """A version as MLflow's tables have it."""

    name: str
    version: str
    source: str
    run_id: str
    tags: dict[str, str] = field(default_factory=dict)


def stored_version(name: str, alias: str | None, number: str | None, store: str | None = None) -> StoredVersion | None:
    """The version of ``name`` that ``alias`` or else ``number`` means; None where MLflow is to be asked: another kind of store or
    layout, no such version, or one without files.
    """
    return _answer(store, lambda tables: _read(tables, name, alias, number))


def lacks_alias(name: str, alias: str, store: str | None = None) -> bool:
    """Whether ``store`` is one whose tables are read here, and they plainly have no ``alias`` of ``name``."""
    return bool(_answer(store, lambda tables: _number_of(tables, name, alias) is None))


def _answer(store: str | None, question: Callable[[sqlite3.Connection], T]) -> T | None:
    """What ``question`` gives of the tables of ``store``; None where MLflow is to be asked."""
    file = sqlite_file(store_uri(store))
    if file is None or not file.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file.resolve()))}?mode=ro", uri=True)) as tables:
            layouts = {row[0] for row in tables.execute("SELECT version_num FROM alembic_version")}
            return question(tables) if layouts and layouts <= KNOWN_LAYOUTS else None
    except (sqlite3.Error, OverflowError):
        return None


def _number_of(tables: sqlite3.Connection, name: str, alias: str) -> tuple[int] | None:
    of_alias = "SELECT version FROM registered_model_aliases WHERE workspace = ? AND name = ? AND alias = ?"
    found: tuple[int] | None = tables.execute(of_alias, (_WORKSPACE, name, alias)).fetchone()
    return found


def _read(tables: sqlite3.Connection, name: str, alias: str | None, number: str | None) -> StoredVersion | None:
    if alias:
        row = _number_of(tables, name, alias)
    else:
        row = (int(number),) if number else None
    if row is None:
        return None
    key = (_WORKSPACE, name, row[0])
    where = "WHERE workspace = ? AND name = ? AND version = ?"
    found = tables.execute(f"SELECT source, run_id, current_stage FROM model_versions {where}", key).fetchone()
    if found is None or not found[0] or found[2] == _DELETED:
        return None
    tags = dict(tables.execute(f"SELECT key, value FROM model_version_tags {where}", key).fetchall())
    return StoredVersion(name, str(row[0]), found[0], found[1] or "", tags)
