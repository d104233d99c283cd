"""Files of a run's folder that are damaged or gone when the run goes on: found, said, and never taken for whole."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_parts import run_config

from sleepfm.errors import CheckpointError, DatasetError, SleepFMError, StorageError
from sleepfm.files import write_json
from sleepfm.output import whole_folder
from sleepfm.registry.package import WEIGHTS, write_package
from sleepfm.training import branch
from sleepfm.training.folder import RunFolder
from sleepfm.training.mending import mend
from sleepfm.training.ranks.distributed import World
from sleepfm.training.run_config import RegistryConfig
from sleepfm.training.state import sealed
from sleepfm.training.state.selection import Best
from sleepfm.training.tracking.goodput import Goodput, read_sums
from sleepfm.training.tracking.journal import Journal
from sleepfm.training.tracking.trace import Trace, read_trace, whole_rows

REGISTRY = RegistryConfig(name="toy", metric="val/error", mode="min")
STATE = {"a.weight": torch.arange(12.0).reshape(3, 4), "count": torch.tensor(7), "b": torch.ones(2, dtype=torch.float64)}


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 4 + b"\n")


def zeroed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-16:] = bytes(16)
    path.write_bytes(bytes(content))


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: list[Callable[[Path], None]] = [empty, cut, garbage, folder_instead]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of twelve steps, saved at steps 4, 8 and 12, whose best is of step 10."""
    folder = RunFolder(tmp_path / "run")
    folder.begin(run_config(folder.root, steps=12), "a" * 64, {})
    folder.trace.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, 13)))
    for step in (4, 8, 12):
        saved = folder.checkpoints / f"step-{step:08d}"
        saved.mkdir(parents=True)
        write_json(saved / "complete.json", {"step": step, "files": {}})
        folder.record_checkpoint(step)
    assert Best(folder.best, REGISTRY).keep_if_better(10, {"val/error": 0.25}, STATE)
    folder.record_best(sealed.read_header(folder.best))
    return folder


