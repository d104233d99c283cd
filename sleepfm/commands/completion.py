"""``sleepfm completion``: a script by which a shell completes commands, options and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

_PLACES = ("SRC", "OUT", "DATASET", "DIR", "FILE", "EDF", "CKPT", "FILE.parquet", "FILE|PATTERN")


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``sleepfm completion``."""
    parser.add_argument(
        "shell",
        metavar="SHELL",
        choices=("bash", "zsh"),
        help='bash: put eval "$(sleepfm completion bash)" into ~/.bashrc; zsh: write what is printed to a file _sleepfm in '
        "a folder of $fpath",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = 'examples:\n  eval "$(%(prog)s bash)"  (write this line into ~/.bashrc)\n  %(prog)s zsh > ~/.zfunc/_sleepfm'
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the script for the parser that ``arguments.whole()`` makes."""
    import shtab

    parser = arguments.whole()
    for action in _actions(parser):
        if action.type is Path or action.metavar in _PLACES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, arguments.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every argument of ``parser`` and of the commands below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
