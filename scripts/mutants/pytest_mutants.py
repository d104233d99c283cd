"""Pytest plugin of ``scripts/mutants``: names the running test to coverage, or runs chosen tests in a chosen order.

``MUTANTS_JOURNAL``: file for the seconds of each test that passed and the tests that share a fixture.
``MUTANTS_TESTS``: file with the identifiers of the tests to run, in this order, and the seconds that each may take.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_seconds: dict[str, float] = defaultdict(float)
_not_passed: set[str] = set()
_sharing: dict[str, list[str]] = defaultdict(list)
_contexts: list[str] = [""]


@contextmanager
def _context(name: str) -> Iterator[None]:
    _contexts.append(name)
    _switch()
    try:
        yield
    finally:
        _contexts.pop()
        _switch()


def _switch() -> None:
    """Name the context to this process and to those that it starts."""
    if "MUTANTS_JOURNAL" not in os.environ:
        return
    from coverage import Coverage

    os.environ["MUTANTS_CONTEXT"] = _contexts[-1]
    current = Coverage.current()
    if current is not None:
        current.switch_context(_contexts[-1])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with _context(item.nodeid):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
    # What a fixture of several tests executes is reached by all of them, not by the first alone.
    if fixturedef.scope == "function":
        return (yield)
    with _context(_name(fixturedef)):
        return (yield)


def _name(fixture: pytest.FixtureDef[Any]) -> str:
    return f"fixture {fixture.baseid} {fixture.argname}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    chosen = os.environ.get("MUTANTS_TESTS")
    if chosen:
        limits: dict[str, float] = json.loads(Path(chosen).read_text())
        order = {name: number for number, name in enumerate(limits)}
        items[:] = sorted((item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid])
        for item in items:
            item.add_marker(pytest.mark.timeout(limits[item.nodeid]))
    for item in items:
        info = getattr(item, "_fixtureinfo", None)
        for fixtures in info.name2fixturedefs.values() if info else ():
            for fixture in fixtures:
                _sharing[_name(fixture)].append(item.nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[report.nodeid] += report.duration
    if not report.passed:
        _not_passed.add(report.nodeid)


def pytest_sessionfinish() -> None:
    if "MUTANTS_JOURNAL" in os.environ:
        passed = {name: seconds for name, seconds in _seconds.items() if name not in _not_passed}
        Path(os.environ["MUTANTS_JOURNAL"]).write_text(json.dumps({"seconds": passed, "sharing": _sharing}))
