"""Which tests reach which line: coverage with the running test, or the fixture it shares with others, as context."""

from __future__ import annotations

import ast
import hashlib
import json
import queue
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from trees import Tree

_SETTINGS = """
[run]
parallel = true
data_file = {data}/.coverage
source =
    {tree}/sleepfm
    {tree}/shards
    {tree}/launch
context = ${{MUTANTS_CONTEXT-}}
disable_warnings = no-data-collected, module-not-measured, trace-changed
"""


@dataclass
class Reach:
    """``lines``: by module and line, the tests that execute it; ``seconds``: of each test that passes, its setup included."""

    lines: dict[str, dict[int, set[str]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def tests_of(self, tree: Tree, module: str, line: int) -> list[set[str]]:
        """Tests that can notice a change at ``line``, those that execute its statement first, then those of the module.

        What runs at import (constants, defaults of functions) is executed by no test: its tests are those of the lines
        that name what is defined there.
        """
        text = (tree.folder / module).read_text()
        first, last, names = _statement(text, line)
        held = self.lines.get(module, {})
        near = set().union(*(held.get(n, set()) for n in range(first, last + 1)))
        if names:
            pattern = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
            for other, lines in self.lines.items():
                for number, words in enumerate((tree.folder / other).read_text().splitlines(), start=1):
                    if number in lines and pattern.search(words):
                        near |= lines[number]
        return [near, set().union(*held.values()) - near]


def collect(trees: Sequence[Tree], work: Path, packages: list[str]) -> Reach:
    """Run the tests that import from ``packages`` under coverage, a folder at a time in each of ``trees``, copies of a checkout.

    Folders that have not changed are known.
    """
    tree = trees[0]
    imported = "|".join(rf"{package.replace('/', '.')}(?!\.synthetic)\b" for package in packages)
    pattern = re.compile(rf"^\s*(?:from|import) (?:{imported})", re.MULTILINE)
    folders: dict[str, list[str]] = defaultdict(list)
    for name in files_of(tree):
        if re.search(r"(^|/)test_\w+\.py$", name) and pattern.search((tree.folder / name).read_text()):
            folders[str(Path(name).parent)].append(name)
    shared = digest_of_texts(tree, [n for n in files_of(tree) if n.split("/")[0] in ("sleepfm", "shards", "launch", "configs")])
    free: queue.Queue[Tree] = queue.Queue()
    for each in trees:
        free.put(each)

    def known_of(folder: str) -> Path:
        names = folders[folder]
        key = digest_of_texts(tree, names + [n for n in files_of(tree) if re.fullmatch(r"tests/(?!.*/?test_).*\.py", n)])
        known = work / "reach" / f"{hashlib.sha256(f'{shared} {key}'.encode()).hexdigest()[:24]}.json"
        if not known.is_file():
            mine = free.get()
            try:
                collected = _collect(mine, work / "coverage" / folder.replace("/", "-"), names)
            finally:
                free.put(mine)
            known.parent.mkdir(exist_ok=True)
            known.write_text(json.dumps(collected))
            print(f"{folder}: {len(collected['seconds'])} tests", flush=True)
        return known

    reach = Reach()
    with ThreadPoolExecutor(len(trees)) as pool:
        known = dict(zip(folders, pool.map(known_of, folders), strict=True))
    for file in known.values():
        found = json.loads(file.read_text())
        reach.seconds |= found["seconds"]
        for module, lines in found["lines"].items():
            held = reach.lines.setdefault(module, defaultdict(set))
            for number, tests in lines.items():
                held[int(number)] |= {found["tests"][n] for n in tests}
    return reach


def files_of(tree: Tree) -> list[str]:
    """Python and data files of the copy, relative."""
    return sorted(
        p.relative_to(tree.folder).as_posix() for p in tree.folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts
    )


def digest_of_texts(tree: Tree, names: list[str]) -> str:
    """SHA-256 of the named files of the copy."""
    found = hashlib.sha256()
    for name in names:
        found.update(name.encode() + b"\0" + hashlib.sha256((tree.folder / name).read_bytes()).digest())
    return found.hexdigest()


def _collect(tree: Tree, data: Path, names: list[str]) -> dict[str, object]:
    from coverage import CoverageData

    data.mkdir(parents=True, exist_ok=True)
    for old in data.glob(".coverage*"):
        old.unlink()
    settings, journal = data / "coveragerc", data / "tests.json"
    settings.write_text(_SETTINGS.format(data=data, tree=tree.folder))
    command = [sys.executable, "-m", "coverage", "run", f"--rcfile={settings}", "-m", "pytest", "-p", "pytest_mutants"]
    environment = tree.environment(COVERAGE_PROCESS_START=str(settings), MUTANTS_JOURNAL=str(journal))
    with (data / "tests.log").open("w") as log:
        subprocess.run([*command, "-m", "not slow and not gpu", *names], cwd=tree.folder, env=environment, stdout=log, stderr=log)
    seconds, sharing = json.loads(journal.read_text()).values()
    tests = sorted(seconds)
    number = {test: n for n, test in enumerate(tests)}
    lines: dict[str, dict[int, set[int]]] = {}
    for file in data.glob(".coverage.*"):
        part = CoverageData(str(file))
        part.read()
        for path in part.measured_files():
            held = lines.setdefault(Path(path).relative_to(tree.folder).as_posix(), defaultdict(set))
            for line, contexts in part.contexts_by_lineno(path).items():
                for context in {name for both in contexts for name in both.split("|") if name}:
                    held[line] |= {number[test] for test in sharing.get(context, [context]) if test in number}
    plain = {module: {line: sorted(held) for line, held in found.items() if held} for module, found in lines.items()}
    return {"tests": tests, "seconds": seconds, "lines": plain}


def _statement(text: str, line: int) -> tuple[int, int, set[str]]:
    """First and last line of the innermost statement (of a compound one, its head), and what it defines if it runs at import."""
    found: ast.stmt | None = None
    at_import = True
    names: set[str] = set()

    def visit(nodes: list[ast.stmt], inside: bool) -> None:
        nonlocal found, at_import, names
        for node in nodes:
            start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            if start <= line <= (node.end_lineno or node.lineno):
                found, at_import = node, not inside
                enters = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
                for body in ("body", "orelse", "finalbody"):
                    visit(getattr(node, body, []), inside or enters)
                for handler in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
                    visit(handler.body, inside)

    visit(ast.parse(text).body, False)
    if found is None:
        return line, line, names
    body = getattr(found, "body", None)
    last = body[0].lineno - 1 if isinstance(body, list) and body else found.end_lineno or found.lineno
    if isinstance(found, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        names = {found.name}
        if found.name == "__init__":
            names = set(re.findall(r"^class (\w+)", text, re.MULTILINE))
    elif at_import:
        targets = found.targets if isinstance(found, ast.Assign) else [getattr(found, "target", None)]
        names = {node.id for target in targets if target for node in ast.walk(target) if isinstance(node, ast.Name)}
    return found.lineno, max(last, found.lineno), names
