"""``python -m shards build|verify|info|export``; the first three are also commands of ``sleepfm``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from shards.command_line import configure_build, configure_export, configure_info, configure_verify
from sleepfm.command_line import parse
from sleepfm.console import accept_every_character, exit_with

COMMANDS = {
    "build": (configure_build, "convert a folder of EDF recordings into a data set of shards"),
    "verify": (configure_verify, "check every checksum, offset and count of a data set"),
    "info": (configure_info, "show what a data set holds"),
    "export": (configure_export, "write a data set in another layout"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand. Exit status: 0 done, 1 input was refused or a fault found, 2 wrong usage or configuration."""
    accept_every_character()
    parser = argparse.ArgumentParser(prog="python -m shards", description="Recordings to shards, and back.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (configure, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        command.set_defaults(parser=command)
        configure(command)
    arguments = parse(parser, sys.argv[1:] if argv is None else argv)
    return exit_with(lambda: arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
