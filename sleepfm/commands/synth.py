"""``sleepfm synth``: write a synthetic cohort."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``sleepfm synth``."""
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; an NSRR-shaped tree")
    parser.add_argument("--subjects", type=int, required=True, metavar="N", help="number of recordings")
    parser.add_argument("--hours", type=float, required=True, metavar="H", help="length of each recording")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="same seed, same bytes (default 1)")
    parser.add_argument("--cohort", default="shhs1", help="whose layout, labels and rates (default shhs1)")
    parser.add_argument("--clean", action="store_true", help="nights and scorings without the faults of real ones")
    parser.add_argument("--workers", type=int, default=None, metavar="N", help="processes (default: all cores)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the cohort and say where it is."""
    from sleepfm.signals.files import local_path
    from sleepfm.synthetic.cohort import write_cohort
    from sleepfm.synthetic.faults.rates import default_rates

    out = local_path(arguments.out, "OUT")
    workers = arguments.workers if arguments.workers is not None else len(os.sched_getaffinity(0))
    rates = None if arguments.clean else default_rates()
    paths = write_cohort(out, arguments.subjects, arguments.hours, arguments.seed, arguments.cohort, workers, rates)
    print(f"{len(paths)} recordings in {paths[0].parent}")
    return 0
