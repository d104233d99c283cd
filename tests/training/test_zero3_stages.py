"""ZeRO 3 on the real models: whatever part of a model uses a parameter, forward or backward, finds it whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launching import environment
from made_nights import make_dataset, make_night

from sleepfm.data.dataset import Dataset

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
MODALITIES = ("EEG", "EOG", "EMG", "ECG")
FIXED = ("train.passes=null", "train.steps=3", "train.validate_every=3", "train.global_batch=4", "train.warmup=1")
# Nothing is too small to be parted.
PARTED = "deepspeed.extra={zero_optimization: {stage3_param_persistence_threshold: 0}}"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    torch.set_num_threads(1)
    nights = [make_night(f"night{number}", 12, seed=number) for number in range(16)]
    return make_dataset(tmp_path_factory.mktemp("shards") / "set", nights, per_shard=4)


def losses(folder: Path, zero: int, script: str, config: str, *overrides: str) -> list[float]:
    output = folder / f"zero{zero}"
    line = [sys.executable, str(ROOT / "launch" / f"{script}.py"), str(ROOT / "configs" / f"{config}.yaml"), *overrides]
    line += [*FIXED, f"train.output={output}", "deepspeed.dtype=fp32", f"deepspeed.zero={zero}", PARTED]
    variables = environment() | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, env=variables, timeout=600)
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["loss"] for line in (output / "trace.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "stage",
    ["unimodal", *(pytest.param(name, marks=pytest.mark.slow) for name in ("multimodal", "context", "fine-tune", "events"))],
)
def test_every_stage_gives_the_losses_of_zero_1(dataset: Dataset, packages: Path, tmp_path: Path, stage: str) -> None:
    encoder = f"encoder={packages / 'synthsleepnet'}"
    encoders = [f"encoders.{name}={packages / name}" for name in MODALITIES]
    script, config, overrides = {
        "unimodal": ("pretrain", "pretrain/eeg-tiny", ["data.validation_items=8"]),
        "multimodal": ("pretrain", "pretrain/multimodal-tiny", ["data.validation_items=8", *encoders]),
        "context": ("pretrain", "pretrain/context-tiny", [encoder, "cache=cache", "model.length=10", "model.span=2"]),
        "fine-tune": ("finetune", "downstream/finetune-stage-tiny", [encoder, "tune.mode=full", "evaluate.resamples=0"]),
        "events": ("finetune", "downstream/finetune-apnea-events-tiny", [encoder, "evaluate.resamples=0"]),
    }[stage]
    overrides.append(f"data.path={dataset.path}")
    whole, parted = (losses(tmp_path, zero, script, config, *overrides) for zero in (1, 3))
    # Of losses up to ten.
    assert parted == pytest.approx(whole, rel=1e-5)
