"""Checkpoints that are written while training goes on, and what becomes of damaged ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ports import free_port
from ranks import spawn_ranks
from safetensors.torch import load_file
from torch import nn

from sleepfm.errors import CheckpointError
from sleepfm.training.ranks.distributed import World, import_deepspeed, start
from sleepfm.training.state import checkpoint, writer
from sleepfm.training.state.writer import Writer

RANKS = 2
ALONE = World(0, 1, 0, 1)
pytestmark = pytest.mark.timeout(300)


def join(rank: int, port: str) -> World:
    """One of the ranks of a job."""
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(RANKS),
        LOCAL_RANK=str(rank),
        LOCAL_SIZE=str(RANKS),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port,
    )
    world = World.from_environment()
    start(world, 60)
    return world


def engine_of(model: nn.Module, zero: int) -> Any:
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "AdamW", "params": {"torch_adam": True}},
        "zero_optimization": {"stage": zero},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = import_deepspeed().initialize(
        model=model, model_parameters=model.parameters(), config=settings, dist_init_required=False
    )
    return engine


def spawned(work: Callable[..., None], folder: Path) -> None:
    spawn_ranks(work, (str(folder), str(free_port())), RANKS)


def save_while_weights_change(rank: int, folder: str, port: str) -> None:
    """Saves with an extra file for which rank 0 takes its time, changes the weights meanwhile, notes what came to the disk."""
    world, output = join(rank, port), Path(folder)
    torch.manual_seed(1)
    model = nn.Linear(3, 3)
    engine = engine_of(model, 1)
    synced: list[str] = []
    sync_file, save_weights = writer.sync_file, writer.save_weights

    def noted(path: Path) -> None:
        sync_file(path)
        synced.append(path.name)

    def slow(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        time.sleep(2)
        save_weights(path, tensors)
        synced.append(path.name)

    writer.sync_file, writer.save_weights = noted, slow
    saving = Writer(engine, world, output / "checkpoints", 1, 2, "m")
    saved = model.weight.detach().clone()
    began = time.monotonic()
    saving.save(1, {"extra.safetensors": {"weight": torch.ones(3)}})
    stopped = time.monotonic() - began
    with torch.no_grad():
        model.weight.fill_(7)
    assert checkpoint.steps(output / "checkpoints") == []
    saving.finish()
    assert not saving.ready
    found = torch.load(output / "checkpoints" / "step-00000001" / "mp_rank_00_model_states.pt", weights_only=True)
    facts = {"synced": synced, "stopped": stopped, "kept": torch.equal(found["module"]["weight"], saved)}
    (output / f"{rank}.json").write_text(json.dumps(facts))


def test_a_save_keeps_the_weights_of_its_step_however_slowly_it_is_written(tmp_path: Path) -> None:
    spawned(save_while_weights_change, tmp_path)
    facts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    saved = checkpoint.choose(tmp_path / "checkpoints", ALONE)
    assert saved is not None and (saved.step, saved.processes, saved.zero, saved.model) == (1, RANKS, 1, "m")
    assert torch.equal(load_file(saved.folder / "extra.safetensors")["weight"], torch.ones(3))
    files = {path.name for path in saved.folder.iterdir()} - {checkpoint.MARK}
    assert sorted(name for rank in facts for name in rank["synced"]) == sorted(files)
    assert all(rank["kept"] and rank["stopped"] < 2 for rank in facts)


def save_three(rank: int, folder: str, port: str) -> None:
    world = join(rank, port)
    saving = Writer(engine_of(nn.Linear(3, 3), 1), world, Path(folder) / "checkpoints", 1, 3, "m")
    for step in (4, 8, 12):
        saving.save(step, {"ema.safetensors": {"weight": torch.ones(3)}})
    saving.finish()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of two ranks at the steps 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("three")
    spawned(save_three, folder)
    assert checkpoint.steps(folder / "checkpoints") == [12, 8, 4]
    return folder / "checkpoints"


FILES = [
    *("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"),
    *("zero_pp_rank_1_mp_rank_00_optim_states.pt", "ema.safetensors", checkpoint.MARK),
]


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x55
    path.write_bytes(content)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "first byte": lambda path: flip(path, 0),
    "middle byte": lambda path: flip(path, 0.5),
    "last byte": lambda path: flip(path, 1),
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "removed": lambda path: path.unlink(),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "a folder": replace_by_folder,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    three: Path, tmp_path: Path, name: str, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "checkpoints"
    shutil.copytree(three, root)
    assert sorted(path.name for path in (root / "step-00000012").iterdir()) == sorted(FILES)
    DAMAGES[damage](root / "step-00000012" / name)
    saved = checkpoint.choose(root, ALONE)
    assert saved is not None and saved.step == 8
    said = capfd.readouterr().err
    assert str(root / "step-00000012" / name) in said and "continuing from step 8" in said and said.count("\n") == 1
    assert (root / "damaged-step-00000012").is_dir() and checkpoint.steps(root) == [8, 4]
    # The next choice finds nothing to say.
    assert checkpoint.choose(root, ALONE) == saved and capfd.readouterr().err == ""


def test_every_digit_of_the_list_of_files_counts(three: Path, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    shutil.copytree(three / "step-00000012", root / "step-00000012")
    mark = root / "step-00000012" / checkpoint.MARK
    text = mark.read_text()
    for number, found in enumerate(re.finditer(r"\d", text)):
        if number % 7 == 0:
            mark.write_text(text[: found.start()] + str((int(found[0]) + 1) % 10) + text[found.end() :])
            with pytest.raises(CheckpointError, match="no complete checkpoint"):
                checkpoint.choose(root, ALONE)
    mark.write_text(text)
    assert checkpoint.choose(root, ALONE) is not None


def test_where_none_is_whole_all_are_named_and_nothing_is_moved(three: Path, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    shutil.copytree(three, root)
    for step in (4, 8, 12):
        flip(root / f"step-{step:08d}" / "mp_rank_00_model_states.pt", 0.3)
    before = sorted(root.rglob("*"))
    with pytest.raises(CheckpointError, match=r"no complete checkpoint .*step-00000012.*step-00000008.*step-00000004"):
        checkpoint.choose(root, ALONE)
    assert sorted(root.rglob("*")) == before
    assert checkpoint.choose(tmp_path / "nothing", ALONE) is None


def choose_apart(rank: int, folder: str, port: str) -> None:
    world = join(rank, port)
    saved = checkpoint.choose(Path(folder) / f"host{rank}" / "checkpoints", world)
    (Path(folder) / f"{rank}.txt").write_text(str(saved and saved.step))


def test_ranks_on_hosts_that_see_other_files_agree(three: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The disk of the second host has lost a file of the newest checkpoint, and has damaged another of the one before."""
    for rank in range(RANKS):
        shutil.copytree(three, tmp_path / f"host{rank}" / "checkpoints")
    lost = tmp_path / "host1" / "checkpoints"
    (lost / "step-00000012" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    # Sorted second of the files: read by rank 1.
    flip(lost / "step-00000008" / "mp_rank_00_model_states.pt", 0.5)
    spawned(choose_apart, tmp_path)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(RANKS)] == ["4", "4"]
    said = capfd.readouterr().err
    assert "missing, as rank 1 finds" in said and "SHA-256 differs, as rank 1 finds" in said


