"""Signals around training."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

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
from sleepfm.training.ranks.lost_output import outlive_lost_output

asked = []
signal.signal(signal.SIGUSR1, lambda *_: asked.append(True))
outlive_lost_output()
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


FILLS = """
import os, sys
from pathlib import Path
from sleepfm.training.ranks.lost_output import outlive_lost_output

outlive_lost_output()
print("first")
filler = Path(sys.argv[1])
with filler.open("wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(512))
    except OSError:
        pass
for number in range(2000):
    print(f"line {number:4}")
filler.unlink()
print("last")
"""


def test_output_onto_a_full_disk_ends_nothing_and_what_is_missing_is_told(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mount: {mounted.stderr.strip()}")
    try:
        with (disk / "log").open("w") as log:
            done = subprocess.run([sys.executable, "-c", FILLS, str(disk / "filler")], stdout=log, stderr=subprocess.PIPE)
        said = (disk / "log").read_text()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert (done.returncode, done.stderr) == (0, b"")
    kept = re.fullmatch(r"(first\n.*)\n\((\d+) bytes of output are missing here: the disk was full\)\nlast\n", said, re.DOTALL)
    assert kept is not None, said
    whole = "first\n" + "".join(f"line {number:4}\n" for number in range(2000))
    assert whole.startswith(kept[1])
    assert len(kept[1]) + int(kept[2]) == len(whole)
    assert int(kept[2]) > 0


def test_a_process_whose_output_has_never_had_room_ends_well() -> None:
    code = "from sleepfm.training.ranks.lost_output import outlive_lost_output as f; f(); print('something')"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")
