"""Signals around training."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys
from sleepfm.training.ranks.preemption import Preemption
try:
    with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.requested
        if sys.argv[1] == "fails":
            raise RuntimeError
except RuntimeError:
    pass
os.kill(os.getpid(), signal.SIGTERM)
print("error: the reason")
"""


@pytest.mark.parametrize(("how", "status", "said"), [("fails", 0, "error: the reason\n"), ("ends", -signal.SIGTERM, "")])
def test_a_launcher_cannot_end_a_process_that_has_an_error_to_say(how: str, status: int, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, said)