def package(folder: RunFolder) -> None:
    with whole_folder(folder.package, folder.origin(folder.package, "toy")) as new:
        write_package(new, folder.best, {"model": {}}, "card")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_changed_byte_of_sealed_weights_is_found(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        sealed.save(path, STATE, {"step": "3", "figures": "{}"})
        header, content = sealed.check(path), bytearray(path.read_bytes())
        assert set(load_file(path)) == set(STATE) and load_file(path)["b"].dtype == torch.float32
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(bytes(content))
        try:
            found = sealed.check(path)
        except CheckpointError as error:
            assert str(path) in str(error)
        else:
            # What JSON does not care about, such as white space.
            assert found == header and all(torch.equal(v, STATE[k].to(v.dtype)) for k, v in load_file(path).items())


def test_weights_of_an_earlier_version_have_no_digest_and_are_taken(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS
    save_file({"a": torch.ones(2)}, path, {"format": "pt", "step": "4", "figures": "{}"})
    assert sealed.check(path)["step"] == "4"
    save_file({"a": torch.ones(2)}, path, {"format": "pt", "step": "4", "figures": "{}", "sha257": "0"})
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        sealed.check(path)


@pytest.mark.parametrize("damage", [*DAMAGES, zeroed])
def test_damaged_best_weights_are_set_aside_and_never_used(
    run: RunFolder, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run.best)
    with pytest.raises(CheckpointError, match=r"best/model\.safetensors"):
        Best(run.best, REGISTRY).load_into(torch.nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match=r"best/model\.safetensors"):
        branch.weights_of(str(run.root), lambda address: pytest.fail(address))
    with pytest.raises(CheckpointError, match=r"step 10, val/error 0\.2500\) are lost.*no validation is left.*branch_from="):
        mend(run, REGISTRY, 12, 12)
    assert not run.lost() and not list(run.best.parent.glob("damaged-*"))
    mend(run, REGISTRY, 12, 16)
    said = capsys.readouterr().err
    assert "set aside as damaged-model.safetensors" in said and "step 10, val/error 0.2500) are lost" in said
    assert (run.best.parent / "damaged-model.safetensors").exists() and not run.best.exists()
    assert run.lost() == ["the best weights (of step 10, val/error 0.2500)"]
    assert run.lineage()["lost.1"] == run.lost()[0]
    mend(run, REGISTRY, 12, 16)
    assert len(run.lost()) == 1
    shutil.rmtree(run.checkpoints)
    if damage is not folder_instead:
        run.clear()
        assert not list(run.root.iterdir())


def test_best_weights_that_are_gone_cost_a_word(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run.best.parent)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing: .*step 10.*no validation is left"):
        mend(run, REGISTRY, 12, 12)
    # Step 10 is still to come.
    mend(run, REGISTRY, 8, 16)
    assert not run.lost()
    mend(run, REGISTRY, 12, 16)
    assert "missing: the best weights (of step 10, val/error 0.2500) are lost" in capsys.readouterr().err
    assert len(run.lost()) == 1


@pytest.mark.parametrize("gone", [False, True])
def test_best_weights_that_are_whole_in_the_package_are_taken_from_there(
    run: RunFolder, gone: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    package(run)
    before = run.best.read_bytes()
    if gone:
        run.best.unlink()
    else:
        zeroed(run.best)
    mend(run, REGISTRY, 12, 12)
    assert run.best.read_bytes() == before == (run.package / WEIGHTS).read_bytes() and not run.lost()
    assert "were restored from" in capsys.readouterr().err


def test_a_package_shares_no_bytes_with_the_best_weights_and_a_changed_one_is_refused_at_once(run: RunFolder) -> None:
    package(run)
    assert (run.package / WEIGHTS).stat().st_ino != run.best.stat().st_ino
    zeroed(run.package / WEIGHTS)
    sealed.check(run.best)
    with pytest.raises(StorageError, match=r"package/model\.safetensors: .*changed since.*move it"):
        mend(run, REGISTRY, 12, 16)


@pytest.mark.parametrize("resume", ["auto", "must"])
def test_a_run_whose_checkpoints_are_gone_does_not_begin_again(run: RunFolder, resume: str) -> None:
    config = run_config(run.root, steps=16)
    shutil.rmtree(run.checkpoints)
    with pytest.raises(CheckpointError, match=r"checkpoints: holds no checkpoint, .*step 12; .*--resume never.*init_from="):
        run.check(config, "a" * 64, resume)  # type: ignore[arg-type]
    run.checkpoints.write_text("no folder")
    with pytest.raises(CheckpointError, match="step 12"):
        run.check(config, "a" * 64, resume)  # type: ignore[arg-type]
    assert run.check(config, "a" * 64, "never") is None


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(run_config(tmp_path), "a" * 64, {})
    Best(folder.best, REGISTRY).keep_if_better(3, {"val/error": 0.25}, STATE)
    folder.record_best(sealed.read_header(folder.best))
    assert folder.check(run_config(tmp_path), "a" * 64, "auto") is None
    garbage(folder.best)
    mend(folder, REGISTRY, 0, 10)
    assert not folder.best.exists() and not folder.lost()


def test_a_newest_checkpoint_that_is_gone_costs_a_word(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    mend(run, REGISTRY, 8, 16)
    assert "checkpoint of step 12, which was saved last, is missing; continuing from step 8" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [None, empty, cut, garbage])
def test_a_trace_that_lost_rows_goes_on_with_the_others(
    run: RunFolder, damage: Callable[[Path], None] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if damage is None:
        run.trace.unlink()
    else:
        damage(run.trace)
    there = len(whole_rows(run.trace)[0])
    mend(run, REGISTRY, 12, 16)
    said = capsys.readouterr().err
    assert f"without the rows of {12 - there} steps from step {there + 1} to 12" in said
    assert ("set aside as damaged-trace.jsonl" in said) == (damage is garbage)
    Trace(run.trace, 12).append({"step": 13, "loss": 1.0})
    assert [row["step"] for row in read_trace(run.trace)] == [*range(1, there + 1), 13]
    assert run.lost() == [f"trace.jsonl: rows of {12 - there} steps from step {there + 1} to 12"]


def test_a_damaged_trace_is_not_read_in_part_without_a_word(run: RunFolder) -> None:
    run.trace.write_bytes(run.trace.read_bytes().replace(b'{"step": 5, ', b'{"stop": 5, '))
    with pytest.raises(DatasetError, match=r"trace\.jsonl: 1 lines are not rows"):
        read_trace(run.trace)
    folder_instead(run.trace)
    with pytest.raises(DatasetError, match=r"trace\.jsonl: cannot be read"):
        mend(run, REGISTRY, 12, 16)


@pytest.mark.parametrize("damage", [empty, cut, garbage])
def test_a_damaged_result_is_as_none(run: RunFolder, damage: Callable[[Path], None]) -> None:
    config = run_config(run.root, steps=12)
    result = {"finished": True, "name": "toy", "steps": 12, "best_step": 10, "metrics": {}, "parents": [], "seconds": 1}
    run.write_result(result | {"tags": {"stage": "toy", "sha256": "0"}})
    assert run.check(config, "a" * 64, "auto") == run.read_result()
    damage(run.result)
    assert run.check(config, "a" * 64, "auto") is None
    mend(run, REGISTRY, 12, 12)
    assert not run.result.exists() and (run.root / "damaged-result.json").exists()
    run.write_result({"finished": True})
    assert run.check(config, "a" * 64, "auto") is None
    folder_instead(run.result)
    with pytest.raises(StorageError, match=r"result\.json: cannot be read"):
        run.check(config, "a" * 64, "auto")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_sums_of_wall_time_are_set_aside_and_begin_again(
    run: RunFolder, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    world = World(0, 1, 0, 1)
    Goodput(world, run, 12).close()
    mend(run, REGISTRY, 12, 16)
    assert capsys.readouterr().err == ""
    damage(run.goodput)
    mend(run, REGISTRY, 12, 16)
    assert "goodput.json: is damaged; set aside as damaged-goodput.json" in capsys.readouterr().err
    assert run.lost() == ["goodput.json: where the wall time went until step 12"]
    Goodput(world, run, 12).close()
    assert read_sums(run.goodput) is not None


@pytest.mark.parametrize("content", ["[]", "{}", '{"seconds": {}, "saved": {}, "at": 1, "ended": ""}'])
def test_json_that_is_no_sums_of_wall_time_is_damage(run: RunFolder, content: str) -> None:
    run.goodput.write_text(content)
    with pytest.raises(CheckpointError, match=r"goodput\.json: is damaged"):
        read_sums(run.goodput)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_refused(run: RunFolder, damage: Callable[[Path], None]) -> None:
    damage(run.record)
    with pytest.raises(StorageError, match=r"run\.json: is not the record of a run"):
        run.check(run_config(run.root), "a" * 64, "auto")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_rows_around_damage_in_a_journal_stay(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "figures.jsonl"
        journal = Journal(path)
        for step in range(1, 9):
            journal.append(step, step, {"a": step})
        journal.close()
        lines = path.read_bytes().splitlines(keepends=True)
        hit = data.draw(st.sets(st.integers(0, 7), min_size=1))
        bad = data.draw(st.sampled_from([b"\n", b"\x00\xff\n", b"{}\n", b"[1]\n", b'{"step": 1, "time": 0, "figures": [1]}\n']))
        before = b"".join(bad if number in hit else line for number, line in enumerate(lines))
        path.write_bytes(before)
        journal = Journal(path)
        assert journal.damaged == len(hit) and (path.parent / "damaged-figures.jsonl").read_bytes() == before
        assert [row["step"] for row in journal.read(0, 100)[0]] == [n + 1 for n in range(8) if n not in hit]
        assert [start for start in range(journal.size + 1) if journal.begins_row(start)] == [
            sum(map(len, path.read_bytes().splitlines(keepends=True)[:n])) for n in range(9 - len(hit))
        ]
        journal.append(9, 9, {"a": 9})
        journal.close()
        journal = Journal(path)
        assert not journal.damaged and journal.read(0, 100)[0][-1]["step"] == 9
        journal.close()


def test_a_folder_in_the_place_of_the_figures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "figures.jsonl").mkdir()
    with pytest.raises(SleepFMError, match=r"figures\.jsonl"):
        Journal(tmp_path / "figures.jsonl")
