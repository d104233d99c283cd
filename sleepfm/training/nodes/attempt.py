"""One start of a node's training processes, by DeepSpeed's launcher."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from sleepfm.console import say
from sleepfm.errors import LostRankError
from sleepfm.training.ranks.ending import STATUSES, statuses
from sleepfm.training.ranks.preemption import HEARD, PREEMPTED_STATUS, listened

Look = Callable[[], bool]

_LOOK_SECONDS = 0.5
# A rank has ended with an error: the others say why within 10 s, or hang. DeepSpeed's launcher would give them 30.
_GRACE_SECONDS = 15.0


def run_processes(
    arguments: Sequence[str], hosts: Sequence[str], place: int, processes: int, port: int, asked: Look, lost: Look
) -> int:
    """Run this node's processes to their end.

    Args:
        arguments: script, configuration and overrides.
        hosts: the nodes that take part, the first with rank 0, and ``place``, this one among them.
        processes: of each node.
        port: where rank 0 listens.
        asked: whether the processes should save and leave.
        lost: whether another node no longer takes part.

    Returns:
        The status of the first that ended with an error, :attr:`LostRankError.exit_status` where it was killed, else 0.
    """
    world = json.dumps({host: list(range(processes)) for host in hosts}).encode()
    line = [sys.executable, "-u", "-m", "deepspeed.launcher.launch", f"--world_info={base64.urlsafe_b64encode(world).decode()}"]
    line += [f"--node_rank={place}", f"--master_addr={hosts[0]}", f"--master_port={port}", "--log_level=critical", *arguments]
    with tempfile.TemporaryDirectory(prefix="sleepfm-") as folder:
        variables = {STATUSES: folder, HEARD: "SIGHUP" if signal.SIGHUP in listened() else ""}
        # In a session of its own: Ctrl-C reaches the supervisor alone, which asks the processes to save.
        launcher = subprocess.Popen(
            line, env=os.environ | variables, start_new_session=True, preexec_fn=_ignore_the_request_to_save
        )
        try:
            return _wait(launcher, Path(folder), processes, asked, lost)
        finally:
            _kill(launcher)


def _wait(launcher: subprocess.Popen[bytes], folder: Path, processes: int, asked: Look, lost: Look) -> int:
    most, told, lost_since = 0, set(), None
    while launcher.poll() is None:
        ranks = _ranks(launcher)
        most = max(most, len(ranks))
        if asked():
            for rank in ranks:
                if rank.pid not in told and _listens(rank.pid):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        rank.send_signal(signal.SIGUSR1)
                    told.add(rank.pid)
        if lost():
            say("another node has left the job; the processes of this node are stopped")
            return LostRankError.exit_status
        gone = most - len(ranks)
        if most == processes and gone > statuses(folder).count(0):
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > _GRACE_SECONDS:
                say(f"{len(ranks)} processes of this node do not end after another process has ended; they are stopped")
                return LostRankError.exit_status
        time.sleep(_LOOK_SECONDS)
    found = statuses(folder)
    if found == [PREEMPTED_STATUS] * processes:
        # Whatever the launcher says of it.
        return PREEMPTED_STATUS
    status = launcher.returncode
    # Above 128: killed by a signal, of which the launcher makes the status modulo 256.
    killed = status < 0 or status > 128 or (status == 1 and asked() and 1 not in found)
    return LostRankError.exit_status if killed else status


def _ranks(launcher: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child for child in psutil.Process(launcher.pid).children() if child.status() != psutil.STATUS_ZOMBIE]
    return []


def _listens(pid: int) -> bool:
    """Whether a process acts on SIGUSR1 by now."""
    with contextlib.suppress(OSError):
        fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
        return bool(int(fields["SigCgt"], 16) >> (signal.SIGUSR1 - 1) & 1)
    return False


def _ignore_the_request_to_save() -> None:
    """DeepSpeed's launcher would die of SIGUSR1, which Slurm sends to every process of a job, and of SIGHUP, and leave the ranks
    to themselves while they save; ranks listen when they can.
    """
    for number in (signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _kill(launcher: subprocess.Popen[bytes]) -> None:
    """Whatever is left of the launcher and what it has started."""
    if launcher.poll() is not None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(launcher.pid)
        # First the launcher, lest it says something about the others.
        for process in [found, *found.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    launcher.wait()
