"""No operation of a training step, from the backward pass to the figures, waits for the device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_reads import Waits, counted
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
    paths = f"{Path(__file__).parent}:{ROOT}"
    if "--cuda" in arguments:
        variables["DS_ACCELERATOR"] = "cuda"
    variables["PYTHONPATH"] = f"{paths}:{variables.get('PYTHONPATH', '')}"
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, env=variables, timeout=600)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"reads-{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.parametrize("zero", [1, *(pytest.param(zero, marks=pytest.mark.slow) for zero in (0, 2))])
def test_no_step_waits_for_the_device(tmp_path: Path, zero: int) -> None:
    ranks = watched(tmp_path, 2, "--streams", "toy", "toy.yaml", f"deepspeed.zero={zero}", *STEPS)
    for rank in ranks:
        assert rank["found"] == []
        if zero:
            # Each reduction waits for what it reads, and the backward pass ends by waiting for the reductions.
            assert rank["streams"][0] == "reduction waits for own" and rank["streams"][-1] == "own waits for reduction"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "found"),
    [("--plant", ["__bool__", "_local_scalar_dense"]), ("--host-waits", ["synchronize"]), ("--norms", ["_local_scalar_dense"])],
)
def test_what_waits_is_found(tmp_path: Path, option: str, found: list[str]) -> None:
    """A number in an ``if``, DeepSpeed's own end of a backward pass, its own norm."""
    rank = watched(tmp_path, 1, "--streams", option, "toy", "toy.yaml", *STEPS)[0]
    assert {line.split(":")[0] for line in rank["found"]} >= {*found}, rank["found"]
    assert len(rank["found"]) >= 5


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
        assert rank["found"] == []


def test_the_counter_finds_what_reads() -> None:
    """Each of these, wherever Python or torch asks for a number; nothing that only computes."""
    x, waits = torch.randn(4, 4), Waits()
    readers = [
        lambda: x.sum().item(),
        lambda: x.tolist(),
        lambda: float(x.sum()),
        lambda: bool(x.isfinite().all()),
        lambda: x[x > 0],
        lambda: x.nonzero(),
        lambda: x.to("cpu"),
        lambda: torch.equal(x, x),
        lambda: torch.repeat_interleave(torch.tensor([1, 2])),
        lambda: x.masked_select(x > 0),
        lambda: x.unique(),
        lambda: x.clone().index_put_((x > 0,), torch.zeros(())),
    ]
    for number, read in enumerate(readers):
        with counted(waits):
            read()
        assert waits.found, number
        waits.found.clear()
    with counted(waits):
        y = torch.where(x > 0, x, 0.0).softmax(-1) @ x
        y[:, 1:].add_(torch.ones(3)).masked_fill_(y[:, 1:] > 0, 1.0)
        torch.cat([y, x]).to(y.device, torch.float64).double().square().sum().sqrt()
    assert waits.found == []


@pytest.mark.gpu
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_no_step_waits_on_the_device(tmp_path: Path, zero: int) -> None:
    """CUDA itself refuses what waits."""
    assert watched(tmp_path, 1, "--cuda", "toy", "toy.yaml", f"deepspeed.zero={zero}", *STEPS)[0]["found"] == []
