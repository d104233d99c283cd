"""What all command lines share: examples in ``--help``, and settings (``key=value``) that may stand before and behind options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def add_examples(parser: argparse.ArgumentParser, *examples: str) -> None:
    """End ``--help`` with ``examples``, each the words behind the name of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    lines = [f"  %(prog)s {words}".rstrip() for words in examples]
    parser.epilog = "\n".join(["examples:" if len(lines) > 1 else "example:", *lines])


def positive(text: str) -> int:
    """The type of an option that is a number of things. Raises :class:`argparse.ArgumentTypeError`."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def hours(text: str) -> float:
    """The type of an option that is a number of hours. Raises :class:`argparse.ArgumentTypeError`."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of hours, for example 8 or 0.5") from None


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments in ``argv``.

    Where a command takes any number of words (its default ``several`` says under which name), argparse alone reads them in one
    place only: those that stand behind an option are added here. The default ``parser`` is the command's own, for its usage.
    """
    arguments, rest = parser.parse_known_args(argv)
    several = getattr(arguments, "several", None)
    unknown = rest if several is None else [word for word in rest if word.startswith("-")]
    if unknown:
        # A key of the configuration as if it were an option.
        keys = [word.lstrip("-") for word in unknown if several == "overrides" and ("=" in word or "." in word)]
        stated = " ".join(key if "=" in key else f"{key}=VALUE" for key in keys)
        hint = f"; if it is a key of the configuration, write it without dashes: {stated}" if keys else ""
        getattr(arguments, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if several is not None:
        setattr(arguments, several, [*getattr(arguments, several), *rest])
    return arguments
