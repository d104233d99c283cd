"""Figures that the pages quote, taken from the files of benchmarks/results: docs/figures.yaml says which from where.

    python scripts/figures.py [--check]

Writes them into README.md and docs/*.md. ``--check`` writes nothing, tells what would change, and ends with status 1 if
anything would. A phrase that a page does not have exactly once, or a key that a file does not have, is an error: nothing is
written then.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path("docs") / "figures.yaml"
RESULTS = Path("benchmarks") / "results"
NUMBER = r"-?\d+(?:,\d{3})*(?:\.\d+)?"


@cache
def result(path: Path) -> Any:
    """The content of a file of results."""
    return json.loads(path.read_text(encoding="utf-8"))


def figure(results: Path, file: str, key: str) -> float:
    """What ``file`` has at ``key``, such as ``cases/tiny-ddp/step_seconds``; parts are keys, or places of a list."""
    found = result(results / file)
    for part in key.split("/"):
        try:
            found = found[int(part)] if isinstance(found, list) else found[part]
        except (LookupError, ValueError, TypeError):
            raise ValueError(f"{RESULTS / file}: no key {key!r}, at {part!r}; mend {TABLE}") from None
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError(f"{RESULTS / file}: {key!r} is no number; mend {TABLE}")
    return found


def value_of(results: Path, entry: dict[str, Any], place: str | dict[str, Any]) -> float:
    """The number of a place: that of a key, or (``key`` / ``over`` + ``plus``) * ``times``."""
    place = {"key": place} if isinstance(place, str) else place
    if unknown := set(place) - {"key", "over", "over_file", "plus", "times"}:
        raise ValueError(f"{TABLE}: unknown {sorted(unknown)} beside {place.get('key')!r}; known: over, over_file, plus, times")
    begin = f"{entry['at']}/" if "at" in entry else ""
    found = figure(results, entry["file"], begin + place["key"])
    if "over" in place:
        other = place.get("over_file")
        found /= figure(results, other or entry["file"], place["over"] if other else begin + place["over"])
    return (found + float(place.get("plus", 0))) * float(place.get("times", 1))


def filled(page: str, text: str, entry: dict[str, Any], values: list[float]) -> str:
    """``text`` of ``page`` with ``values`` in the places of the phrase, such as ``in {:.1f} s``; any white space is alike."""
    pattern, specs, phrase = "", [], entry["text"]
    for words, name, spec, _ in Formatter().parse(phrase):
        pattern += literal(words)
        if name is not None:
            specs.append(spec or "")
            pattern += f"({NUMBER})"
    if len(specs) != len(values):
        raise ValueError(f"{TABLE}: {page}: {phrase!r} has {len(specs)} places for {len(values)} values")
    behind = 0
    if "after" in entry:
        behind = only(page, entry["after"], list(re.finditer(literal(entry["after"]), text))).end()
    found = list(re.finditer(pattern, text[behind:]))
    place = only(page, phrase, found[:1] if "after" in entry else found)
    for number in reversed(range(len(specs))):
        begin, end = (behind + offset for offset in place.span(number + 1))
        text = text[:begin] + format(values[number], specs[number]) + text[end:]
    return text


def literal(words: str) -> str:
    """A pattern of the words, whatever white space is between them."""
    return r"\s+".join(re.escape(word) for word in re.split(r"\s+", words))


def only(page: str, words: str, found: list[re.Match[str]]) -> re.Match[str]:
    """The one that was found."""
    if len(found) != 1:
        raise ValueError(f"{page}: {words!r} is there {len(found)} times, not once; mend {TABLE}, or the page")
    return found[0]


def rewritten(root: Path) -> tuple[dict[str, str], list[str]]:
    """Pages that change, with their new text, and lines that say what does not fit or is different."""
    table = yaml.safe_load((root / TABLE).read_text(encoding="utf-8"))
    pages, errors = {}, []
    for page, entries in table.items():
        before = text = (root / page).read_text(encoding="utf-8")
        for entry in entries:
            try:
                values = [value_of(root / RESULTS, entry, place) for place in entry["values"]]
                text = filled(page, text, entry, values)
            except ValueError as error:
                errors.append(str(error))
        if text != before:
            pages[page] = text
    return pages, errors


def differences(before: str, after: str) -> list[str]:
    """The lines that are different, old and new."""
    pairs = zip(before.splitlines(), after.splitlines(), strict=True)
    return [f"  - {old}\n  + {new}" for old, new in pairs if old != new]


def main(words: list[str] | None = None, root: Path = ROOT) -> int:
    """Status 1 where a phrase or a key is wrong, and with ``--check`` where a page is behind its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 where a page would change")
    arguments = parser.parse_args(words)
    pages, errors = rewritten(root)
    if errors:
        print("\n".join(errors), file=sys.stderr)
        return 1
    for page, text in pages.items():
        path = root / page
        print("\n".join([f"{page}:", *differences(path.read_text(encoding="utf-8"), text)]))
        if not arguments.check:
            path.write_text(text, encoding="utf-8")
    if pages and arguments.check:
        print("behind benchmarks/results; run: python scripts/figures.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
