"""Parts of the engine that are right or wrong without a process group: schedule, shares, folder, trace, sizes."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toy import ToyConfig, ToyModule, ToyRunConfig

import sleepfm
from sleepfm.config import load_config
from sleepfm.errors import CheckpointError, ConfigError, StorageError, TrainingError
from sleepfm.output import Origin, whole_folder
from sleepfm.training.feed import Shares
from sleepfm.training.folder import Resume, RunFolder
from sleepfm.training.ranks.distributed import World
from sleepfm.training.run_config import RegistryConfig, TrainConfig, config_digest
from sleepfm.training.schedule import learning_rate, parameter_groups
from sleepfm.training.state.selection import Best
from sleepfm.training.state.weights import average_statistics, state_digest
from sleepfm.training.tracking.sizing import Size
from sleepfm.training.tracking.trace import Trace, read_trace


def train_config(**values: object) -> TrainConfig:
    return TrainConfig.model_validate({"output": "run", "steps": 100, "lr": 1.0} | values)


@settings(deadline=None)
@given(st.integers(0, 20), st.integers(21, 200), st.floats(0, 0.5))
def test_the_rate_warms_up_to_its_peak_and_falls_to_its_end(warmup: int, steps: int, final: float) -> None:
    config = train_config(steps=steps, warmup=warmup, final_lr=final)
    rates = [learning_rate(config, step, steps) for step in range(steps)]
    assert max(rates) == pytest.approx(1.0)
    assert all(b > a for a, b in itertools.pairwise(rates[:warmup]))
    assert all(b <= a for a, b in itertools.pairwise(rates[warmup:]))
    assert learning_rate(config, steps, steps) == pytest.approx(final)


def test_only_matrices_and_kernels_are_decayed() -> None:
    module = ToyModule(ToyConfig())
    module.register_parameter("A_log", nn.Parameter(torch.zeros(2, 2)))
    decayed, plain = parameter_groups(module, 0.1)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {"hidden.inner.weight", "outer.weight"}
    assert {names[id(p)] for p in plain["params"]} == {
        *("outer.bias", "hidden.norm.weight", "hidden.norm.bias", "cls_token", "A_log")
    }
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


@settings(deadline=None)
@given(st.integers(1, 4), st.sampled_from([1, 2, 4, 8]), st.integers(1, 3), st.integers(0, 5))
def test_every_item_is_taken_once_in_the_same_micro_step_whatever_the_world(
    accumulation: int, size: int, unit: int, step: int
) -> None:
    batch = accumulation * 8 * unit
    shares = Shares.of(train_config(global_batch=batch, accumulation=accumulation), World(0, size, 0, size))
    for part in range(accumulation):
        items = [
            item
            for rank in range(size)
            for item in range(shares.start(step, part, rank), shares.start(step, part, rank) + shares.micro_batch)
        ]
        first = step * batch + part * batch // accumulation
        assert items == list(range(first, first + batch // accumulation))


def test_a_batch_that_does_not_divide_is_refused_with_its_numbers() -> None:
    world = World(0, 2, 0, 2)
    with pytest.raises(ConfigError, match=r"global_batch=10 .*accumulation=2 x 2 processes; make it a multiple of 4"):
        Shares.of(train_config(global_batch=10, accumulation=2), world)
    with pytest.raises(ConfigError, match=r"micro_batch=3.* it is 5"):
        Shares.of(train_config(global_batch=10, micro_batch=3), world)


@pytest.mark.parametrize("length", ["train: {output: r, lr: 1}", "train: {output: r, lr: 1, steps: 3, passes: 2}"])
def test_the_length_is_stated_once(tmp_path: Path, length: str) -> None:
    (tmp_path / "run.yaml").write_text(f"{length}\nregistry: {{name: x, metric: val/error}}\n")
    with pytest.raises(ConfigError, match=r"train\.steps or train\.passes"):
        load_config(ToyRunConfig, tmp_path / "run.yaml")


def run_config(output: Path, **train: object) -> ToyRunConfig:
    values = {"output": str(output), "steps": 10, "lr": 0.1} | train
    return ToyRunConfig.model_validate({"train": values, "registry": {"name": "toy", "metric": "val/error"}})


def test_a_folder_continues_its_own_run_only(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    assert RunFolder(tmp_path).check(config, "a" * 64, "auto") is None
    with pytest.raises(CheckpointError, match="no run to resume"):
        RunFolder(tmp_path).check(config, "a" * 64, "must")
    RunFolder(tmp_path).begin(config, "a" * 64, {"models:/x@champion": "models:/x/3"})
    assert RunFolder(tmp_path).check(config, "a" * 64, "auto") is None
    assert RunFolder(tmp_path).sources() == {"models:/x@champion": "models:/x/3"}
    # Where it writes and how often it saves do not decide the result.
    assert RunFolder(tmp_path).check(run_config(tmp_path, checkpoint_every=7), "a" * 64, "auto") is None
    assert config_digest(run_config(tmp_path, keep=9)) == config_digest(config)
    quiet = config.registry.model_copy(update={"every_best": False})
    assert config_digest(config.model_copy(update={"registry": quiet})) == config_digest(config)
    with pytest.raises(ConfigError, match=r"train\.seed \(777 -> 1\), which cannot.*--resume never"):
        RunFolder(tmp_path).check(run_config(tmp_path, seed=1, lr=0.2), "a" * 64, "auto")
    # The rate may change, see `sleepfm.training.segments`.
    assert RunFolder(tmp_path).check(run_config(tmp_path, lr=0.2), "a" * 64, "auto") is None
    with pytest.raises(ConfigError, match=r"data set digest \(aaaaaaaaaaaa -> bbbbbbbbbbbb\)"):
        RunFolder(tmp_path).check(config, "b" * 64, "auto")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        RunFolder(tmp_path).check(config, "a" * 64, "must")
    assert RunFolder(tmp_path).check(run_config(tmp_path, lr=0.2), "b" * 64, "never") is None


def test_starting_over_removes_the_runs_files_and_no_others(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    used_folder(tmp_path)
    mine = {"notes.txt", ".x.tmp", "predictions-mine.parquet", ".export-1", ".last.new", ".package.old", "step-00000004"}
    for name in mine:
        (tmp_path / name).write_text("mine")
    RunFolder(tmp_path).clear()
    assert {path.name for path in tmp_path.iterdir()} == mine
    RunFolder(tmp_path).clear()
    assert RunFolder(tmp_path).check(config, "a" * 64, "auto") is None


def used_folder(root: Path) -> None:
    """Leave all that a run may in ``root``."""
    RunFolder(root).begin(run_config(root), "a" * 64, {})
    for step in (4, 8):
        checkpoint = root / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.pt").write_text("state")
        (checkpoint / "complete.json").write_text(json.dumps({"step": step, "files": {"state.pt": 5}}))
    (root / "checkpoints" / "latest").write_text("step-00000008")
    for name in ("package", "last"):
        with whole_folder(root / name, Origin(f"{name} weights", "", "")) as new:
            (new / "model.safetensors").write_text("weights")
    # The last ones are what an export that was killed leaves: weights of the run that is to be forgotten.
    names = ("best", ".export-00000050", ".last", "checkpoints/.step-00000012.tmp", "checkpoints/.universal-step-00000008")
    for name in names:
        (root / name).mkdir()
        (root / name / "model.safetensors").write_text("weights")
    for name in ("result.json", "trace.jsonl", "evaluation.json", "predictions-test.parquet", "goodput.json", "profile.json"):
        (root / name).write_text("{}")


@pytest.mark.parametrize(
    "place",
    [
        "checkpoints/notes.txt",
        "checkpoints/step-00000004/notes.txt",
        "checkpoints/step-00000004-kept/state.pt",
        "checkpoints/step-00000099/complete.json",
        "best/notes.txt",
        "package/notes.txt",
        "last/sub/notes.txt",
        ".export-00000050/notes.txt",
        ".last/notes.txt",
    ],
)
def test_starting_over_removes_nothing_while_somebody_elses_file_lies_in_what_it_would_remove(tmp_path: Path, place: str) -> None:
    used_folder(tmp_path)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text('{"step": 4, "files": {}}')
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StorageError, match=re.escape(str(tmp_path / place))):
        RunFolder(tmp_path).clear()
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / place).unlink()
    with contextlib.suppress(OSError):
        (tmp_path / place).parent.rmdir()
    RunFolder(tmp_path).clear()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("resume", ["auto", "never"])
@pytest.mark.parametrize(
    "name", ["run.json", "config.yaml", "trace.jsonl", "checkpoints", "best", "package", "last", ".last", ".export-00000005"]
)
def test_a_run_does_not_begin_over_somebody_elses_files(tmp_path: Path, name: str, resume: Resume) -> None:
    (tmp_path / "train.log").write_text("the job's own output may be there before")
    assert RunFolder(tmp_path).check(run_config(tmp_path), "a" * 64, resume) is None
    (tmp_path / name).write_text("[1]")
    with pytest.raises(StorageError, match=name):
        RunFolder(tmp_path).check(run_config(tmp_path), "a" * 64, resume)
    with pytest.raises(StorageError, match=name):
        RunFolder(tmp_path).clear()
    assert {path.name for path in tmp_path.iterdir()} == {"train.log", name}


def test_a_run_that_goes_on_keeps_what_it_can_take_up_and_removes_what_a_kill_left_of_packages(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    RunFolder(tmp_path).begin(config, "a" * 64, {})
    kept = {"package", "last", ".export-00000050", ".last"}
    for name in kept:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("")
    for name in (".package.0123456789ab.tmp", ".package.0123456789ab.old", ".last.0123456789ab.tmp"):
        with whole_folder(tmp_path / "made", Origin("weights", "", "")) as new:
            (new / "model.safetensors").write_text("")
        (tmp_path / "made").rename(tmp_path / name)
    RunFolder(tmp_path).begin(config, "a" * 64, {})
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == kept


def test_a_trace_is_cut_back_to_the_step_that_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = [{"step": step, "loss": 1.0 / step} for step in range(1, 6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "lo')
    trace = Trace(path, 3)
    trace.append({"step": 4, "loss": 0.25})
    trace.close()
    assert read_trace(path) == rows[:4]


def test_the_best_weights_are_those_of_the_best_step_also_after_a_restart(tmp_path: Path) -> None:
    registry = RegistryConfig(name="x", metric="val/kappa")
    best = Best(tmp_path / "model.safetensors", registry)
    layers = [nn.Linear(2, 2) for _ in range(4)]
    for step, (layer, value) in enumerate(zip(layers, (float("nan"), 0.3, 0.5, 0.5), strict=True), start=1):
        Best(tmp_path / "model.safetensors", registry).keep_if_better(step, {"val/kappa": value}, layer.state_dict())
    best = Best(tmp_path / "model.safetensors", registry)
    assert (best.step, best.figures) == (3, {"val/kappa": 0.5})
    loaded = nn.Linear(2, 2)
    best.load_into(loaded)
    assert state_digest(loaded) == state_digest(layers[2])
    with pytest.raises(TrainingError, match=r"val/kappa.*val/loss"):
        best.keep_if_better(5, {"val/loss": 1.0}, {})


def test_memory_follows_what_each_zero_stage_shards() -> None:
    size = Size(total=100, trainable=40)
    assert [size.bytes_per_rank(zero, 4) for zero in range(3)] == [
        *(4 * (100 + 40 + 80), 4 * (100 + 40 + 30), 4 * (100 + 10 + 30))
    ]
    assert [size.bytes_per_rank(zero, 4, ema=True) - size.bytes_per_rank(zero, 4) for zero in range(3)] == [160, 160, 160]
    assert "100, of which 40 train" in size.describe(4)
    assert size.describe(4, ema=True).count("with the average of the weights") == 3


def test_one_process_keeps_its_statistics() -> None:
    module = nn.BatchNorm1d(3).train()
    module(torch.randn(5, 3))
    before = state_digest(module)
    average_statistics(module, World(0, 1, 0, 1))
    assert state_digest(module) == before


def test_nobody_but_the_runs_folder_names_its_files() -> None:
    folder = RunFolder("run")
    paths = [*(path for path in vars(folder).values() if isinstance(path, Path)), folder.predictions("val")]
    # Packages have a `config.yaml` too.
    names = [path.name for path in paths if path.suffix in (".json", ".jsonl", ".parquet")]
    assert {"run.json", "result.json", "trace.jsonl"} <= set(names)
    sources = {path: path.read_text() for path in Path(sleepfm.__file__).parent.rglob("*.py") if path.name != "folder.py"}
    assert [(path.name, name) for path, text in sources.items() for name in names if f'"{name}"' in text] == []