def save_over(rank: int, folder: str, port: str) -> None:
    """Saves at steps where something stands, and then where nobody can write."""
    world, root = join(rank, port), Path(folder) / "checkpoints"
    saving = Writer(engine_of(nn.Linear(3, 3), 1), world, root, 1, 2, "m")
    if rank == 0:
        (root / "step-00000001").mkdir(parents=True)
        (root / "step-00000001" / "notes.txt").write_text("mine")
    for step in (1, 2):
        saving.save(step, {})
    saving.finish()
    if rank == 0:
        flip(root / "step-00000002" / FILES[0], 0.5)
    saving.save(2, {})
    saving.finish()
    # Rank 1's file cannot be written: a folder has its name. Only rank 0 makes it: it removes what is there before the save.
    if rank == 0:
        (root / ".step-00000003.tmp" / FILES[2]).mkdir(parents=True)
    save_checkpoint = saving._engine.save_checkpoint

    def blocked(*arguments: Any, **options: Any) -> None:
        save_checkpoint(*arguments, **options)
        (root / ".step-00000003.tmp" / FILES[2]).mkdir(exist_ok=True)

    saving._engine.save_checkpoint = blocked
    saving.save(3, {})
    try:
        saving.finish()
        said = "nothing"
    except CheckpointError as error:
        said = str(error)
    (Path(folder) / f"{rank}.txt").write_text(said)


def test_a_save_is_never_left_out_and_a_failed_one_ends_every_rank(tmp_path: Path) -> None:
    spawned(save_over, tmp_path)
    root = tmp_path / "checkpoints"
    assert (root / "damaged-step-00000001" / "notes.txt").read_text() == "mine"
    assert {path.name for path in (root / "damaged-step-00000002").iterdir()} >= {checkpoint.MARK, FILES[0]}
    saved = checkpoint.choose(root, ALONE)
    assert saved is not None and saved.step == 2
    for rank in range(RANKS):
        said = (tmp_path / f"{rank}.txt").read_text()
        assert "cannot save step 3 (rank 1: " in said and "earlier checkpoints remain" in said


def test_a_checkpoint_of_an_earlier_version_is_judged_by_its_sizes(three: Path, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    shutil.copytree(three, root)
    for folder in root.glob("step-*"):
        mark = json.loads((folder / checkpoint.MARK).read_text())
        former = {key: mark[key] for key in ("step", "processes", "zero")}
        former["files"] = {name: written["bytes"] for name, written in mark["files"].items()}
        (folder / checkpoint.MARK).write_text(json.dumps(former))
    assert checkpoint.choose(root, ALONE) == checkpoint.Saved(root / "step-00000012", 12, RANKS, 1)
    os.truncate(root / "step-00000012" / FILES[0], 10)
    saved = checkpoint.choose(root, ALONE)
    assert saved is not None and saved.step == 8
