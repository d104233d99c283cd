"""How long the doctor takes over a large folder: headers and scorings of whole nights, in the layouts of all cohorts.

    python benchmarks/doctor.py [--headers 10000] [--hours 8] [--scratch DIR] [--json F]

A header is followed by a night's samples that take no room on the disk (a hole); scorings are whole ones, of one drawn night
in the format of each cohort. `sleepfm doctor DIR --headers` runs as a user runs it, with a process a core, and has to find all
recordings usable. Told are its seconds, those of processors (all processes together), and the memory of its largest process.
On a machine that does other work beside it (`load_before`), the processors' are the figure to go by. `least_…` is
what it takes to open and read the same headers and scorings, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

from machine import describe

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.signals.edf.writer import edf_header
from sleepfm.synthetic.layout import layout_names, load_layout
from sleepfm.synthetic.night import draw_night
from sleepfm.synthetic.scoring_files import write_scoring


def write_headers(folder: Path, headers: int, epochs: int) -> None:
    """``headers`` recordings with their scorings below ``folder``, of the cohorts in turn as far as each has people."""
    night, seconds, written = draw_night(1, 0, epochs), epochs * EPOCH_SECONDS, 0
    scorings: dict[str, Path] = {}
    for number in count():
        for name in layout_names():
            layout = load_layout(name)
            if number >= layout.most:
                continue
            if written == headers:
                return
            edf, scoring = layout.place(folder / name, number)
            for path in (edf, scoring):
                path.parent.mkdir(parents=True, exist_ok=True)
            header = edf_header(layout.channels, seconds, night.start)
            with edf.open("wb") as file:
                file.write(header)
                file.truncate(len(header) + 2 * seconds * sum(channel.rate for channel in layout.channels))
            form = layout.scoring.format
            if form not in scorings:
                write_scoring(form, scoring, night)
                scorings[form] = scoring
            else:
                os.link(scorings[form], scoring)
            written += 1


def read_alone(folder: Path) -> float:
    """Processor seconds of opening and reading every header and every scoring below ``folder``."""
    began = time.process_time()
    for path in (path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb", buffering=0) as file:
            if path.suffix.lower() == ".edf" and (fixed := file.read(256)):
                file.read(int(fixed[184:192]) - len(fixed))
            else:
                file.read()
    return time.process_time() - began


def measure(folder: Path, headers: int) -> dict[str, Any]:
    """Figures of the command over ``folder``, in which it has to find that many recordings."""
    load, least = os.getloadavg()[0], read_alone(folder)
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "sleepfm.cli", "doctor", str(folder), "--headers"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if f"{headers} recordings: {headers} usable, 0 would be refused" not in done.stdout or done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    processor_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    share = 10_000 / headers / len(os.sched_getaffinity(0))
    return {
        "load_before": load,
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "processor_seconds_per_core_and_10000": processor_seconds * share,
        "least_processor_seconds_per_core_and_10000": least * share,
        "largest_process_megabytes": after.ru_maxrss / 1024,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--headers", type=int, default=10_000)
    parser.add_argument("--hours", type=float, default=8.0, help="of a night")
    parser.add_argument("--scratch", type=Path, help="where the files are written, and removed; default: a temporary folder")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the figures there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="doctor-", dir=arguments.scratch) as folder:
        write_headers(Path(folder), arguments.headers, round(arguments.hours * 3600 / EPOCH_SECONDS))
        figures = measure(Path(folder), arguments.headers)
    told = {"machine": describe(), "headers": arguments.headers, "hours": arguments.hours}
    told |= {"limit": "10,000 headers in 60 s on two cores", **figures}
    print(json.dumps(told, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
