"""The ``sleepfm`` command: one subcommand a module in :mod:`sleepfm.commands`, imported when called."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from sleepfm.console import accept_every_character
from sleepfm.errors import exit_with
from sleepfm.version import __version__

COMMANDS = {
    "synth": "write a synthetic cohort shaped like an NSRR download",
    "doctor": "report what is in a folder of recordings and what would be refused",
    "score": "score nights: stages, hypnodensity, apnea and hypopnea events, plot, report",
    "embed": "write one embedding per 30-s epoch to Parquet",
    "convert": "convert a reference best_model.pth into this project's format",
    "models": "show what the registry holds: versions, aliases, metrics, lineage",
    "export": "write a registered model into a folder that opens without a registry",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``argv`` and run the chosen subcommand. Exit status: 0 done, 1 input refused, 2 wrong usage."""
    accept_every_character()
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="sleepfm", description="A foundation model for sleep.")
    parser.add_argument("--version", action="version", version=f"sleepfm {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:
            importlib.import_module(f"sleepfm.commands.{name}").configure(subparser)
    # What stands behind an option, where a command takes any number of things: argparse alone reads them in one place only.
    arguments, rest = parser.parse_known_args(argv)
    several = getattr(arguments, "several", None)
    if rest and (several is None or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if several is not None:
        getattr(arguments, several).extend(rest)
    return exit_with(lambda: arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
