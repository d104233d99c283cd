"""What a synthetic night takes: processor time and memory of the process that draws it and writes its files.

    python benchmarks/synthesis.py [--nights N] [--hours H ...] [--json F]

Clean nights of ``shhs1``, with one thread; for each length a process of its own, whose first night does not count. Median
processor time; the peak of the process, Python and its modules included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.synthetic.cohort import write_subject

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def measure(hours: float, nights: int) -> dict[str, float]:
    """Nights of so many ``hours``, written one after the other into a temporary folder by this process."""
    seconds = []
    with tempfile.TemporaryDirectory(prefix="nights-") as folder:
        for number in range(nights + 1):
            begin = time.process_time()
            write_subject(Path(folder), "shhs1", 1, round(3600 * hours / EPOCH_SECONDS), number)
            seconds.append(time.process_time() - begin)
    return {
        "processor_seconds": statistics.median(seconds[1:]),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def main() -> None:
    """Print the figures, and write them to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=5, metavar="N", help="of each length that count (default: %(default)s)")
    parser.add_argument("--hours", type=float, nargs="+", default=[3.0, 9.0], metavar="H", help="(default: 3 9)")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the figures there")
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(measure(arguments.one, arguments.nights)))
        return
    result: dict[str, Any] = {"nights": arguments.nights}
    for hours in arguments.hours:
        command = [sys.executable, __file__, "--nights", str(arguments.nights), "--one", str(hours)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **THREADS}, check=True)
        found = result[f"{hours:g}h"] = json.loads(done.stdout)
        print(f"{hours:g} h: {found['processor_seconds']:.2f} s, {found['peak_megabytes']:.0f} MB")
    if arguments.json:
        result["machine"] = describe()
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
