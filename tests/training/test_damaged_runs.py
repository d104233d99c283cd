"""Real runs that go on in a folder in which one file is damaged or gone: every file that a run's folder knows, in every way."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launching import CONFIG, environment, trace
from test_mending import DAMAGES, cut, empty, folder_instead, garbage, zeroed

from sleepfm.registry import registry
from sleepfm.registry.package import WEIGHTS, verify
from sleepfm.training.folder import RunFolder
from sleepfm.training.state import sealed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ERRORS = "toy.errors=[0.5,0.25,0.75]"
MORE = (ERRORS, "train.steps=16")
# Written anew by every run, whatever is there.
REWRITTEN = {"config.yaml", "environment.json"}
# What a run has of its own, but for packages, checkpoints and best weights, which are folders.
FILES = (
    *("run.json", "config.yaml", "result.json", "trace.jsonl", "environment.json", "figures.jsonl", "tracking.json"),
    "goodput.json",
)

Start = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Runs the toy in a folder."""
    script = Path(__file__).with_name("many_jobs.py")
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as jobs:
        assert jobs.stdin is not None and jobs.stdout is not None

        def answer(folder: Path, *arguments: str) -> tuple[int, str, str]:
            assert jobs.stdin is not None and jobs.stdout is not None
            jobs.stdin.write(json.dumps([str(folder), arguments]) + "\n")
            jobs.stdin.flush()
            status, stdout, stderr = json.loads(jobs.stdout.readline())
            return status, stdout, stderr

        yield answer
        jobs.stdin.close()


@pytest.fixture(scope="module")
def finished(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve steps whose best is of step 10, with its last weights beside it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "toy.yaml").write_text(CONFIG)
    status, stdout, stderr = start(folder, ERRORS)
    assert status == 0 and "best val/error 0.2500 at step 10" in stdout, stderr
    return folder


@pytest.fixture
def world(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "world")
    return tmp_path / "world"


def versions(folder: Path) -> list[dict[str, str]]:
    found = registry.versions(f"sqlite:///{folder}/runs/mlflow.db")
    return [dict(version.tags) for version in sorted(found, key=lambda version: int(version.version))]


