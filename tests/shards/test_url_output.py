"""Data sets behind a URL: the bytes of a folder, through every command, whatever the store does in between."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from shards import store, working_copy
from shards.store import Store
from shards.working_copy import scratch
from sleepfm.errors import StorageError
from sleepfm.signals.files import location

BUCKET = "s3://sleep"
# Seeds of faults, and the longest time that the store takes to answer.
SLOWER = [(2, 0.05), (3, 0.2), (4, 0.2), (5, 2.0)]


def arguments(source: Path, out: object) -> list[object]:
    return ["build", source, out, "--cohort", "shhs1", "recordings_per_shard=2"]


def plant(folder: Path, s3, name: str) -> str:
    """The data set of a folder in the store, but the lock of the folder."""
    url = s3.upload(folder, name)
    Store(location(url)).remove(".lock")
    return url


def test_every_command_takes_a_url(cohort, built, place, s3, tmp_path, run, monkeypatch):
    monkeypatch.setenv("SLEEPFM_CACHE", str(tmp_path / "cache"))
    out = f"{BUCKET}/commands/out/"
    result = run(arguments(cohort, out))
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert place(out.rstrip("/")).digests() == place(built).digests()
    asked = len(s3.requests())
    assert run(arguments(cohort, out)).returncode == 0
    # A build that finds nothing to do puts nothing but its lease.
    assert all("/.lease/" in line for line in s3.requests()[asked:] if line.startswith(("PUT", "POST", "DELETE")))

    assert run(["verify", out]).stdout == f"{out}: whole\n"
    here, there = run(["info", built]).stdout.splitlines(), run(["info", out]).stdout.splitlines()
    assert here[1:] == there[1:] and there[0] == out.rstrip("/")
    for source, folder in ((built, "from-folder"), (out, "from-url")):
        assert run(["export", source, tmp_path / folder]).returncode == 0
    for path in sorted((tmp_path / "from-folder").rglob("*.parquet")):
        assert path.read_bytes() == (tmp_path / "from-url" / path.relative_to(tmp_path / "from-folder")).read_bytes()


def test_a_build_goes_on_behind_a_url_as_in_a_folder(cohort, place, s3, tmp_path, run):
    """More recordings, a scoring that changed, and one that was cut short: the same files after every step."""
    source = tmp_path / "source"
    shutil.copytree(cohort, source)
    edfs = sorted(source.rglob("*.edf"))
    late, short = edfs[-1].rename(tmp_path / "late.edf"), edfs[1]
    whole = short.read_bytes()
    short.write_bytes(whole[:3000])
    scoring = next(source.rglob("*200001-nsrr.xml"))

    def more() -> None:
        late.rename(edfs[-1])

    def corrected() -> None:
        scoring.write_bytes(next(source.rglob("*200003-nsrr.xml")).read_bytes())

    def fetched_again() -> None:
        short.write_bytes(whole)

    for number, step in enumerate((lambda: None, more, corrected, fetched_again)):
        step()
        asked = len(s3.requests())
        here, there = (run(arguments(source, out)) for out in (tmp_path / "out", f"{BUCKET}/grown"))
        assert here.returncode == there.returncode
        assert place(tmp_path / "out").digests() == place(f"{BUCKET}/grown").digests()
        changes = [line for line in s3.requests()[asked:] if line.startswith(("PUT", "DELETE")) and "/.lease/" not in line]
        # A description is there only while what it describes is: new shards may come beside it, nothing else may change.
        assert changes[-1] == "PUT /sleep/grown/dataset.json"
        described = changes[: changes.index("DELETE /sleep/grown/dataset.json")] if number else []
        assert not [line for line in described if line.startswith("DELETE") or "/manifest/" in line]


def test_what_is_refused_of_a_folder_is_refused_of_a_url(cohort, s3, run):
    s3.put("foreign/notes.txt", b"mine")
    s3.put("marked/", b"")
    cases = [
        (arguments(cohort, f"{BUCKET}/foreign"), 1, f"{BUCKET}/foreign: exists and is not a build of shards"),
        (arguments(f"{BUCKET}/foreign", f"{BUCKET}/foreign/out"), 2, "must lie outside"),
        (arguments(cohort, "s3://nowhere-at-all/out"), 1, "cannot be written"),
        (arguments(cohort, "memory://out"), 2, "under the condition that nothing is there yet"),
        (["verify", f"{BUCKET}/foreign"], 1, f"{BUCKET}/foreign: no dataset.json here"),
        (["info", f"{BUCKET}/nothing"], 1, "no dataset.json here"),
    ]
    for words, status, message in cases:
        result = run(words)
        assert result.returncode == status and message in result.stderr, (words, result.stderr)
        assert len(result.stderr.splitlines()) == 1 and "/tmp" not in result.stderr, result.stderr
    assert s3.contents("foreign") == {"notes.txt": b"mine"}
    # An object that a console has made for a folder is no file in it.
    assert run([*arguments(cohort, f"{BUCKET}/marked"), "store.lease_s=5"]).returncode == 0


@pytest.mark.parametrize(
    ("method", "right"),
    [
        ("GET", "list objects (s3:ListBucket)"),
        ("PUT", "put objects (s3:PutObject)"),
        ("DELETE", "delete objects (s3:DeleteObject)"),
    ],
)
def test_a_right_that_the_credentials_lack_ends_a_build_at_once_and_is_named(cohort, s3, run, method, right):
    out, asked = f"{BUCKET}/denied-{method.lower()}", len(s3.requests())
    with s3.faults(denied=[method]):
        result = run(arguments(cohort, out))
        seen = run(["info", out]) if method == "GET" else None
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1, result.stderr
    assert f"the store does not let these credentials {right} (" in result.stderr and out in result.stderr
    assert "the environment of every node" in result.stderr
    refused = [line for line in s3.requests()[asked:] if line.startswith(f"{method} ") and "/-faults" not in line]
    assert 1 <= len(refused) <= 3, refused
    assert s3.names(out.removeprefix(f"{BUCKET}/")) == []
    if seen is not None:
        assert seen.returncode == 1 and "the store does not let these credentials read it" in seen.stderr


@pytest.mark.parametrize("name", ["manifest/subjects.parquet", "manifest/records.parquet", "wids.json"])
def test_the_same_build_repairs_a_damaged_table_and_leaves_a_whole_data_set(cohort, built, place, s3, run, name):
    out = plant(built, s3, f"mended-{name.split('/')[-1][0]}")
    before = place(out).digests()
    s3.put(f"{out.removeprefix(BUCKET + '/')}/{name}", b"damaged")
    assert run(["verify", out]).returncode == 1
    assert run(arguments(cohort, out)).returncode == 0
    assert place(out).digests() == before
    assert run(["verify", out]).stdout == f"{out}: whole\n"


def test_verify_names_what_is_amiss_by_its_url(cohort, built, s3, run):
    url = plant(built, s3, "amiss")
    assert run(["verify", url]).stdout == f"{url}: whole\n"
    tar = bytearray((built / "shards/shard-000001.tar").read_bytes())
    tar[len(tar) // 2] ^= 1
    s3.put("amiss/shards/shard-000001.tar", bytes(tar))
    s3.put("amiss/shards/stray.txt", b"x")
    lines = run(["verify", url]).stdout.splitlines()
    assert lines[-1] == f"{url}: 2 faults found"
    assert any(line.startswith(f"{url}/shards/shard-000001.tar: its SHA-256 is not the manifest's") for line in lines)
    assert any(line.startswith(f"{url}/shards/stray.txt: not a file of this data set") for line in lines)
    Store(location(url)).remove("shards/shard-000001.tar")
    assert f"{url}/shards/shard-000001.tar: missing" in run(["verify", url]).stdout
    # What is amiss is made anew, what is somebody else's stays.
    result = run(arguments(cohort, url))
    assert result.returncode == 0, result.stderr
    Store(location(url)).remove("shards/stray.txt")
    assert run(["verify", url]).stdout == f"{url}: whole\n"


@pytest.mark.parametrize(
    ("seed", "delay"), [(1, 0.05), *(pytest.param(seed, delay, marks=pytest.mark.slow) for seed, delay in SLOWER)]
)
def test_a_store_that_fails_one_request_in_ten_gets_the_same_bytes(cohort, built, place, s3, run, seed, delay):
    """Errors, answers that never come though the request was carried out, answers that break off, and slow ones."""
    out, before = f"{BUCKET}/faulty-{seed}", len(s3.planted())
    with s3.faults(errors=0.1, lost=0.05, cut=0.05, delay_s=delay, seed=seed):
        result = run([*arguments(cohort, out), "store.lease_s=30"])
        verified = run(["verify", out])
    assert result.returncode == 0, result.stdout + result.stderr
    assert verified.stdout == f"{out}: whole\n"
    assert place(out).digests() == place(built).digests()
    # A build makes few requests, and which of them meets which fault is drawn in the order in which they come.
    planted = {line.split()[0] for line in s3.planted()[before:]}
    assert "errors" in planted and planted & {"lost", "cut"}


@pytest.mark.slow
def test_a_store_that_answers_nothing_ends_the_build_with_one_line(cohort, built, place, s3, run, monkeypatch):
    monkeypatch.setattr(store, "FIRST_PAUSE", 0.01)
    out = f"{BUCKET}/dead"
    with s3.faults(errors=1.0):
        result = run(arguments(cohort, out))
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1, result.stderr
    assert f"{out}: cannot be read" in result.stderr and "run the same command again" in result.stderr
    assert s3.names("dead") == []


def test_parts_of_an_upload_that_broke_off_are_no_object_and_are_dropped(cohort, built, place, s3, tmp_path, run, monkeypatch):
    monkeypatch.setattr(store, "PART_BYTES", 5 * 2**20)
    url = location(f"{BUCKET}/parts")
    large = tmp_path / "large"
    large.write_bytes(os.urandom(23 * 2**20))
    assert Store(url).upload("shards/shard-000009.tar", large)
    assert Store(url).sha256("shards/shard-000009.tar") == place(tmp_path).digests()["large"]
    assert not Store(url).upload("shards/shard-000009.tar", large), "what is there stays"
    assert s3.unfinished_uploads() == []
    # As a worker that was killed leaves them: one of this data set's, one of another's.
    for key in ("parts/shards/shard-000001.tar", "parts/elsewhere/shard-000001.tar"):
        s3.begin_upload(key, b"x" * 5 * 2**20)
    Store(url).remove("shards/shard-000009.tar")
    result = run(arguments(cohort, url))
    assert result.returncode == 0, result.stderr
    assert place(str(url)).digests() == place(built).digests()
    assert s3.unfinished_uploads() == ["parts/elsewhere/shard-000001.tar"]
    # The server is that of other tests too.
    Store(url).abandon_uploads("elsewhere", r".*\.tar")


def test_a_store_that_keeps_half_of_an_object_is_found_out(s3, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100)
    found = Store(location(f"{BUCKET}/half"))
    monkeypatch.setattr(found, "_created", lambda name, put: s3.put(f"half/{name}", b"x" * 50) is not None)
    with pytest.raises(StorageError, match="50 bytes arrived of 100"):
        found.upload("name", file)


def test_the_folder_of_a_task_that_died_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(working_copy, "_ABANDONED_AFTER_S", 0.0)
    with scratch() as held:
        dead = tmp_path / "sleepfm-shards-dead"
        dead.mkdir()
        (dead / "shard.tar").write_bytes(b"x")
        (dead / ".scratch").touch()
        with scratch():
            assert held.is_dir() and not dead.exists()
    assert not list(tmp_path.iterdir())


def test_a_folder_of_the_users_own_with_such_a_name_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(working_copy, "_ABANDONED_AFTER_S", 0.0)
    mine = tmp_path / "sleepfm-shards-shhs"
    mine.mkdir()
    for name in (".lock", "dataset.json"):  # a data set has both
        (mine / name).write_text("{}")
    with scratch():
        pass
    assert {path.name for path in mine.iterdir()} == {".lock", "dataset.json"}


@pytest.mark.slow
def test_a_driver_that_was_stopped_for_longer_than_its_lease_writes_no_more(cohort, built, connection, place, run, start):
    out = f"{BUCKET}/stopped"
    words = [*arguments(cohort, out), "store.lease_s=3"]
    first = start(words, connection.address)
    deadline = time.monotonic() + 240
    while "plan.json" not in place(out).names():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)
    second = run(words)
    assert second.returncode == 0 and "has been building here; continuing when its lease runs out" in second.stdout, second.stderr
    first.send_signal(signal.SIGCONT)
    stdout, stderr = first.communicate(timeout=240)
    assert first.returncode == 1 and len(stderr.splitlines()) == 1, stdout + stderr
    assert "this build has lost its lease" in stderr or "could not be renewed in time" in stderr
    assert place(out).digests() == place(built).digests()


@pytest.mark.slow
def test_a_full_disk_of_a_worker_is_one_line_and_nothing_half_written_counts(cohort, built, place, tmp_path, start, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", disk]).returncode:
        pytest.skip("only root can mount a small file system")
    out = f"{BUCKET}/full"
    try:
        monkeypatch.setenv("TMPDIR", str(disk))
        monkeypatch.setenv("RAY_TMPDIR", "/tmp")
        process = start([*arguments(cohort, out), "--workers", 1], None)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 1 and len(stderr.splitlines()) == 1, stderr
        assert "shard-000000.tar: cannot be written (No space left on device); make room" in stderr
        assert [name for name in place(out).names() if not name.startswith(".lease/")] == ["plan.json"]
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        process = start([*arguments(cohort, out), "--workers", 1], None)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert place(out).digests() == place(built).digests()
