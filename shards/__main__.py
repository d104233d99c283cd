"""``python -m shards build|verify|info|export``."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from shards.interruption import interruptible
from sleepfm.console import accept_every_character
from sleepfm.errors import exit_with


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand. Exit status: 0 done, 1 input was refused or a fault found, 2 wrong usage or configuration."""
    accept_every_character()
    parser = argparse.ArgumentParser(prog="python -m shards", description="Recordings to shards, and back.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    build = commands.add_parser("build", help="convert a folder of EDF recordings into a data set of shards")
    build.add_argument("source", metavar="SRC", help="folder or URL (s3://...) of EDF or BDF recordings and their scorings")
    build.add_argument("out", metavar="OUT", help="folder or URL (s3://...) of the data set; a build that is there is continued")
    build.add_argument("--cohort", help="name in configs/cohorts, a YAML file, a folder of them, or auto (default)")
    build.add_argument("--workers", type=_positive, help="CPUs of the local Ray cluster (default: all)")
    build.add_argument("--config", type=Path, help="instead of configs/shards.yaml")
    build.add_argument("--retry-refused", action="store_true", help="try refused recordings again")
    build.add_argument("--rebuild", action="store_true", help="make shards anew that other rules or another version made")
    build.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="FILE|PATTERN",
        help="leave out a recording, a folder of them, or what fits a pattern; may be given several times",
    )
    build.add_argument("overrides", nargs="*", metavar="key=value", help="configuration, see configs/shards.yaml")

    verify = commands.add_parser("verify", help="check every checksum, offset and count of a data set")
    info = commands.add_parser("info", help="show what a data set holds")
    export = commands.add_parser("export", help="write a data set in another layout")
    for command in (verify, info, export):
        command.add_argument("out", metavar="OUT", help="folder or URL of the data set")
    verify.add_argument("--workers", type=_positive, default=os.cpu_count(), help="CPUs of the local Ray cluster (default: all)")
    export.add_argument("folder", metavar="DIR", type=Path)
    formats = "a folder a recording with x.parquet and y.parquet, or WebDataset tars of one epoch a sample"
    export.add_argument("--format", choices=["parquet", "webdataset-epochs"], default="parquet", help=formats)
    export.add_argument("--rule", choices=["overlap", "reference"], help="event to epoch label in y.parquet (default: overlap)")

    # Overrides may stand before and behind options, which argparse alone does not take in a subcommand.
    arguments, rest = parser.parse_known_args(argv)
    if rest and (arguments.command != "build" or any(item.startswith("-") or "=" not in item for item in rest)):
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    run = {"build": _build, "verify": _verify, "info": _info, "export": _export}[arguments.command]
    arguments.rest = rest

    def interruptibly() -> int:
        going_on = "what is finished is kept, and the same command goes on"
        with interruptible(going_on if arguments.command == "build" else ""):
            return run(arguments)

    return exit_with(interruptibly)


def _build(arguments: argparse.Namespace) -> int:
    from shards.build import build
    from shards.build_config import load_build_config
    from shards.cluster import check_paths, joined_cluster
    from shards.privacy import where_texts_are
    from shards.summary import refusal_line, refused_lines, status
    from sleepfm.extras import require
    from sleepfm.signals.files import location

    require("ray")
    check_paths(arguments.source, arguments.out)
    overrides = [*arguments.overrides, *arguments.rest]
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
    print(f"{arguments.out}: {counts['records']} recordings in {counts['shards']} shards, {counts['bytes'] / 1e6:.1f} MB")
    print(f"digest {result.description['digest']}")
    texts = result.texts.lines()
    for line in texts:
        print(line)
    cohort = shlex.quote(arguments.cohort) if arguments.cohort else ""
    if told := where_texts_are([*texts, *(row["reason"] for row in result.quarantine)], shlex.quote(arguments.source), cohort):
        print(told)
    if result.unscored:
        print(f"{result.unscored} of {counts['records']} recordings have no scoring that was found; `sleepfm doctor` says which")
    if result.unread.count:
        print(f"warning: {result.unread.warning(counts['records'])}")
    for line in result.people:
        print(f"people: {line}")
    for line in (*result.warnings, *result.shared):
        print(f"warning: {line}")
    for folder, why in result.unlisted.items():
        print(f"warning: {folder}: {why}; what is in it is not in the data set: give the right to read it, and build again")
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
    for fault in verify_in_parallel(location(arguments.out), arguments.workers):
        faults += 1
        print(fault, flush=True)
    for line in recordings_aside(arguments.out):
        print(line)
    print(f"{arguments.out}: {'whole' if not faults else f'{faults} faults found'}")
    return 1 if faults else 0


def _info(arguments: argparse.Namespace) -> int:
    from shards.info import info

    print(info(arguments.out))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from shards.export import export_parquet
    from shards.export_webdataset import export_epochs
    from sleepfm.errors import UsageError
    from sleepfm.signals.files import local_path

    folder = local_path(arguments.folder, "DIR")
    if arguments.format == "parquet":
        records = export_parquet(arguments.out, folder, arguments.rule or "overlap")
    elif arguments.rule:
        raise UsageError("--rule: for --format parquet alone; other formats hold the labels of the shards")
    else:
        records = export_epochs(arguments.out, folder)
    for count, record in enumerate(records, start=1):
        print(f"{count:6d}  {record}", flush=True)
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
