"""Runs that go on with other settings, branch at a checkpoint, or start with the weights of another."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import CONFIG, alone, launch, trace
from safetensors.torch import load_file, save_file
from toy import ToyConfig, ToyModule

from sleepfm.config import read_yaml
from sleepfm.errors import CheckpointError, ConfigError, ModelError, RegistryError
from sleepfm.registry import registry
from sleepfm.registry.package import write_package
from sleepfm.registry.store import client as mlflow_client
from sleepfm.training.branch import initialise, weights_of
from sleepfm.training.folder import RunFolder
from sleepfm.training.run_config import RegistryConfig
from sleepfm.training.segments import Segment, counts, split
from sleepfm.training.state import checkpoint
from sleepfm.training.state.selection import Best
from sleepfm.training.tracking.journal import Journal

pytestmark = pytest.mark.timeout(900)


def losses(folder: Path, run: str = "run") -> dict[int, float]:
    return {row["step"]: row["loss"] for row in trace(folder, run)}


def rates(folder: Path, run: str = "run") -> dict[int, float]:
    return {row["step"]: row["lr"] for row in trace(folder, run)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps in one process, with its checkpoints of the steps 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("finished")
    done = alone(folder, "train.keep=5")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.slow
def test_a_finished_run_goes_on_with_more_steps_and_another_rate_as_a_new_segment(folder: Path) -> None:
    steered = ("train.keep=5", "train.steps=16", "train.lr=0.001", "train.accumulation=1", "train.validate_every=3")
    done = alone(folder, *steered)
    assert done.returncode == 0, done.stderr
    assert (
        "run: continues from step 12 with train.accumulation (2 -> 1), train.lr (0.01 -> 0.001), train.steps (12 -> 16)"
        in done.stdout
    )
    assert list(losses(folder)) == list(range(1, 17))
    assert max(rate for step, rate in rates(folder).items() if step > 12) <= 0.001 < rates(folder)[8]
    record = json.loads((folder / "run" / "run.json").read_text())
    assert record["settings"]["train"]["lr"] == 0.01
    (segment,) = record["segments"]
    assert segment["step"] == 12 and segment["changed"]["train.lr"] == [0.01, 0.001]
    result = json.loads((folder / "run" / "result.json").read_text())
    assert result["steps"] == 16 and result["segment"] == 1
    # The same command is done; the one of the first segment would change it again.
    again = alone(folder, *steered)
    assert again.returncode == 0 and "already trained (16 steps)" in again.stdout
    back = alone(folder, "train.keep=5")
    assert back.returncode == 2 and "train.steps (16 -> 12)" in back.stderr and "nothing is left to train" in back.stderr

    store = f"sqlite:///{folder}/runs/mlflow.db"
    run = mlflow_client(store).get_run(result["run_id"])
    assert run.data.tags["segment"] == "1" and run.data.tags["segment.1"].startswith("from step 12: ")
    assert run.data.params["train.lr"] == "0.01"
    version = mlflow_client(store).get_model_version("toy", result["version"])
    assert version.tags["segment.1"] == run.data.tags["segment.1"]


@pytest.mark.slow
def test_what_would_make_another_run_of_it_is_refused_with_what_to_do(folder: Path) -> None:
    before = (folder / "run" / "run.json").read_bytes()
    done = alone(folder, "train.lr=0.001", "train.steps=16", "train.seed=1", "toy.width=32")
    assert done.returncode == 2
    assert "toy.width (16 -> 32), train.seed (777 -> 1), which cannot change within a run" in done.stderr
    assert "train.lr (" not in done.stderr and "branch_from=run@STEP" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert (folder / "run" / "run.json").read_bytes() == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_branch_goes_on_from_a_checkpoint_in_its_own_folder(folder: Path) -> None:
    before = contents(folder / "run")
    done = alone(folder, "train.keep=5", "branch_from=run@8", "train.output=same")
    assert done.returncode == 0, done.stderr
    # With the same settings it is the same run.
    assert trace(folder, "same") == trace(folder)
    own, theirs = (load_file(folder / name / "last" / "model.safetensors") for name in ("same", "run"))
    assert all(torch.equal(own[name], theirs[name]) for name in theirs)
    assert contents(folder / "run") == before
    record = json.loads((folder / "same" / "run.json").read_text())
    assert record["branched_from"]["run"] == str(folder / "run") and record["branched_from"]["step"] == 8
    result = json.loads((folder / "same" / "result.json").read_text())
    run = mlflow_client(f"sqlite:///{folder}/runs/mlflow.db").get_run(result["run_id"])
    assert run.data.tags["branched_from"] == f"{folder / 'run'}@8"
    assert run.data.tags["branched_from.run_id"] == json.loads((folder / "run" / "tracking.json").read_text())["run_id"]


@pytest.mark.slow
def test_a_branch_may_change_all_but_the_parameters(folder: Path) -> None:
    other = ("branch_from=run@4", "train.output=other")
    done = alone(folder, *other, "train.seed=5", "train.weight_decay=0.5", "train.clip=0.1", "toy.dropout=0", "train.lr=0.1")
    assert done.returncode == 0, done.stderr
    rows, first = trace(folder, "other"), trace(folder)
    assert rows[:4] == first[:4] and rows[4]["loss"] != first[4]["loss"]
    # The optimiser's settings are the branch's, not those in the checkpoint.
    states = next((folder / "other" / "checkpoints" / "step-00000012").glob("*optim_states.pt"))
    state = checkpoint.read_file(states)["optimizer_state_dict"]
    assert {group["weight_decay"] for group in state["base_optimizer_state"]["param_groups"]} == {0.5, 0.0}
    assert state["clip_grad"] == 0.1
    wide = alone(folder, "branch_from=run@4", "train.output=wide", "toy.width=32")
    assert wide.returncode == 1
    assert "has other parameters" in wide.stderr and "init_from=" in wide.stderr and "Traceback" not in wide.stderr
    done = alone(folder, "branch_from=run@12", "train.output=none")
    assert done.returncode == 2 and "with 12 steps nothing is left to train" in done.stderr
    gone = alone(folder, "branch_from=run@5", "train.output=gone")
    assert gone.returncode == 1 and "there are those of step 4, 8, 12" in gone.stderr
    assert not (folder / "gone" / "run.json").exists()


@pytest.mark.slow
def test_the_advice_of_a_run_that_diverged_can_be_followed(tmp_path: Path) -> None:
    """The rate of the second segment throws the weights out of all numbers; the message says how to go on."""
    (tmp_path / "toy.yaml").write_text(CONFIG)
    # Item 80 is of the eleventh step.
    good = ("train.steps=30", "toy.statistics=false", "toy.kill_at=[80]", f"toy.kill_flag={tmp_path}/flag", "toy.seconds=0.2")
    assert launch(tmp_path, 2, *good, node=True).returncode != 0
    undone = losses(tmp_path)
    bad = launch(tmp_path, 2, *good, "train.lr=1e30", "train.checkpoint_every=1000", node=True)
    assert bad.returncode == 1
    assert "5 steps in a row had a non-finite" in bad.stderr and "Traceback" not in bad.stderr
    advice = re.search(
        r"same command with (\S+) continues from step (\d+), and with (\S+) (branch_from=\S+@4) train\.output=OTHER",
        bad.stderr,
    )
    assert advice is not None and advice[2] == "8", bad.stderr
    assert advice[1] == advice[3] == "train.lr=1e+29"
    # Which is smaller, and from such a rate not small enough yet.
    small = ("train.lr=0.001", "train.checkpoint_every=1000")
    branch = launch(tmp_path, 2, *good, *small, advice[4], "train.output=OTHER", node=True)
    assert branch.returncode == 0, branch.stderr
    same = launch(tmp_path, 2, *good, *small, node=True)
    assert same.returncode == 0, same.stderr
    for run, first in (("run", 8), ("OTHER", 4)):
        assert list(losses(tmp_path, run)) == list(range(1, 31))
        assert {step: loss for step, loss in losses(tmp_path, run).items() if step <= first} == {
            step: loss for step, loss in undone.items() if step <= first
        }
        assert not any(row.get("skipped") for row in trace(tmp_path, run))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [segment["step"] for segment in record["segments"]] == [8, 8]
    # Figures of the steps that were done again are those of the last segment, too.
    rows = [json.loads(line) for line in (tmp_path / "run" / "figures.jsonl").read_text().splitlines()]
    told = [row["figures"]["train/lr"] for row in rows if row["step"] == 10 and "train/lr" in row["figures"]]
    assert len(told) == 3 and told[-1] <= 0.001


@pytest.mark.slow
def test_a_run_starts_with_the_weights_of_another(folder: Path) -> None:
    version = json.loads((folder / "run" / "result.json").read_text())["version"]
    for number, address in enumerate(["models:/toy@champion", "run", "run/package"]):
        run = f"warm{number}"
        done = alone(folder, f"init_from={address}", f"train.output={run}", "train.steps=1", "train.lr=1e-9", "train.warmup=0")
        assert done.returncode == 0, done.stderr
        assert f"init_from={address}: 11 of 11 tensors taken from" in done.stdout
        own = load_file(folder / run / "last" / "model.safetensors")
        theirs = load_file(folder / "run" / "package" / "model.safetensors")
        weights = [name for name, value in theirs.items() if value.is_floating_point() and "running" not in name]
        assert all(torch.allclose(own[name], theirs[name], atol=1e-6) for name in weights)
        parents = read_yaml(folder / run / "package" / "config.yaml")["training"]["parents"]
        assert parents == ([f"toy:{version}"] if "@" in address else [])


class Toy:
    """Modules and packages of the toy."""

    @staticmethod
    def package(folder: Path, **settings: Any) -> Path:
        module = ToyModule(ToyConfig.model_validate(settings))
        write_package(folder, module, {"model": settings}, "card")
        return folder


def test_what_is_not_loaded_is_named_and_other_shapes_are_refused(tmp_path: Path) -> None:
    module = ToyModule(ToyConfig())
    state = ToyModule(ToyConfig()).state_dict()
    state.pop("outer.bias")
    state["elsewhere"] = torch.zeros(2)
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "part.safetensors")
    before = module.outer.bias.clone()
    loaded = initialise(module, tmp_path / "part.safetensors")
    assert (loaded.loaded, loaded.untouched, loaded.unused) == (len(state) - 1, ["outer.bias"], ["elsewhere"])
    assert "not in it, as initialised: outer.bias; in it, not used: elsewhere" in loaded.describe("x")
    assert torch.equal(module.outer.bias, before) and torch.equal(module.outer.weight, state["outer.weight"])

    kept = {name: value.clone() for name, value in module.state_dict().items()}
    wide = Toy.package(tmp_path / "wide", width=32)
    with pytest.raises(ModelError, match=r"other shapes.*hidden\.inner\.weight \(\[32, 8\] there, \[16, 8\] here\)"):
        initialise(module, weights_of(str(wide), registry.resolve)[0])
    save_file({"elsewhere": torch.zeros(2)}, tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match=r"no tensor of this model, such as cls_token"):
        initialise(module, tmp_path / "none.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"no weights")
    with pytest.raises(RegistryError, match="cannot be read as weights"):
        initialise(module, tmp_path / "damaged.safetensors")
    assert all(torch.equal(value, kept[name]) for name, value in module.state_dict().items())


def test_a_package_whose_bytes_have_changed_starts_nothing(tmp_path: Path) -> None:
    package = Toy.package(tmp_path / "package")
    content = bytearray((package / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (package / "model.safetensors").write_bytes(content)
    with pytest.raises(RegistryError, match="has changed"):
        weights_of(str(package), registry.resolve)
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"settings": {}, "dataset_digest": "", "sources": {}}))
    with pytest.raises(CheckpointError, match="nothing has been validated; use branch_from="):
        weights_of(str(run), registry.resolve)


def test_only_what_does_not_decide_the_order_of_items_may_change() -> None:
    known = {
        "train": {"lr": 1, "accumulation": 1, "seed": 3},
        "data": {"partitions": 1},
        "monitor": "none",
        "model": {"width": 1},
    }
    wanted = {
        "train": {"lr": 2, "accumulation": 2, "seed": 4},
        "data": {"partitions": 1},
        "monitor": {"k": 5},
        "model": {"width": 2},
    }
    steered, refused = split(known, wanted)
    assert set(steered) == {"train.lr", "train.accumulation", "monitor"} and set(refused) == {"train.seed", "model.width"}
    parted = {"data": {"partitions": 2}}
    steered, refused = split(known | parted, wanted | parted)
    assert "train.accumulation" in refused and "train.lr" in steered


def test_weights_of_steps_that_were_undone_or_chosen_otherwise_are_not_the_best(tmp_path: Path) -> None:
    first, slower, other = Segment(0, {}), Segment(8, {"train.lr": (1, 2)}), Segment(10, {"monitor.task": ("a", "b")})
    assert counts(0, 8, [first, slower]) and not counts(0, 9, [first, slower]) and counts(1, 9, [first, slower])
    assert not counts(0, 8, [first, slower, other]) and not counts(1, 9, [first, slower, other])
    assert counts(2, 11, [first, slower, other])
    path, config = tmp_path / "model.safetensors", RegistryConfig(name="x", metric="val/kappa")
    Best(path, config, [first]).keep_if_better(9, {"val/kappa": 0.9}, {"w": torch.ones(1)})
    assert Best(path, config, [first]).step == 9
    again = Best(path, config, [first, slower])
    assert (again.step, again.figures) == (0, {})
    assert again.keep_if_better(10, {"val/kappa": 0.1}, {"w": torch.zeros(1)})
    assert Best(path, config, [first, slower]).figures == {"val/kappa": 0.1}


def test_a_steered_run_without_a_step_left_is_refused(tmp_path: Path) -> None:
    from test_parts import run_config

    folder = RunFolder(tmp_path)
    folder.begin(run_config(tmp_path), "a" * 64, {})
    with pytest.raises(ConfigError, match=r"train\.steps \(10 -> 6\): the run is at step 8.*branch_from="):
        folder.steer(run_config(tmp_path, steps=6), 8, 6)
    assert folder.segments() == [Segment(0, {})]
    assert folder.steer(run_config(tmp_path, lr=0.2), 8, 10) == "train.lr (0.1 -> 0.2)"
    assert folder.steer(run_config(tmp_path, lr=0.2), 9, 10) == ""
    assert folder.segments() == [Segment(0, {}), Segment(8, {"train.lr": (0.1, 0.2)})]
    assert folder.check(run_config(tmp_path, lr=0.2), "a" * 64, "auto") is None


def test_a_rewound_journal_keeps_the_figures_of_the_steps_that_are_done_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "figures.jsonl")
    for step in range(1, 11):
        journal.append(step, step, {"a": step})
    journal.rewind(6)
    journal.append(7, 0, {"a": -7})
    journal.close()
    for _ in range(2):
        journal = Journal(tmp_path / "figures.jsonl")
        for step in (6, 7, 8):
            journal.append(step, 0, {"a": -step})
        journal.close()
    rows = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    assert [row["figures"]["a"] for row in rows if row["figures"]] == [*range(1, 11), -7, -8]
