"""``python -m sleepfm.training.launcher N SCRIPT …``: what ``deepspeed --num_gpus N SCRIPT …`` does on one host.

The ``deepspeed`` command imports DeepSpeed, finds the hosts and, for one host, starts DeepSpeed's node launcher,
which imports it again and starts the processes. Both imports drag MLflow in. Where jobs are many and short, as in
the demo, going to the node launcher directly, without MLflow, saves some 5 s a job.

DeepSpeed's launcher ends with 1 whatever the processes say that it was asked to end, and dies of SIGHUP and SIGUSR1; here a job
that a signal has ended, and that has saved everything, ends with the status that says so.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

if __name__ == "__main__":
    from sleepfm.training.ranks.preemption import leave_at_once

    # Until the processes are there, there is nothing to save; the other imports take seconds.
    leave_at_once()

from sleepfm.console import exit_with
from sleepfm.training.ranks.distributed import free_port, import_deepspeed
from sleepfm.training.ranks.ending import STATUSES, statuses
from sleepfm.training.ranks.lost_output import outlive_lost_output
from sleepfm.training.ranks.preemption import PREEMPTED_STATUS


def main(argv: list[str]) -> int:
    """Start ``argv[0]`` processes of the script and arguments that follow; ends with their status."""
    processes = int(argv[0])
    import_deepspeed()
    from deepspeed.launcher import launch

    hosts = json.dumps({"localhost": list(range(processes))}).encode()
    options = [f"--world_info={base64.urlsafe_b64encode(hosts).decode()}", "--log_level=critical"]
    options += ["--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    sys.argv = ["launch", *options, *argv[1:]]
    for number in (signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _ask)
    outlive_lost_output()
    with tempfile.TemporaryDirectory(prefix="sleepfm-") as folder:
        os.environ[STATUSES] = folder
        try:
            launch.main()
        except SystemExit as error:
            if statuses(Path(folder)) == [PREEMPTED_STATUS] * processes:
                return PREEMPTED_STATUS
            return error.code if isinstance(error.code, int) else 1
    return 0


def _ask(number: int, frame: FrameType | None) -> None:
    """Pass a signal on as the one that DeepSpeed's launcher gives to the processes."""
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(exit_with(lambda: main(sys.argv[1:])))
