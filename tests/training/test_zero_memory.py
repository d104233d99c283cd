"""What a rank holds by ZeRO stage and number of processes, counted in the processes of a real job."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from launching import CONFIG, environment

from sleepfm.config import load_config
from sleepfm.errors import ConfigError
from sleepfm.training.run_config import RunConfig

pytestmark = pytest.mark.timeout(900)

WIDTH = 100_000
JOB = Path(__file__).with_name("memory_job.py")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_a_rank_holds_what_is_stated_of_its_stage(tmp_path: Path, zero: int, processes: int) -> None:
    (tmp_path / "toy.yaml").write_text(CONFIG)
    line = [sys.executable, "-m", "sleepfm.training.launcher", str(processes), str(JOB), "toy.yaml", f"deepspeed.zero={zero}"]
    # One gradient a step: ZeRO 2 would else keep its parts beside those of the step before.
    line += ["train.steps=2", "train.accumulation=1", "train.ema=0.9", f"toy.width={WIDTH}", "toy.statistics=false"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env=environment(), timeout=600)
    assert done.returncode == 0, done.stderr
    for rank in range(processes):
        held = json.loads((tmp_path / f"memory-{rank}.json").read_text())
        trained, total, stated = (held.pop(name) for name in ("trained", "total", "stated"))
        parts = processes if zero else 1
        expected = {
            "parameters": 4 * total,
            "gradients": 4 * trained // parts,
            "master copy": 4 * trained // parts if zero else 0,
            "moments": 8 * trained // parts,
            "average": 4 * trained,
        }
        # ZeRO keeps the whole gradient of a parameter through which a part's border goes: of a matrix, and of a vector.
        slack = 4 * (8 * WIDTH + WIDTH) if zero and processes > 1 else 0
        assert 0 <= held["gradients"] - expected["gradients"] <= slack + 4096, (rank, held)
        # Parts are rounded up to whole numbers of elements for each group of parameters.
        without = held | {"gradients": expected["gradients"]}
        assert without == pytest.approx(expected, abs=4096), (rank, held)
        # With ZeRO 1 gradients are whole in the backward pass, which is what is stated, and have been shared before the update.
        shared = 4 * trained - expected["gradients"] if zero == 1 else 0
        assert sum(without.values()) + shared == pytest.approx(stated, abs=8192)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("deepspeed.zero=3", r"deepspeed\.zero.*3 is not supported.*use 0, 1 or 2"),
        ("deepspeed.extra={zero_optimization: {stage: 3}}", r"zero_optimization: stage follow"),
        ("deepspeed.extra={zero_optimization: {offload_param: {device: cpu}}}", r"offload_param follow"),
    ],
)
def test_a_stage_that_shards_parameters_is_refused_with_its_reason(tmp_path: Path, override: str, reason: str) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG)
    with pytest.raises(ConfigError, match=reason) as error:
        load_config(RunConfig, tmp_path / "run.yaml", [override])
    assert "\n" not in str(error.value)
