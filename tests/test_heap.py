"""What a process frees stays its own, once it has said so."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Page faults of taking 64 MiB again, before and after.
PROCESS = """
import resource
from sleepfm.heap import keep_freed_memory

def faults(mib=64):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"x") * (mib * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_mib():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20

faults()
given_back, kept = faults(), keep_freed_memory(*MOST)
faults()
again, before = faults(), resident_mib()
faults(512)
print(kept, given_back, again, resident_mib() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone takes the wish")
@pytest.mark.parametrize("most", [(), (256 * 2**20,)])
def test_memory_that_is_freed_is_not_cleared_again(most: tuple[int, ...]) -> None:
    program = PROCESS.replace("MOST", repr(most))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    kept, given_back, again, grown = done.stdout.split()
    # 16,384 pages of 4 KiB, fewer where the system gives large ones.
    assert kept == "True" and int(again) < 100 and int(again) < int(given_back)
    # What is more than it may keep goes back; without a limit, all of it stays.
    assert float(grown) < 16 if most else float(grown) > 400
