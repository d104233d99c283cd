"""Peak memory counts the children too."""

from __future__ import annotations

import os
import subprocess
import sys

from sleepfm.demo.process_memory import PeakMemory, tree_pss

CHILD = "block = bytearray(200 << 20); import time; time.sleep(1.5)"


def test_a_childs_memory_counts_towards_the_peak() -> None:
    before = tree_pss(os.getpid())
    with PeakMemory(os.getpid(), interval=0.05) as memory:
        subprocess.run([sys.executable, "-c", CHILD], check=True)
    assert memory.peak - before > 150 << 20


def test_an_ended_process_has_no_memory() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert tree_pss(child.pid) == 0
