"""Runs that are killed, preempted or out of disk, and the run that takes them up again."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from launching import CONFIG, command, environment, family, launch, trace
from safetensors.torch import load_file

from sleepfm.training.ranks.preemption import PREEMPTED_STATUS
from sleepfm.training.state import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = "train.steps=24"
# Long enough for a test to hit a chosen step.
SLOW = "toy.seconds=0.05"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = launch(folder, 2, STEPS, SLOW)
    assert done.returncode == 0, done.stderr
    return folder


def ranks(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    """The training processes below the launcher, by rank."""
    found = {}
    for process in family(launcher):
        for word in process.cmdline():
            if word.startswith("--local_rank="):
                found[int(word.split("=")[1])] = process
    return [found[rank] for rank in sorted(found)]


def disturb(
    folder: Path,
    run: str,
    when: Callable[[], bool],
    act: Callable[[list[psutil.Process]], None],
    arguments: tuple[str, ...] = (STEPS, SLOW),
) -> int:
    """Start ``run``, wait for ``when``, do ``act`` to its ranks; the launcher's exit status."""
    (folder / "toy.yaml").write_text(CONFIG)
    log = (folder / f"{run}.log").open("a")
    launcher = subprocess.Popen(
        command(2, *arguments, f"train.output={run}"), cwd=folder, stdout=log, stderr=log, env=environment(), text=True
    )
    deadline = time.monotonic() + 600
    try:
        while launcher.poll() is None and not when():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        if launcher.poll() is None:
            act(ranks(launcher))
        return launcher.wait(timeout=600)
    finally:
        if launcher.poll() is None:
            for process in family(launcher):
                process.kill()


def reached(folder: Path, run: str, step: int) -> Callable[[], bool]:
    path, began = folder / run / "trace.jsonl", time.time()
    return lambda: path.exists() and path.stat().st_mtime > began and path.read_text().count("\n") >= step


def saved(run: Path) -> Callable[[], bool]:
    """Whether the first checkpoint is published."""
    return lambda: (run / "checkpoints" / checkpoint.LATEST).exists()


def finish(folder: Path, run: str, arguments: tuple[str, ...] = (STEPS, SLOW)) -> None:
    done = launch(folder, 2, *arguments, f"train.output={run}")
    assert done.returncode == 0, done.stderr
    assert trace(folder, run) == trace(folder)


