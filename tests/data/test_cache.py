"""The cache of blocks: bounded, of marked blocks alone, shared by processes, clean after a kill."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from cache_process import LIMIT, SHARDS, SIZE, LoggedObject, content_of, fetch, main, name_of

from sleepfm.data.cache import BLOCK, BLOCKS, MARKER, BlockCache
from sleepfm.data.fetch import NoRoomError
from sleepfm.errors import ConfigError, ShardError

SCRIPT = Path(__file__).with_name("cache_process.py")


def rank(folder: Path, pause: float, rounds: int, seed: int, limit: int = LIMIT) -> subprocess.Popen[bytes]:
    arguments = (folder / "c", folder / "log", pause, rounds, seed, limit)
    return subprocess.Popen([sys.executable, SCRIPT, *map(str, arguments)])


def blocks_fetched(log: Path) -> Counter[tuple[int, int]]:
    """How often each block of each shard was fetched."""
    found: Counter[tuple[int, int]] = Counter()
    for line in log.read_text().splitlines():
        number, begin, end = map(int, line.split())
        found.update((number, block) for block in range(begin // BLOCK, -(-end // BLOCK)))
    return found


def logged(folder: Path, number: int = 0, pause: float = 0.0) -> LoggedObject:
    return LoggedObject(folder, number, folder / "log", pause)


def test_processes_share_one_cache_in_which_each_block_is_fetched_once(tmp_path):
    ranks = [rank(tmp_path, 0.001, 8, seed, 10**7) for seed in range(3)]
    assert [process.wait() for process in ranks] == [0, 0, 0]
    assert set(blocks_fetched(tmp_path / "log").values()) == {1}


def test_a_cache_that_is_too_small_for_all_stays_below_its_bound(tmp_path):
    limit = 2 * SIZE + 50_000
    ranks = [rank(tmp_path, 0.001, 8, seed, limit) for seed in range(3)]
    cache, most = BlockCache(tmp_path / "c", limit), 0
    while any(process.poll() is None for process in ranks):
        most = max(most, cache.used())
        time.sleep(0.005)
    assert [process.returncode for process in ranks] == [0, 0, 0]
    # A file takes whole blocks of its disk.
    assert limit / 2 < most <= limit + SHARDS * 4096


def test_the_environment_names_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SLEEPFM_CACHE", str(tmp_path))
    monkeypatch.setenv("SLEEPFM_CACHE_GIB", "1.5")
    found = BlockCache.from_environment()
    assert (found.folder, found.limit) == (tmp_path, 3 * 2**29)
    for wrong in ("much", "0", "nan", "-1", "inf"):
        monkeypatch.setenv("SLEEPFM_CACHE_GIB", wrong)
        with pytest.raises(ConfigError, match="SLEEPFM_CACHE_GIB"):
            BlockCache.from_environment()


def test_threads_that_want_the_same_blocks_fetch_them_once(tmp_path):
    cache, remote = BlockCache(tmp_path / "c", 10**6), logged(tmp_path, pause=0.05)
    threads = [threading.Thread(target=fetch, args=(cache, remote, 5000 * number, 100_000)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(blocks_fetched(tmp_path / "log").values()) == {1}
    shard = cache.open(name_of(0), SIZE)
    assert shard.holds(0, 100_000) and not shard.holds(0, 100_000 + BLOCK)
    assert os.pread(shard.handle, 100_000, 0) == content_of(0)[:100_000]


def test_a_killed_fetch_leaves_no_block_that_counts_and_is_none(tmp_path):
    process = rank(tmp_path, 0.5, 1, 0)
    while not (tmp_path / "log").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list((tmp_path / "c").rglob(f"*{BLOCKS}"))
    cache = BlockCache(tmp_path / "c", LIMIT)
    assert all(cache.open(name_of(number), SIZE).absent().all() for number in range(SHARDS))
    main(tmp_path / "c", tmp_path / "log", 0.0, 2, 1)  # which compares every block that counts


def test_a_block_counts_when_it_is_on_the_disk(tmp_path, monkeypatch):
    """A power cut loses what is not: the map must not be ahead of the blocks."""
    cache, steps = BlockCache(tmp_path / "c", 10**6), []
    shard = cache.open(name_of(0), SIZE)
    synced = os.fdatasync

    def noted(handle: int) -> None:
        steps.append((shard.holds(0, BLOCK), os.pread(handle, BLOCK, 0) == content_of(0)[:BLOCK]))
        synced(handle)

    monkeypatch.setattr(os, "fdatasync", noted)
    fetch(cache, logged(tmp_path), 0, BLOCK)
    assert steps == [(False, True)] and shard.holds(0, BLOCK)


def test_what_is_open_stays_until_somebody_needs_the_room_at_once(tmp_path):
    cache = BlockCache(tmp_path / "c", int(1.5 * SIZE))
    held = fetch(cache, logged(tmp_path, 0), 0, SIZE)
    with pytest.raises(NoRoomError):
        fetch(cache, logged(tmp_path, 1), 0, SIZE, at_once=False)
    assert not held.removed and held.holds(0, SIZE)
    other = fetch(cache, logged(tmp_path, 1), 0, SIZE)
    assert held.removed and other.holds(0, SIZE) and cache.used() <= cache.limit
    assert os.pread(held.handle, SIZE, 0) == content_of(0)  # for as long as it is open
    del other
    fetch(cache, logged(tmp_path, 2), 0, SIZE, at_once=False)  # nobody has the other open


def test_what_was_used_longest_ago_is_removed_first(tmp_path):
    cache = BlockCache(tmp_path / "c", int(2.5 * SIZE))
    for number in (0, 1, 0, 2):
        fetch(cache, logged(tmp_path, number), 0, SIZE)
        time.sleep(0.02)
    assert sorted(path.name[:12] for path in cache.folder.rglob(f"*{BLOCKS}")) == ["shard-000000", "shard-000002"]


def test_what_former_versions_kept_is_removed_when_room_is_needed(tmp_path):
    cache = BlockCache(tmp_path / "c", int(1.5 * SIZE))
    cache.open(name_of(0), SIZE)
    old = [cache.folder / "d" / "shards" / f"shard-000007.tar{end}" for end in ("", ".part")]
    for path in old:
        path.write_bytes(content_of(7))
    fetch(cache, logged(tmp_path, 1), 0, SIZE, at_once=False)
    assert not any(path.exists() for path in old) and cache.used() <= cache.limit


def test_a_full_disk_is_named_before_anything_is_fetched(tmp_path, monkeypatch):
    def full(handle: int, begin: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ShardError, match=r"cannot keep a copy here \(No space left on device\); make room, or set SLEEPFM_CACHE"):
        fetch(BlockCache(tmp_path / "c", 10**6), logged(tmp_path), 0, 100)
    assert not (tmp_path / "log").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "d").write_text("in the way")
    with pytest.raises(ShardError, match="SLEEPFM_CACHE"):
        BlockCache(tmp_path / "c", 10**6).open(name_of(0), SIZE)


def test_a_file_of_another_size_is_made_anew(tmp_path):
    cache = BlockCache(tmp_path / "c", 10**6)
    path = fetch(cache, logged(tmp_path), 0, 100).path
    os.truncate(path, 5000)
    shard = cache.open(name_of(0), SIZE)
    assert shard.absent().all() and np.count_nonzero(~fetch(cache, logged(tmp_path), 0, 100).absent()) == 1


def test_a_folder_that_has_the_markers_name_is_no_marker(tmp_path):
    theirs = tmp_path / "night" / MARKER / "shard-000000.tar"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"mine")
    cache = BlockCache(tmp_path, LIMIT)
    with pytest.raises(ShardError, match="did not write"):
        cache.claim("night")
    assert cache.used() == 0 and theirs.read_bytes() == b"mine"
