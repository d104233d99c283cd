"""The commands on data sets, for ``python -m shards`` and ``sleepfm`` alike: their arguments, and what they do and print."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable
from pathlib import Path

from shards.interruption import interruptible
from sleepfm.command_line import add_examples, positive
from sleepfm.wording import counted, for_number

_DATA_SET = "folder or URL (s3://...) of the data set"
_KEPT = "what is finished is kept, and the same command continues"


def configure_build(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``build``."""
    parser.add_argument("source", metavar="SRC", help="folder or URL (s3://...) of EDF or BDF recordings and their scorings")
    parser.add_argument("out", metavar="OUT", help=f"{_DATA_SET}; a build that was begun there is continued")
    parser.add_argument(
        "--cohort",
        help="rules for the recordings: auto (recognise the cohort of each), a name in configs/cohorts, a YAML file, or a folder "
        "of such files (default: auto)",
    )
    parser.add_argument(
        "--workers", type=positive, metavar="N", help="CPUs of this machine to use (default: all); ignored on a Ray cluster"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration of the build (default: configs/shards.yaml)")
    parser.add_argument("--retry-refused", action="store_true", help="try again the recordings that an earlier build refused")
    parser.add_argument(
        "--rebuild", action="store_true", help="make shards again that were made with other cohort rules or by another version"
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="FILE|PATTERN",
        help="leave out this recording, folder of recordings, or all recordings that match a pattern; may be given several times",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="change a key of the configuration, for example max_refused=0.1",
    )
    add_examples(parser, "recordings data --cohort shhs1", "s3://bucket/shhs s3://bucket/shards --cohort shhs1 max_refused=0.1")
    parser.set_defaults(run=_interruptible(_build, _KEPT), several="overrides")


def configure_verify(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``verify``."""
    parser.add_argument("dataset", metavar="DATASET", help=_DATA_SET)
    parser.add_argument(
        "--workers", type=positive, metavar="N", default=os.cpu_count(), help="CPUs of the local Ray cluster (default: all)"
    )
    add_examples(parser, "data")
    parser.set_defaults(run=_interruptible(_verify))


def configure_info(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``info``."""
    parser.add_argument("dataset", metavar="DATASET", help=_DATA_SET)
    add_examples(parser, "data")
    parser.set_defaults(run=_interruptible(_info))


def configure_export(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m shards export``."""
    parser.add_argument("dataset", metavar="DATASET", help=_DATA_SET)
    parser.add_argument("folder", metavar="DIR", type=Path, help="new folder for what is written")
    parser.add_argument(
        "--format",
        choices=["parquet", "webdataset-epochs"],
        default="parquet",
        help="parquet: one folder for each recording, with x.parquet and y.parquet; webdataset-epochs: tars of samples of one "
        "epoch (default: %(default)s)",
    )
    parser.add_argument(
        "--rule",
        choices=["overlap", "reference"],
        help="which epochs an event labels in y.parquet: overlap, this project's rule, or reference, that of the released code "
        "(default: overlap)",
    )
    add_examples(parser, "data exported --format parquet")
    parser.set_defaults(run=_interruptible(_export))


def _interruptible(run: Callable[[argparse.Namespace], int], told: str = "") -> Callable[[argparse.Namespace], int]:
    """``run``, which ends with one line at SIGTERM and Ctrl-C; ``told`` is what its user is to know then."""

    def interruptibly(arguments: argparse.Namespace) -> int:
        with interruptible(told):
            return run(arguments)

    return interruptibly


def _build(arguments: argparse.Namespace) -> int:
    from shards.build import build
    from shards.build_config import load_build_config
    from shards.cluster import check_paths, joined_cluster
    from shards.privacy import where_texts_are
    from shards.summary import refusal_line, refused_lines, status
    from sleepfm.console import YELLOW, coloured
    from sleepfm.extras import require
    from sleepfm.signals.files import location

    require("ray")
    check_paths(arguments.source, arguments.out)
    overrides = list(arguments.overrides)
    if arguments.cohort:
        overrides.append(f"cohort={arguments.cohort}")
    config = load_build_config(arguments.config, overrides)
    if arguments.workers and (address := joined_cluster()):
        print(f"--workers {arguments.workers} is ignored: the work goes to all CPUs of the Ray cluster at {address}", flush=True)
    result = build(
        location(arguments.source),
        location(arguments.out),
        config,
        arguments.workers or os.cpu_count() or 1,
        arguments.retry_refused,
        arguments.rebuild,
        arguments.exclude,
    )
    counts = result.description["counts"]
    made = f"{counted(counts['records'], 'recording')} in {counted(counts['shards'], 'shard')}"
    print(f"{arguments.out}: {made}, {counts['bytes'] / 1e6:.1f} MB")
    print(f"digest {result.description['digest']}")
    texts = result.texts.lines()
    for line in texts:
        print(line)
    cohort = shlex.quote(arguments.cohort) if arguments.cohort else ""
    if told := where_texts_are([*texts, *(row["reason"] for row in result.quarantine)], shlex.quote(arguments.source), cohort):
        print(told)
    warning = coloured("warning:", YELLOW)
    if result.unscored:
        has = for_number(result.unscored, "has")
        print(f"{result.unscored} of {counted(counts['records'], 'recording')} {has} no scoring; `sleepfm doctor` lists them")
    if result.unread.count:
        print(f"{warning} {result.unread.warning(counts['records'])}")
    for line in result.people:
        print(f"people: {line}")
    for line in (*result.warnings, *result.shared):
        print(f"{warning} {line}")
    for folder, why in result.unlisted.items():
        print(f"{warning} {folder}: {why}; what is in it is not in the data set; make it readable, and build again")
    for row in result.quarantine:
        if row["source"] not in result.printed:
            print(refusal_line(row["source"], row["error"], row["reason"]))
    for line in refused_lines(result.quarantine, f"{arguments.out}/manifest/quarantine.parquet", result.gone):
        print(line)
    if result.unlisted:
        return 1
    return status(counts, result.quarantine, result.texts.refusals, config.max_refused, result.gone)


def _verify(arguments: argparse.Namespace) -> int:
    from shards.verify import recordings_aside
    from shards.verify_on_ray import verify_in_parallel
    from sleepfm.signals.files import location

    faults = 0
    for fault in verify_in_parallel(location(arguments.dataset), arguments.workers):
        faults += 1
        print(fault, flush=True)
    for line in recordings_aside(arguments.dataset):
        print(line)
    print(f"{arguments.dataset}: {'whole' if not faults else f'{faults} faults found'}")
    return 1 if faults else 0


def _info(arguments: argparse.Namespace) -> int:
    from shards.info import info

    print(info(arguments.dataset))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from shards.export import export_parquet
    from shards.export_webdataset import export_epochs
    from sleepfm.errors import UsageError
    from sleepfm.signals.files import local_path

    folder = local_path(arguments.folder, "DIR")
    if arguments.format == "parquet":
        records = export_parquet(arguments.dataset, folder, arguments.rule or "overlap")
    elif arguments.rule:
        raise UsageError("--rule: only for --format parquet; other formats have the labels of the shards")
    else:
        records = export_epochs(arguments.dataset, folder)
    for count, record in enumerate(records, start=1):
        print(f"{count:6d}  {record}", flush=True)
    return 0