def saving_since(folder: Path, began: float) -> bool:
    """Whether a save has begun since ``began`` and is not published; an earlier kill may have left an older one."""
    for path in folder.glob(".step-*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ctime > began:
                return True
    return False


KILLS = 20
MANY = ("train.steps=100", "train.checkpoint_every=3", SLOW)


@pytest.mark.timeout(3600)
def test_a_run_killed_at_twenty_random_moments_gives_the_trace_of_the_undisturbed_one(tmp_path: Path) -> None:
    """One rank or both, a few steps after the start or in the middle of a save; what is left goes on each time."""
    whole = launch(tmp_path, 2, *MANY)
    assert whole.returncode == 0, whole.stderr
    rng = random.Random(5)
    folder = tmp_path / "killed" / "checkpoints"
    in_saves = 0
    for attempt in range(KILLS):
        victims = rng.choice(([0], [1], [0, 1]))
        in_save = attempt % 4 == 3
        pause = 0.0 if in_save else rng.uniform(0, 0.12)
        saved = int((folder / "latest").read_text()[5:]) if (folder / "latest").exists() else 0
        assert saved < 97, "the run is nearly over, and the kills are not"
        step = saved + rng.randint(1, 7)
        began = time.time()

        def kill(found: list[psutil.Process], victims: list[int] = victims, pause: float = pause) -> None:
            time.sleep(pause)
            for rank in victims:
                found[rank].kill()

        when = partial(saving_since, folder, began) if in_save else reached(tmp_path, "killed", step)
        status = disturb(tmp_path, "killed", when, kill, MANY)
        assert status not in (0, PREEMPTED_STATUS)
        in_saves += saving_since(folder, began)
        print(f"attempt {attempt}: ranks {victims} killed at step {trace(tmp_path, 'killed')[-1]['step']}, saved {saved}")
    assert in_saves
    finish(tmp_path, "killed", MANY)
    for row in trace(tmp_path, "killed"):
        # A step took the eight items that come next, each once.
        items = [8 * (row["step"] - 1) + number for number in range(8)]
        assert row["parts"]["items"] == sum(items) / 8
        assert row["parts"]["squares"] == sum(item**2 for item in items) / 8


# Files large enough for a write to take many times longer than a look at it.
LARGE = ("train.steps=80", "train.checkpoint_every=3", "train.lr=0.0001", "toy.seconds=0.05", "toy.width=60000")


def newest_unfinished(folder: Path, began: float) -> int:
    """Files in the folder of the save that began after ``began``; -1 if there is none."""
    for path in folder.glob(".step-*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ctime > began:
                return sum(1 for _ in path.iterdir())
    return -1


@pytest.mark.timeout(3600)
def test_a_run_killed_at_twenty_points_of_its_background_writes_ends_with_the_weights_of_the_undisturbed_one(
    tmp_path: Path,
) -> None:
    """From an empty folder to one whose files are all there but have no name yet; training goes on meanwhile."""
    whole = launch(tmp_path, 2, *LARGE, node=True)
    assert whole.returncode == 0, whole.stderr
    rng = random.Random(11)
    folder = tmp_path / "killed" / "checkpoints"
    unfinished = 0
    for attempt in range(KILLS):
        victims, pause = rng.choice(([0], [1], [0, 1])), rng.uniform(0, 0.05)
        began, skip = time.time(), rng.randint(0, 1)
        first = checkpoint.steps(folder)[:1] or [0]

        def writing(files: int = attempt % 4, began: float = began, after: int = first[0] + 3 * skip) -> bool:
            steps = checkpoint.steps(folder)
            return newest_unfinished(folder, began) >= files and (steps[0] if steps else 0) >= after

        def kill(found: list[psutil.Process], victims: list[int] = victims, pause: float = pause) -> None:
            time.sleep(pause)
            for rank in victims:
                found[rank].kill()

        assert first[0] < 74, "the run is nearly over, and the kills are not"
        status = disturb(tmp_path, "killed", writing, kill, LARGE)
        assert status not in (0, PREEMPTED_STATUS)
        unfinished += newest_unfinished(folder, began) >= 0
    assert unfinished >= KILLS // 4
    done = launch(tmp_path, 2, *LARGE, "train.output=killed", node=True)
    assert done.returncode == 0, done.stderr
    assert trace(tmp_path, "killed") == trace(tmp_path)
    own, theirs = (load_file(tmp_path / run / "last" / "model.safetensors") for run in ("killed", "run"))
    assert all(torch.equal(own[name], theirs[name]) for name in theirs)


def test_a_damaged_newest_checkpoint_is_passed_over_by_every_rank(undisturbed: Path) -> None:
    """Saved by the clock alone; a bit of the newest is wrong, of which only rank 1 reads the file."""
    # Item 80 is of the eleventh step.
    clock = ("train.checkpoint_every=1000", "train.checkpoint_minutes=0.005", "train.keep=9", "train.output=clock")
    arguments = (STEPS, "toy.seconds=0.2", *clock)
    died = launch(undisturbed, 2, *arguments, "toy.kill_at=[80]", "toy.kill_flag=clock.flag", node=True)
    assert died.returncode != 0
    folder = undisturbed / "clock" / "checkpoints"
    before = checkpoint.steps(folder)
    assert len(before) >= 3 and before[0] <= 10
    file = next((folder / f"step-{before[0]:08d}").glob("zero_pp_rank_0*optim_states.pt"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    finish(undisturbed, "clock", (*arguments, "toy.kill_at=[80]", "toy.kill_flag=clock.flag"))
    assert (folder / f"damaged-step-{before[0]:08d}" / file.name).read_bytes() == content


def test_a_run_killed_during_a_save_goes_on_from_the_save_before(undisturbed: Path) -> None:
    folder = undisturbed / "saving" / "checkpoints"

    def saving() -> bool:
        return (folder / "step-00000004").exists() and any(folder.glob(".step-00000008.tmp"))

    def kill(found: list[psutil.Process]) -> None:
        for process in found:
            process.kill()

    assert disturb(undisturbed, "saving", saving, kill) != 0
    assert (folder / "latest").read_text().strip() in ("step-00000004", "step-00000008")
    finish(undisturbed, "saving")
    assert not any(folder.glob(".step-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_preempted_run_saves_where_it_is_and_asks_to_be_started_again(undisturbed: Path, number: signal.Signals) -> None:
    run = number.name.lower()
    status = disturb(undisturbed, run, reached(undisturbed, run, 6), lambda found: found[1].send_signal(number))
    assert status == PREEMPTED_STATUS
    left = trace(undisturbed, run)[-1]["step"]
    assert left >= 6
    assert (undisturbed / run / "checkpoints" / f"step-{left:08d}").is_dir()
    finish(undisturbed, run)


def largest(folder: Path) -> int:
    """Bytes of the largest file that lies in ``folder`` itself."""
    return max(path.stat().st_size for path in folder.iterdir() if path.is_file())


def test_a_save_that_does_not_fit_on_the_disk_leaves_the_one_before(undisturbed: Path) -> None:
    (undisturbed / "toy.yaml").write_text(CONFIG)
    arguments = [STEPS, SLOW, "train.output=full"]
    disturb(undisturbed, "full", saved(undisturbed / "full"), lambda found: [p.kill() for p in found] and None)
    before = (undisturbed / "full" / "checkpoints" / "latest").read_text()
    # The run's own records fit, the largest file of a checkpoint does not.
    records, files = (largest(undisturbed / "full" / name) for name in (".", f"checkpoints/{before.strip()}"))
    assert records < files - 1
    most = (records + files) // 2

    def no_larger_file() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    done = subprocess.run(
        command(2, *arguments),
        cwd=undisturbed,
        capture_output=True,
        text=True,
        env=environment() | {"MLFLOW_TRACKING_URI": f"sqlite:///{undisturbed}/runs/mlflow.db"},
        preexec_fn=no_larger_file,
        timeout=600,
    )
    assert done.returncode == 1
    assert "cannot save step 8" in done.stderr
    assert "earlier checkpoints remain" in done.stderr
    assert (undisturbed / "full" / "checkpoints" / "latest").read_text() == before
    finish(undisturbed, "full")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_checkpoint_before(undisturbed: Path, small_disk: Path) -> None:
    run = str(small_disk / "run")
    disturb(undisturbed, run, saved(Path(run)), lambda found: [p.kill() for p in found] and None)
    latest = small_disk / "run" / "checkpoints" / "latest"
    before = latest.read_text()
    room = os.statvfs(small_disk)
    filler = small_disk / "filler"
    # Room for the rows of some steps, not for a checkpoint (its code alone has 40 kB).
    filler.write_bytes(bytes(room.f_bavail * room.f_bsize - 24 * 1024))
    done = launch(undisturbed, 2, STEPS, SLOW, f"train.output={run}")
    assert done.returncode == 1
    # Whichever of the run's files is the first that does not fit.
    assert "cannot save step 8" in done.stderr or ": cannot be written (No space left on device)" in done.stderr
    assert "MB are free there" in done.stderr or "No space left on device" in done.stderr
    assert "earlier checkpoints remain" in done.stderr or "what is finished is kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert latest.read_text() == before
    filler.unlink()
    finish(undisturbed, run)


def test_two_jobs_of_one_port_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(CONFIG)
    line = command(2)
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(line[line.index("--master_port") + 1])))
        taken.listen()
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env=environment(), timeout=600)
    assert done.returncode == 1
    assert "give the launcher another --master_port" in done.stderr
    assert os.path.exists(tmp_path / "toy.yaml")
