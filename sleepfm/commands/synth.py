"""``sleepfm synth``: write a synthetic cohort."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from sleepfm.command_line import add_examples, hours
from sleepfm.wording import counted


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``sleepfm synth``."""
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the recordings, laid out like an NSRR download")
    parser.add_argument("--subjects", type=int, required=True, metavar="N", help="number of people, one recording each")
    parser.add_argument("--hours", type=hours, required=True, metavar="H", help="length of each recording in hours")
    parser.add_argument(
        "--seed", type=int, default=1, metavar="S", help="the same seed gives the same bytes (default: %(default)s)"
    )
    parser.add_argument("--cohort", help="cohort whose layout, channel labels and rates are imitated (default: shhs1)")
    parser.add_argument("--clean", action="store_true", help="leave out the faults that real recordings and scorings have")
    parser.add_argument("--workers", type=int, metavar="N", help="number of processes (default: one for each core)")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="write nights for training, which vary more than real ones, by this configuration, for example "
        "synthetic/train.yaml; not together with --cohort",
    )
    parser.add_argument(
        "--shards",
        type=Path,
        metavar="DIR",
        help="with --config: also build a data set of shards in DIR, and remove each recording once it is in it",
    )
    parser.add_argument(
        "--build",
        action="append",
        default=[],
        metavar="key=value",
        help="with --shards: change a key of configs/shards.yaml; may be given several times",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="key=value",
        help="with --config: change a key of its FILE, for example age=null; may be given several times",
    )
    add_examples(
        parser,
        "cohort --subjects 32 --hours 8 --seed 1",
        "nights --subjects 1000 --hours 8 --config synthetic/train.yaml --shards my-data-set",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the cohort and say where it is."""
    from sleepfm.errors import UsageError
    from sleepfm.signals.files import local_path
    from sleepfm.synthetic.cohort import write_cohort
    from sleepfm.synthetic.faults.rates import default_rates
    from sleepfm.synthetic.variety.config import load_variety

    out = local_path(arguments.out, "OUT")
    workers = arguments.workers if arguments.workers is not None else len(os.sched_getaffinity(0))
    if arguments.config is None and (arguments.set or arguments.shards):
        raise UsageError("--set and --shards need --config; give a file of configs/synthetic")
    if arguments.build and arguments.shards is None:
        raise UsageError("--build needs --shards; give the data set to build")
    if arguments.config is not None and arguments.cohort is not None:
        raise UsageError("--cohort and --config: give only one of them; with --config every recording has its own layout")
    variety = None if arguments.config is None else load_variety(arguments.config, tuple(arguments.set))
    has_faults = not arguments.clean and (variety is None or variety.faults)
    rates = default_rates() if has_faults else None
    size = (arguments.subjects, arguments.hours, arguments.seed)
    if variety is not None and arguments.shards is not None:
        from sleepfm.commands.synth_shards import People, stream_to_shards

        shards = local_path(arguments.shards, "--shards")
        return stream_to_shards(out, shards, People(*size), variety, rates, workers, arguments.build)
    paths = write_cohort(out, *size, arguments.cohort or "shhs1", workers, rates, variety)
    print(f"{counted(len(paths), 'recording')} in {paths[0].parent}")
    return 0
