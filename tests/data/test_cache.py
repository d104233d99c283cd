"""The cache of fetched shards: bounded, whole or absent, shared by processes, clean after a kill."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cache_process import LIMIT, SIZE, content_of, main, slow_chunks

from sleepfm.data.cache import MARKER, PART, FileCache
from sleepfm.errors import ConfigError, ShardError

SCRIPT = Path(__file__).with_name("cache_process.py")


def rank(folder: Path, pause: float, rounds: int, seed: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, SCRIPT, folder / "c", folder / "log", str(pause), str(rounds), str(seed)])


def size_of(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def test_processes_share_one_cache(tmp_path):
    ranks = [rank(tmp_path, 0.001, 4, seed) for seed in range(3)]
    most = 0
    while any(process.poll() is None for process in ranks):
        most = max(most, size_of(tmp_path / "c"))
        time.sleep(0.005)
    assert [process.returncode for process in ranks] == [0, 0, 0]
    # A file that is renamed while the folder is listed may be counted twice.
    assert SIZE <= most <= LIMIT + SIZE
    assert SIZE <= size_of(tmp_path / "c") <= LIMIT
    assert not list((tmp_path / "c").rglob(f"*{PART}"))


def test_the_environment_names_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SLEEPFM_CACHE", str(tmp_path))
    monkeypatch.setenv("SLEEPFM_CACHE_GIB", "1.5")
    found = FileCache.from_environment()
    assert (found.folder, found.limit) == (tmp_path, 3 * 2**29)
    for wrong in ("much", "0", "nan", "-1", "inf"):
        monkeypatch.setenv("SLEEPFM_CACHE_GIB", wrong)
        with pytest.raises(ConfigError, match="SLEEPFM_CACHE_GIB"):
            FileCache.from_environment()


def test_threads_that_want_one_file_fetch_it_once(tmp_path):
    content = content_of(0)
    digest = hashlib.sha256(content).hexdigest()
    files = FileCache(tmp_path / "c", 10**6)
    threads = [
        threading.Thread(
            target=files.get,
            args=("d/shards/shard-000000.tar", len(content), digest, lambda: slow_chunks(content, tmp_path / "log", 0.01)),
        )
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "log").read_text() == "x"
    assert (tmp_path / "c/d/shards/shard-000000.tar").read_bytes() == content


def test_a_file_of_another_size_is_fetched_again(tmp_path):
    content = content_of(0)
    digest, fetched = hashlib.sha256(content).hexdigest(), []
    files = FileCache(tmp_path, 10**6)

    def get() -> Path:
        return files.get("d/shard-000000.tar", len(content), digest, lambda: fetched.append(1) or [content])

    assert get().read_bytes() == content and get().read_bytes() == content and len(fetched) == 1
    os.truncate(get(), len(content) - 1)
    assert get().read_bytes() == content and len(fetched) == 2


def test_a_killed_fetch_leaves_nothing_that_stays(tmp_path):
    process = rank(tmp_path, 0.5, 1, 0)
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list((tmp_path / "c").rglob(f"*{PART}"))
    assert not list((tmp_path / "c").rglob("*.tar"))
    main(tmp_path / "c", tmp_path / "log", 0.0, 1, 1)
    assert not list((tmp_path / "c").rglob(f"*{PART}"))


def test_a_full_disk_is_named(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "d").write_text("in the way")
    with pytest.raises(ShardError, match="SLEEPFM_CACHE"):
        FileCache(tmp_path / "c", 10**6).get("d/shards/shard-000000.tar", 3, "", lambda: [b"abc"])


def test_a_folder_that_has_the_markers_name_is_no_marker(tmp_path):
    theirs = tmp_path / "night" / MARKER / "shard-000000.tar"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"mine")
    cache = FileCache(tmp_path, LIMIT)
    with pytest.raises(ShardError, match="has not made"):
        cache.claim("night")
    assert list(cache._files()) == [] and theirs.read_bytes() == b"mine"
