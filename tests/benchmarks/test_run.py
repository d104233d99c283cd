"""`make bench`: its table of made figures, and in miniature: every script that belongs to it runs and fills its rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
ALL = {"models", "reading", "shards", "training", "doctor", "dead_time", "scoring"}
RATES = {"1": {"float32": 1e9}, "2": {"float32": 2e9, "bfloat16": 4e9}}


@pytest.fixture(autouse=True)
def _beside_the_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def tiny_figures() -> dict[str, Any]:
    """Of NeuroNet tiny, and of a night's conversion on both sides."""
    variants = {"ours fp32": {"seconds": 4.0, "flops": 8e9}, "ours bf16": {"seconds": 5.0, "flops": 8e9}}
    bound = {"reading_seconds": 0.1, "transform_seconds": 0.1}
    sides = {"ours": {"processor_seconds_per_night": 1.2}, "reference": {"processor_seconds_per_night": 6.0}}
    return {
        "rates": {"product_flops_a_second": RATES},
        "models": {"cases": {"neuronet-tiny": variants}},
        "shards": sides | {"bound": bound},
    }


def test_a_row_has_ours_the_released_code_the_physical_limit_and_their_ratios() -> None:
    from rows import table

    rows = table(tiny_figures(), quick=True, with_reference=True)
    assert set(rows) == {"models", "shards"}
    night = rows["shards"]["a night to a shard, a core"]
    assert (night["ours"], night["released"], night["limit"]) == (1.2, 6.0, pytest.approx(0.2))
    assert (night["ours_over_released"], night["ours_over_limit"]) == (pytest.approx(0.2), pytest.approx(6))
    # Beside nothing else, the physical limit is what its bounds are of.
    assert night["allowed"] == "<= 5" and not night["holds"]
    step = rows["models"]["NeuroNet tiny, a step in bf16"]
    assert (step["limit"], step["ours_over_beside"], step["released"]) == (2.0, 1.25, None) and step["holds"]
    without = table(tiny_figures(), quick=True, with_reference=False)["shards"]["a night to a shard, a core"]
    assert without["released"] is None and without["ours_over_released"] is None


def test_the_table_says_what_each_limit_is() -> None:
    from rows import table
    from run import lines_of

    lines = lines_of(table(tiny_figures(), quick=True, with_reference=True), quick=False)
    (night,) = (line for line in lines if "a night to a shard" in line)
    assert night.split("a core")[1].split() == ["1.2", "s", "6", "0.2", "[2]", "0.2", "6", "<=", "5", "NOT", "ALLOWED"]
    assert lines[-1].startswith("[2] reading, decoding") and lines[-2].startswith("[1] products and convolutions")


def test_a_checkout_that_is_none_is_refused_before_anything_runs(tmp_path: Path) -> None:
    words = [sys.executable, str(BENCHMARKS / "run.py"), "--reference", str(tmp_path)]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2 and f"{tmp_path}: no models/neuronet/model.py; name a checkout of" in done.stderr


def test_files_are_named_by_processor_and_cores() -> None:
    from machine import slug

    assert slug({"processor": "AMD EPYC 9B14 (96-Core)", "cores": 2}) == "amd-epyc-9b14-96-core-2-cores"


@pytest.mark.slow
def test_every_benchmark_runs_in_miniature(tmp_path: Path) -> None:
    command = (ROOT / "Makefile").read_text().split("\nbench: $(STAMP)\n\t", 1)[1].splitlines()[0]
    assert command == '$(BIN)/python benchmarks/run.py $(if $(REFERENCE),--reference "$(REFERENCE)")'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    words = [sys.executable, "benchmarks/run.py", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("bench-*.json")
    content = json.loads(file.read_text())
    assert file.name.startswith(f"bench-{content['date']}-") and content["quick"]
    assert set(content["rows"]) == ALL
    machine, *lines = done.stdout.splitlines()
    assert machine.startswith(f"{content['date']}, {content['machine']['processor']}, bf16: ") and "cores" in machine
    for script, rows in content["rows"].items():
        assert script in lines
        for what, row in rows.items():
            assert row["ours"] >= 0, row
            if row["beside_figure"]:
                assert row["ours_over_beside"] == pytest.approx(row["ours"] / row["beside_figure"]), row
            if row["limit"] is not None:
                assert row["limit"] > 0 and f"] {row['limit_is']}" in done.stdout
            assert any(what in line and row["allowed"] in line for line in lines)
