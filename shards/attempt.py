"""One recording converted in a process of its own, whose end tells whether the recording is what ends processes.

The task watches the process and outlives it: it sees the signal and the stack, and ends what takes too long. What is converted
here is thrown away.
"""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path

from shards.build_config import BuildConfig
from shards.faults import NO_MEMORY, death_of
from shards.plan import Entry, ShardPlan
from sleepfm.config import to_dict
from sleepfm.data.format import SHARD_FOLDER
from sleepfm.errors import SleepFMError, StorageError

# Statuses of the process, beside those that it dies with.
_NO_MEMORY, _CANNOT_WRITE = 12, 28
_STACK_SECONDS = 10.0
_START_SECONDS = 600.0
_LONGEST_DUMP = 100_000


def attempt(source: Path, entry: Entry, file: str, config: BuildConfig) -> str:
    """Convert the recording ``file``, planned as ``entry``, in a process of its own; what a Ray task runs.

    Returns:
        What ended that process; empty where the recording was converted or refused.

    Raises:
        StorageError: the node's temporary folder cannot be written to.
    """
    job = {"source": str(source), "entry": asdict(entry), "file": file, "config": to_dict(config)}
    seconds = config.ray.task_timeout_s
    with tempfile.TemporaryDirectory(prefix="sleepfm-attempt-", ignore_cleanup_errors=True) as scratch:
        said = Path(scratch) / "stderr"
        with said.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "shards.attempt", scratch],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended already, and its status says how
        late = False
        try:
            # The time counts from when its libraries are loaded, as a worker's are.
            select.select([process.stdout], [], [], _START_SECONDS)
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            late = True
            _end(process)
        finally:
            process.kill()
            process.stdin.close()
            process.stdout.close()
            status = process.wait()
        with said.open(encoding="utf-8", errors="replace") as errors_read:
            dump = errors_read.read(_LONGEST_DUMP)
    if late:
        return death_of(status, dump, seconds)
    if status == _CANNOT_WRITE:
        raise StorageError(dump.strip())
    if status == _NO_MEMORY:
        return NO_MEMORY
    return death_of(status, dump) if status else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Have ``process`` write its stack and end."""
    process.send_signal(signal.SIGABRT)
    try:
        process.wait(_STACK_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def _main(scratch: Path) -> int:
    faulthandler.enable(all_threads=False)
    job = json.loads(sys.stdin.buffer.readline())

    def end_with_the_task() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=end_with_the_task, daemon=True).start()
    from shards.task import build_shard
    from sleepfm.signals.files import location

    entry = Entry(**job["entry"])
    (scratch / SHARD_FOLDER).mkdir()
    shard = ShardPlan("shard-000000.tar", (entry,))
    print("begun", flush=True)
    try:
        build_shard(location(job["source"]), scratch, shard, BuildConfig(**job["config"]), "", files={entry.path: job["file"]})
    except SleepFMError as error:
        print(error, file=sys.stderr)
        return _CANNOT_WRITE
    except MemoryError:
        return _NO_MEMORY
    return 0


if __name__ == "__main__":
    # Nothing is to be cleaned up, and threads of libraries must not keep it.
    status = _main(Path(sys.argv[1]))
    sys.stderr.flush()
    os._exit(status)
