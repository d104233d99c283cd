"""The ``sleepfm`` command: the list of its subcommands, each imported when it is called."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from sleepfm.command_line import parse
from sleepfm.console import accept_every_character, exit_with
from sleepfm.version import __version__


@dataclass(frozen=True)
class Command:
    """A subcommand: what it does in a line, and the function ``module:name`` that adds its arguments to a parser.

    The function sets the default ``run(arguments) -> exit status``.
    """

    summary: str
    function: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments to ``parser``."""
        module, name = self.function.split(":")
        configure: Callable[[argparse.ArgumentParser], None] = getattr(importlib.import_module(module), name)
        parser.set_defaults(parser=parser)
        configure(parser)


_COMMANDS, _JOBS, _SHARDS = "sleepfm.commands", "sleepfm.commands.jobs", "shards.command_line"
GROUPS = {
    "Recordings": {
        "doctor": Command(
            "report what is in a folder of recordings, and what a build would refuse", f"{_COMMANDS}.doctor:configure"
        ),
        "synth": Command("write a synthetic cohort shaped like an NSRR download", f"{_COMMANDS}.synth:configure"),
    },
    "Data sets": {
        "build": Command("convert a folder of EDF recordings into a data set of shards", f"{_SHARDS}:configure_build"),
        "verify": Command("check every checksum, offset and count of a data set", f"{_SHARDS}:configure_verify"),
        "info": Command("show what a data set holds", f"{_SHARDS}:configure_info"),
    },
    "Training": {
        "pretrain": Command("pretrain an encoder without labels", f"{_JOBS}:configure_pretrain"),
        "probe": Command("train a head on a frozen encoder", f"{_JOBS}:configure_probe"),
        "finetune": Command("train encoder, temporal context and head together", f"{_JOBS}:configure_finetune"),
        "recordings": Command("learn age, sex or severity from whole recordings", f"{_JOBS}:configure_recordings"),
    },
    "Results": {
        "score": Command(
            "score nights: stages, hypnodensity, apnea and hypopnea events, plot, report", f"{_COMMANDS}.score:configure"
        ),
        "embed": Command("write one embedding per 30-s epoch to Parquet", f"{_COMMANDS}.embed:configure"),
    },
    "Models": {
        "models": Command("show what the registry holds: versions, aliases, metrics, lineage", f"{_COMMANDS}.models:configure"),
        "convert": Command(
            "convert a checkpoint of the released code (best_model.pth) into this project's format",
            f"{_COMMANDS}.convert:configure",
        ),
        "export": Command(
            "write a registered model into a folder that opens without a registry", f"{_COMMANDS}.export:configure"
        ),
    },
    "This program": {
        "completion": Command("print what completes commands and options in bash or zsh", f"{_COMMANDS}.completion:configure"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


class _Front(argparse.ArgumentParser):
    """The parser of ``sleepfm``, whose help shows the commands by group."""

    def format_help(self) -> str:
        width = max(map(len, COMMANDS))
        lines = ["usage: sleepfm COMMAND ...", "", str(self.description)]
        for title, commands in GROUPS.items():
            lines += ["", f"{title}:", *(f"  {name:<{width}}  {command.summary}" for name, command in commands.items())]
        return "\n".join([*lines, "", "`sleepfm COMMAND --help` explains a command; `sleepfm --version` prints the version.", ""])


def front_parser(chosen: Collection[str]) -> argparse.ArgumentParser:
    """The parser of ``sleepfm`` with every command, and with the arguments of the ``chosen`` ones."""
    parser = _Front(prog="sleepfm", description="A foundation model for sleep: recordings in, stages, events and embeddings out.")
    parser.add_argument("--version", action="version", version=f"sleepfm {__version__}", help="print the version")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=argparse.ArgumentParser)
    for name, command in COMMANDS.items():
        description = f"{command.summary[0].upper()}{command.summary[1:]}."
        subparser = subparsers.add_parser(name, help=command.summary, description=description)
        if name in chosen:
            command.configure(subparser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``argv`` and run the chosen subcommand. Exit status: 0 done, 1 input refused, 2 wrong usage."""
    accept_every_character()
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        front_parser(()).print_help(sys.stderr)
        sys.exit(2)
    if argv[0] == "help":
        argv = [*argv[1:2], "--help"]
    if not argv[0].startswith("-") and argv[0] not in COMMANDS:
        front_parser(()).error(_unknown(argv[0]))
    arguments = parse(front_parser([word for word in argv if not word.startswith("-")][:1]), argv)
    # What completes every command needs the arguments of all of them.
    arguments.whole = lambda: front_parser(COMMANDS)
    return exit_with(lambda: arguments.run(arguments))


def _unknown(word: str) -> str:
    near = difflib.get_close_matches(word, COMMANDS, n=1)
    return f"no command {word!r}; {f'did you mean {near[0]!r}?' if near else '`sleepfm help` lists the commands'}"


if __name__ == "__main__":
    sys.exit(main())
