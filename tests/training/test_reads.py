"""No operation of a job's training step waits for the device; the losses of all stages are watched in ``test_host_reads.py``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launching import CONFIG, environment
from made_nights import make_dataset, make_night

from sleepfm.data.dataset import Dataset

JOB = Path(__file__).with_name("reads_job.py")
ROOT = Path(__file__).parents[2]
# With what a step may do: an average of the weights, clipping, micro-steps, skipped steps.
STEPS = ("train.steps=5", "train.ema=0.9", "toy.nan_at=[17]")


def watched(folder: Path, processes: int, *arguments: str) -> list[dict[str, Any]]:
    """What was found in each rank's steps."""
    (folder / "toy.yaml").write_text(CONFIG)
    line = [sys.executable, "-m", "sleepfm.training.launcher", str(processes), str(JOB), *arguments]
    variables = environment() | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    paths = f"{Path(__file__).parent}:{ROOT / 'tests'}:{ROOT}"
    if "--cuda" in arguments:
        variables["DS_ACCELERATOR"] = "cuda"
    variables["PYTHONPATH"] = f"{paths}:{variables.get('PYTHONPATH', '')}"
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, env=variables, timeout=600)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"reads-{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_no_step_waits_for_the_device(tmp_path: Path, zero: int) -> None:
    ranks = watched(tmp_path, 2, "--streams", "toy", "toy.yaml", f"deepspeed.zero={zero}", *STEPS)
    for rank in ranks:
        assert rank["found"] == []
        if zero:
            # Each reduction waits for what it reads, and the backward pass ends by waiting for the reductions.
            assert rank["streams"][0] == "reduction waits for own" and rank["streams"][-1] == "own waits for reduction"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "found"), [("--plant", "_local_scalar_dense"), ("--host-waits", "synchronize"), ("--norms", "_local_scalar_dense")]
)
def test_what_waits_is_found(tmp_path: Path, option: str, found: str) -> None:
    """A number in an ``if``, DeepSpeed's own end of a backward pass, its own norm."""
    rank = watched(tmp_path, 1, "--streams", option, "toy", "toy.yaml", *STEPS)[0]
    assert sum(line.startswith(f"{found} at ") for line in rank["found"]) >= 5, rank["found"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    nights = [make_night(f"night{number}", 12, seed=number) for number in range(16)]
    return make_dataset(tmp_path_factory.mktemp("shards") / "set", nights, per_shard=4)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("deepspeed.zero=2", "deepspeed.reduce_dtype=bf16", "train.batch_norm=sync")], ids=str)
def test_no_step_of_a_real_model_waits(tmp_path: Path, dataset: Dataset, options: tuple[str, ...]) -> None:
    settings = [f"data.path={dataset.path}", "train.passes=null", "train.steps=4", "train.global_batch=8", "train.log_every=2"]
    settings += ["train.warmup=0", "monitor=none", "data.validation_items=8", "registry.metric=val/loss", "registry.mode=min"]
    config = str(ROOT / "configs" / "pretrain" / "eeg-tiny.yaml")
    for rank in watched(tmp_path, 2, "--streams", "launch.pretrain", config, *settings, f"train.output={tmp_path}/run", *options):
        # Guards may read, on logged steps; masking noise is drawn from the numbers of the items.
        others = [line for line in rank["found"] if "sleepfm/models/guards.py" not in line]
        assert len(rank["found"]) - len(others) <= 2
        assert [line for line in others if "sleepfm/models/noise.py" not in line] == []


@pytest.mark.gpu
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_no_step_waits_on_the_device(tmp_path: Path, zero: int) -> None:
    """CUDA itself refuses what waits."""
    assert watched(tmp_path, 1, "--cuda", "toy", "toy.yaml", f"deepspeed.zero={zero}", *STEPS)[0]["found"] == []