def facts(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run" / "result.json").read_text()))


def no_traceback(stderr: str) -> None:
    assert "Traceback" not in stderr, stderr


def gone(path: Path) -> None:
    path.unlink()


WAYS = [(name, damage, MORE) for name in FILES for damage in DAMAGES]
WAYS += [(name, damage, (ERRORS,)) for name in ("result.json", "figures.jsonl", "tracking.json") for damage in DAMAGES]
WAYS += [(name, gone, MORE) for name in ("run.json", "trace.jsonl", "figures.jsonl", "tracking.json")]


@pytest.mark.parametrize(
    ("name", "damage", "again"), WAYS, ids=[f"{name}-{damage.__name__}-{len(again)}" for name, damage, again in WAYS]
)
def test_a_run_goes_on_or_says_why_not(
    start: Start, world: Path, name: str, damage: Callable[[Path], None], again: tuple[str, ...]
) -> None:
    path = world / "run" / name
    damage(path)
    left = path.read_bytes() if path.is_file() else b""
    status, stdout, stderr = start(world, *again)
    no_traceback(stderr)
    if status:
        lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert status in (1, 2) and len(lines) == 1 and name in lines[0], stderr
        # As it was found.
        assert path.is_dir() if damage is folder_instead else damage is gone or path.read_bytes() == left
        return
    assert name in REWRITTEN or name in stderr or "nothing to do" in stdout, stderr
    if "damaged-" in stderr:
        aside = path.with_name(f"damaged-{name}")
        assert aside.is_dir() if damage is folder_instead else aside.read_bytes() == left
    assert facts(world)["best_step"] == 10
    verify(world / "run" / "package", "package")
    if again == MORE:
        assert [row["step"] for row in trace(world)][-4:] == [13, 14, 15, 16]
        # And once more: what was wrong is mended.
        status, stdout, stderr = start(world, *again)
        assert status == 0 and "nothing to do" in stdout and "warning" not in stderr, stderr


@pytest.mark.parametrize("damage", [*DAMAGES, zeroed], ids=lambda damage: damage.__name__)
def test_damaged_best_weights_are_never_registered(start: Start, world: Path, damage: Callable[[Path], None]) -> None:
    """As a kill leaves it, before the first package."""
    for name in ("package", "last"):
        shutil.rmtree(world / "run" / name)
    (world / "run" / "result.json").unlink()
    damage(world / "run" / "best" / WEIGHTS)
    status, stdout, stderr = start(world, ERRORS)
    no_traceback(stderr)
    assert status == 1 and "no validation is left" in stderr and len(versions(world)) == 1
    status, stdout, stderr = start(world, *MORE)
    no_traceback(stderr)
    assert status == 0 and "step 10, val/error 0.2500) are lost" in stderr, stderr
    assert "; lost: the best weights (of step 10, val/error 0.2500)" in stdout
    new = versions(world)[-1]
    assert (new["step"], new["metric.val/error"], new["lost.1"]) == (
        "16",
        "0.25",
        "the best weights (of step 10, val/error 0.2500)",
    )
    sealed.check(world / "run" / "package" / WEIGHTS)


@pytest.mark.parametrize("damage", [empty, garbage, zeroed], ids=lambda damage: damage.__name__)
def test_best_weights_come_back_from_the_package(start: Start, world: Path, damage: Callable[[Path], None]) -> None:
    damage(world / "run" / "best" / WEIGHTS)
    status, stdout, stderr = start(world, *MORE)
    assert status == 0 and "were restored from" in stderr and "val/error 0.2500 at step 10" in stdout, stderr


@pytest.mark.parametrize("name", ["package", "last"])
def test_a_damaged_package_is_refused_before_training_and_written_again_when_it_is_moved(
    start: Start, world: Path, name: str
) -> None:
    zeroed(world / "run" / name / WEIGHTS)
    status, _, stderr = start(world, *MORE)
    no_traceback(stderr)
    assert status == 1 and f"{name}/{WEIGHTS}" in stderr and "move it" in stderr
    assert len(trace(world)) == 12
    (world / "run" / name).rename(world / "moved")
    status, _, stderr = start(world, *MORE)
    assert status == 0, stderr
    sealed.check(world / "run" / name / WEIGHTS)


def test_a_damaged_package_is_not_uploaded_when_the_registry_was_lost(start: Start, world: Path) -> None:
    for path in (world / "runs").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    zeroed(world / "run" / "package" / WEIGHTS)
    status, _, stderr = start(world, ERRORS)
    no_traceback(stderr)
    assert status == 1 and f"package/{WEIGHTS}" in stderr and versions(world) == []


@pytest.mark.parametrize("damage", ["gone", "file", "emptied"])
def test_a_run_without_its_checkpoints_overwrites_nothing(start: Start, world: Path, damage: str) -> None:
    root = world / "run" / "checkpoints"
    shutil.rmtree(root)
    if damage == "file":
        root.write_text("")
    elif damage == "emptied":
        root.mkdir()
    before = {path: path.read_bytes() for path in (world / "run").rglob("*") if path.is_file()}
    status, _, stderr = start(world, *MORE)
    no_traceback(stderr)
    assert status == 1 and "run has saved that of step 12" in stderr and "--resume never" in stderr
    assert {path: path.read_bytes() for path in (world / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("damage", [*DAMAGES, zeroed], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", [WEIGHTS, "export.json"])
def test_damaged_weights_that_wait_for_their_export_are_never_exported(
    start: Start, world: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """As a kill leaves it after the last validation: `.last` is there, its package not yet."""
    if name != WEIGHTS and damage is zeroed:
        pytest.skip("of weights alone")
    folder = RunFolder(world / "run")
    folder.last_waiting.mkdir()
    (folder.last / WEIGHTS).rename(folder.last_waiting / WEIGHTS)
    note = {"step": 12, "figures": {"val/error": 0.75}, "export": {"config": {"model": {}}, "card": "#", "metrics": {}}}
    (folder.last_waiting / "export.json").write_text(json.dumps(note))
    shutil.rmtree(folder.last)
    folder.result.unlink()
    damage(folder.last_waiting / name)
    status, _, stderr = start(world, ERRORS, "registry.every_best=true")
    no_traceback(stderr)
    assert status == 0 and f".last/{name}" in stderr and "is not written" in stderr, stderr
    assert not folder.last.exists() and "last" not in facts(world)
    store = f"sqlite:///{world}/runs/mlflow.db"
    assert [alias for version in registry.versions(store) for alias in version.aliases] == ["champion"]


def test_a_cut_file_of_weights_is_one_line(start: Start, world: Path) -> None:
    shutil.rmtree(world / "run" / "package")
    cut(world / "run" / "best" / WEIGHTS)
    status, _, stderr = start(world, ERRORS, "train.output=other", "init_from=run")
    no_traceback(stderr)
    assert status == 1 and f"best/{WEIGHTS}: cannot be read as weights" in stderr
