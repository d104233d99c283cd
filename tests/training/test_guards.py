"""Guards against collapse in a real run: on logged steps only, and of no harm where the model is not finite."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import environment
from made_nights import make_dataset, make_night

from sleepfm.data.dataset import Dataset

ROOT = Path(__file__).parents[2]
GUARDS = {"reconstruction_vs_mean", "alignment", "uniformity", "embedding_std", "effective_rank"}
FIXED = ("train.passes=null", "train.global_batch=4", "train.warmup=0", "monitor=none", "data.validation_items=4")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    torch.set_num_threads(1)
    nights = [make_night(f"night{number}", 12, seed=number) for number in range(16)]
    return make_dataset(tmp_path_factory.mktemp("shards") / "set", nights, per_shard=4)


def pretrain(folder: Path, dataset: Dataset, *overrides: str) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """A run of the tiny NeuroNet, and its trace."""
    line = [sys.executable, str(ROOT / "launch" / "pretrain.py"), str(ROOT / "configs" / "pretrain" / "eeg-tiny.yaml"), *FIXED]
    line += [f"data.path={dataset.path}", f"train.output={folder / 'run'}", "registry.metric=val/loss", "registry.mode=min"]
    variables = environment() | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    done = subprocess.run([*line, *overrides], cwd=folder, capture_output=True, text=True, env=variables, timeout=600)
    return done, [json.loads(row) for row in (folder / "run" / "trace.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_guards_are_of_logged_steps(dataset: Dataset, tmp_path: Path) -> None:
    done, rows = pretrain(tmp_path, dataset, "train.steps=5", "train.log_every=2")
    assert done.returncode == 0, done.stderr
    # The last one is logged too.
    assert [row["step"] for row in rows if row["parts"].keys() >= GUARDS] == [2, 4, 5]
    assert not any(row["parts"].keys() & GUARDS for row in rows if row["step"] in (1, 3))
    assert all(row["parts"].keys() >= {"reconstruction", "contrastive"} for row in rows)


def test_a_forward_pass_that_is_not_finite_is_a_skipped_step(dataset: Dataset, tmp_path: Path) -> None:
    # The first step leaves weights whose products overflow.
    far = ("train.lr=1e30", "train.schedule=constant", "train.steps=6", "train.log_every=1", "train.max_skipped=2")
    done, rows = pretrain(tmp_path, dataset, *far)
    assert done.returncode == 1
    assert "step 3: 2 steps in a row had a non-finite loss" in done.stderr
    assert "LinAlgError" not in done.stderr and "Traceback" not in done.stderr
    assert [row["step"] for row in rows] == [1, 2] and rows[1]["skipped"]
    assert rows[1]["parts"]["effective_rank"] != rows[1]["parts"]["effective_rank"]  # nan
