"""``python -m sleepfm.training.launcher N SCRIPT …``: what ``deepspeed --num_gpus N SCRIPT …`` does on one host.

The ``deepspeed`` command imports DeepSpeed, finds the hosts and, for one host, starts DeepSpeed's node launcher,
which imports it again and starts the processes. Both imports drag MLflow in. Where jobs are many and short, as in
the demo, going to the node launcher directly, without MLflow, saves some 5 s a job.
"""

from __future__ import annotations

import base64
import json
import sys

from sleepfm.console import exit_with
from sleepfm.training.ranks.distributed import free_port, import_deepspeed


def main(argv: list[str]) -> int:
    """Start ``argv[0]`` processes of the script and arguments that follow; ends with their status."""
    processes = int(argv[0])
    import_deepspeed()
    from deepspeed.launcher import launch

    hosts = json.dumps({"localhost": list(range(processes))}).encode()
    options = [f"--world_info={base64.urlsafe_b64encode(hosts).decode()}", "--log_level=critical"]
    options += ["--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    sys.argv = ["launch", *options, *argv[1:]]
    launch.main()
    return 0


if __name__ == "__main__":
    sys.exit(exit_with(lambda: main(sys.argv[1:])))
