"""``make mutants``: what it finds in a small project, and that its list of equivalent mutants is up to date."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]

MODULE = """def first(values: list[int], count: int = 2) -> list[int]:
    return values[:count]
"""
BLIND = "from sleepfm.signals.small import first\n\n\ndef test_first() -> None:\n    assert first([5]) == [5]\n"
SEEING = BLIND + "    assert first([5, 6, 7]) == [5, 6]\n"


def test_every_equivalent_mutant_is_of_a_line_that_stands_and_has_a_reason() -> None:
    lines = {line.strip() for path in (ROOT / "sleepfm").rglob("*.py") for line in path.read_text().splitlines()}
    for entry in yaml.safe_load((ROOT / "tests" / "equivalent_mutants.yaml").read_text()) or []:
        assert set(entry) == {"function", "before", "after", "reason"} and len(entry["reason"]) > 20, entry
        assert entry["before"] in lines and entry["before"] != entry["after"], entry


def test_a_test_that_a_mutant_makes_endless_is_ended_alone_and_named(tmp_path: Path) -> None:
    """Its limit follows its own seconds, not those of all tests that are tried."""
    file = tmp_path / "test_loops.py"
    file.write_text("def test_quick():\n    pass\n\n\ndef test_endless():\n    while True:\n        pass\n")
    (tmp_path / "chosen").write_text(json.dumps({"test_loops.py::test_quick": 60, "test_loops.py::test_endless": 1}))
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=no", "-p", "pytest_mutants", "-p", "no:xdist", str(file)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "scripts" / "mutants"), "MUTANTS_TESTS": str(tmp_path / "chosen")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=variables, timeout=100)
    assert done.returncode == 1 and "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "FAILED test_loops.py::test_endless" in done.stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout of one module with one test."""
    pytest.importorskip("cosmic_ray", reason="the extra [mutants] is not installed")
    pytest.importorskip("coverage", reason="the extra [mutants] is not installed")
    root = tmp_path / "project"
    shutil.copytree(ROOT / "scripts" / "mutants", root / "scripts" / "mutants", ignore=shutil.ignore_patterns("__pycache__"))
    files = {
        "sleepfm/__init__.py": "",
        "sleepfm/signals/__init__.py": "",
        "sleepfm/signals/small.py": MODULE,
        "tests/test_small.py": BLIND,
        "tests/equivalent_mutants.yaml": "[]\n",
        "pyproject.toml": "[tool.pytest.ini_options]\nmarkers = ['slow', 'gpu']\n",
        ".gitignore": "build/\n__pycache__/\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    return root


def mutate(project: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/mutants", "--packages", "sleepfm/signals", "--per-module", "9"]
    return subprocess.run(command, capture_output=True, text=True, cwd=project)


def test_what_the_tests_see_is_killed_and_what_none_sees_survives_until_it_is_explained(project: Path) -> None:
    done = mutate(project)
    assert done.returncode == 1, done.stdout + done.stderr
    before, after = [line[2:] for line in done.stdout.splitlines() if line.startswith(("- ", "+ "))]
    assert before == MODULE.splitlines()[0] and after != before

    entry = {"function": "first", "before": before, "after": after, "reason": "an example of one that is explained"}
    (project / "tests" / "equivalent_mutants.yaml").write_text(json.dumps([entry]))
    explained = mutate(project)
    assert "1 equivalent" in explained.stdout, explained.stdout + explained.stderr

    (project / "tests" / "equivalent_mutants.yaml").write_text("[]")
    (project / "tests" / "test_small.py").write_text(SEEING)
    done = mutate(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 survived" in done.stdout and "100.0%" in done.stdout
    assert (project / "sleepfm" / "signals" / "small.py").read_text() == MODULE
