"""What a process frees stays its own, once it has said so."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Page faults of taking 64 MiB again, before and after.
PROCESS = """
import resource
from sleepfm.training.ranks.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"x") * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
given_back, kept = faults(), keep_freed_memory()
faults()
print(kept, given_back, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone takes the wish")
def test_memory_that_is_freed_is_not_cleared_again() -> None:
    done = subprocess.run([sys.executable, "-c", PROCESS], capture_output=True, text=True, check=True)
    kept, given_back, again = done.stdout.split()
    # 16,384 pages of 4 KiB, fewer where the system gives large ones.
    assert kept == "True" and int(again) < 100 and int(again) < int(given_back)
