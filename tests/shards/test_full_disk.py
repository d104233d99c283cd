"""A disk that fills up: one clear line, nothing half written, and the same command goes on when there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

KIB = 1024


@pytest.fixture
def disk(tmp_path) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """A file system of its own in memory, and how to give it another size in KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.strip()}")
    try:
        yield place, lambda size: subprocess.run(["mount", "-o", f"remount,size={size}k", str(place)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_the_same_command_finishes_after_every_size_was_too_small(cohort, built, disk, run, digests):
    place, resize = disk
    arguments = ["build", cohort, place / "out", "--cohort", "shhs1", "recordings_per_shard=2"]
    whole = sum(path.stat().st_size for path in built.rglob("*")) // KIB
    # From no room for the plan to no room for the last table: shards that fitted are kept each time.
    for size in [4, 12, whole // 5, whole * 4 // 5, whole - 40]:
        resize(size)
        result = run(arguments)
        if result.returncode == 0:
            break
        assert result.returncode == 1 and len(result.stderr.splitlines()) == 1, result.stderr
        assert "make room or repair the folder, then run the same command again" in result.stderr, result.stderr
        assert not list(place.rglob("*.tmp"))
    else:
        resize(2 * whole)
        result = run(arguments)
    assert result.returncode == 0, result.stderr
    assert digests(place / "out") == digests(built)
    assert "whole" in run(["verify", place / "out"]).stdout
