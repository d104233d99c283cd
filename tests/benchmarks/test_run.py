"""`make bench` in miniature: every script that belongs to it runs as it stands and fills its rows of the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALL = {"models", "reading", "shards", "training", "doctor", "dead_time", "scoring"}


@pytest.mark.slow
def test_every_benchmark_runs_in_miniature(tmp_path: Path) -> None:
    command = (ROOT / "Makefile").read_text().split("\nbench: $(STAMP)\n", 1)[1].splitlines()[0].split()
    assert command == ["$(BIN)/python", "benchmarks/run.py"]
    out = tmp_path / "table.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    words = [sys.executable, *command[1:], "--quick", "--json", str(out)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = json.loads(out.read_text())
    assert {row["benchmark"] for row in table["rows"]} == ALL
    heading, *rows, machine = done.stdout.splitlines()
    assert heading.split() == ["benchmark", "what", "figure", "beside", "ratio", "limit"] and len(rows) == len(table["rows"])
    for row in table["rows"]:
        assert row["figure"] >= 0, row
        assert not row["reference"] or row["ratio"] == pytest.approx(row["figure"] / row["reference"]), row
        assert any(row["what"] in line and row["limit"] in line for line in rows)
    assert machine.endswith("bf16 instructions") and "cores" in machine
