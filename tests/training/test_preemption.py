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


PRINTS = """
import os, signal, sys
from sleepfm.training.ranks.unread import leave_when_nobody_reads

asked = []
signal.signal(signal.SIGUSR1, lambda *_: asked.append(True))
leave_when_nobody_reads()
print("first \\N{GREEK SMALL LETTER KAPPA}")
sys.stdin.readline()
for _ in range(3):
    print("nobody reads this", flush=True)
    sys.stdout.write("nor this\\n")
os.write(2, f"asked {len(asked)} times, {sys.stdout.isatty()} {sys.stdout.fileno()}".encode())
"""


def test_output_that_nobody_reads_asks_once_to_leave_and_ends_nothing() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PRINTS], stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin and process.stdout and process.stderr
        assert process.stdout.readline() == "first κ\n".encode()
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b"asked 1 times, False 1"
    assert process.returncode == 0


def test_output_onto_a_full_disk_is_told() -> None:
    code = "from sleepfm.training.ranks.unread import leave_when_nobody_reads as f; f(); print('something')"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode != 0 and "No space left on device" in done.stderr
