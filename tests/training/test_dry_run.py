"""What ``--dry-run`` says before anything is trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from device_steps import build
from launching import CONFIG, alone
from test_cuda_types import dataset  # noqa: F401
from toy import ToyConfig, ToyModule, ToyRunConfig, ToyStage

from launch.probe import build_stage as build_probe
from sleepfm.config import load_config
from sleepfm.data.dataset import Dataset
from sleepfm.stages.pretrain import build_stage
from sleepfm.training.folder import RunFolder
from sleepfm.training.job import Context
from sleepfm.training.preflight.report import describe
from sleepfm.training.ranks.distributed import World
from sleepfm.training.ranks.shared_work import ALONE
from sleepfm.training.tracking.sizing import Size


def test_memory_without_sharding_is_what_a_step_holds() -> None:
    module = ToyModule(ToyConfig())
    trained = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained)
    module(torch.randn(4, 8)).square().mean().backward()
    optimiser.step()
    held = [*module.parameters(), *(p.grad for p in trained)]
    held += [state[name] for state in optimiser.state.values() for name in ("exp_avg", "exp_avg_sq")]
    bytes_held = sum(tensor.nbytes for tensor in held if tensor is not None)
    average = sum(p.nbytes for p in trained)
    assert Size.of(module).bytes_per_rank(0, 1) == bytes_held
    assert Size.of(module).bytes_per_rank(0, 1, ema=True) == bytes_held + average


def test_on_paper_it_speaks_of_other_numbers_of_processes(tmp_path: Path) -> None:
    done = alone(tmp_path, "--dry-run", "--processes", "64", "train.global_batch=1024", "deepspeed.dtype=bf16")
    assert done.returncode == 0, done.stderr
    assert "processes: 64, of 8 items in each of 2 micro-steps" in done.stdout
    assert re.search(r"^64 x H200 \(131 GiB\): fits, 0\.00 h expected \(\d+\.\d ms a step, set by", done.stdout, re.MULTILINE)


def test_each_stage_of_zero_shards_more() -> None:
    size = Size(total=100, trainable=80)
    assert [size.bytes_per_rank(zero, 4) for zero in range(3)] == [
        4 * (100 + 80 + 160),
        4 * (100 + 80 + 60),
        4 * (100 + 20 + 60),
    ]
    assert size.bytes_per_rank(2, 4, ema=True) - size.bytes_per_rank(2, 4) == 4 * 80


@pytest.mark.parametrize("ema", [0.0, 0.99])
def test_it_prints_sizes_and_arithmetic_and_writes_nothing(tmp_path: Path, ema: float) -> None:
    done = alone(tmp_path, "--dry-run", f"train.ema={ema}", "toy.width=12")
    assert done.returncode == 0, done.stderr
    _, facts = done.stdout.split("steps: ")
    assert "global_batch" not in done.stdout
    total = sum(p.numel() for p in ToyModule(ToyConfig(width=12)).parameters())
    trained = total - (8 * 8 + 8)
    assert facts.startswith("12, items in a pass: 40\n")
    assert f"parameters: {total:,}, of which {trained:,} train" in facts
    assert facts.count("GiB a rank without activations") == 3
    assert ("with the average of the weights" in facts) == (ema > 0)
    assert "GFLOP an item" in facts
    assert "processes: 1, of 4 items in each of 2 micro-steps" in facts
    assert "GiB activations of 4 items (counted)" in facts
    assert re.search(r"^1 x H100 \(75 GiB\): fits$", facts, re.MULTILINE)
    assert not (tmp_path / "run").exists()


def test_it_prints_the_configuration_where_asked_and_before_the_rest(tmp_path: Path) -> None:
    done = alone(tmp_path, "--dry-run", "--print-config", "toy.width=12")
    assert done.returncode == 0, done.stderr
    text, facts = done.stdout.split("\nsteps: ")
    config = yaml.safe_load(text)
    assert (config["toy"]["width"], config["train"]["global_batch"], config["deepspeed"]["dtype"]) == (12, 8, "fp32")
    assert facts.startswith("12, items in a pass: 40\n")
    refused = alone(tmp_path, "--print-config")
    assert refused.returncode == 2 and "--print-config: only for --dry-run" in refused.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["context", "probe"])
def test_what_learns_from_embeddings_is_counted_without_embedding_anything(
    dataset: Dataset,  # noqa: F811
    packages: Path,
    tmp_path: Path,
    kind: str,
) -> None:
    real: Any = build(kind, dataset.path, packages, tmp_path)
    config = real.config.model_copy(
        update={"cache": str(tmp_path / "other"), "deepspeed": real.config.deepspeed.model_copy(update={"dtype": "fp32"})}
    )
    context = Context(ALONE.world, "", "never", config, on_paper=True)
    paper = build_probe(config, context) if kind == "probe" else build_stage(config, context)
    texts = [describe(config, stage, ALONE.world, World(0, 4, 0, 4)) for stage in (real, paper)]
    assert texts[0] == texts[1] and "memory of a rank" in texts[0]
    assert (tmp_path / "cache").is_dir() and not (tmp_path / "other").exists()


def test_it_refuses_what_the_start_refuses(tmp_path: Path) -> None:
    config = load_config(ToyRunConfig, _toy(tmp_path), [f"train.output={tmp_path / 'run'}"])
    RunFolder(config.train.output).begin(config, ToyStage.dataset_digest, {})
    other = ["--dry-run", f"train.output={tmp_path / 'run'}", "train.seed=8"]
    for resume, arguments, status, said in (
        ("auto", other, 2, "contains a run with another configuration: train.seed (777 -> 8)"),
        ("never", other, 0, ""),
        ("auto", ["--dry-run", "train.output=new", "branch_from=nowhere@4"], 1, "nowhere is not the folder of a run"),
        ("auto", ["--dry-run", "train.output=new", f"branch_from={tmp_path / 'run'}@4"], 1, "no checkpoint of step 4"),
    ):
        done = alone(tmp_path, "--resume", resume, *arguments)
        assert done.returncode == status, done.stderr
        assert said in done.stderr
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.yaml", "run.json"]
    assert not (tmp_path / "new").exists()


def _toy(folder: Path) -> Path:
    path = folder / "toy.yaml"
    path.write_text(CONFIG)
    return path
