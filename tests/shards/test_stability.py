"""The same night gives the same bytes whatever vector instructions NumPy and OpenBLAS find on the machine."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CONVERT = """
import hashlib, sys
from pathlib import Path
from shards.build_config import load_build_config
from shards.plan import Entry, ShardPlan
from shards.task import build_shard
source, out = Path(sys.argv[1]), Path(sys.argv[2])
(out / "shards").mkdir(parents=True)
edfs = sorted(source.rglob("*.edf"))[:2]
entries = tuple(Entry(edf.relative_to(source).as_posix(), edf.stat().st_size, edf.stem) for edf in edfs)
build_shard(source, out, ShardPlan("shard-000000.tar", entries), load_build_config(None, ["cohort=shhs1"]), "build")
for path in sorted((out / "shards").iterdir()):
    print(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
"""
# NumPy without AVX2 and FMA, and the kernels of OpenBLAS for a processor of 2008.
OLD = {"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX2 FMA3 AVX512F", "OPENBLAS_CORETYPE": "Nehalem"}


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names instructions of x86-64")
def test_older_instructions_give_the_same_bytes(cohort, tmp_path, shards_environment):
    def converted(name, extra):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", CONVERT, str(cohort), str(tmp_path / name)],
            env={**shards_environment(None), **extra},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    assert converted("new", {}) == converted("old", OLD)
    assert len(list((tmp_path / "old" / "shards").iterdir())) == 2
