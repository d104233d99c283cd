"""``sleepfm models``: what the registry holds, and what is done with it by hand."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sleepfm.command_line import add_examples, positive
from sleepfm.commands.options import add_store
from sleepfm.errors import RegistryError, UsageError
from sleepfm.inference.default_models import CHAMPIONS
from sleepfm.registry import registry
from sleepfm.registry.lineage import lineage
from sleepfm.registry.promotion import CHAMPION, promote_by_hand
from sleepfm.registry.pruning import prune_all
from sleepfm.registry.scorer_version import SCORER, bind_champions
from sleepfm.registry.store import registered, shown, store_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_HEADER = ("model", "version", "alias", "selected by", "data set", "made from")
_METRIC = "metric."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sleepfm models`` and of what stands behind it."""
    add_store(parser)
    _add_list_options(parser)
    add_examples(parser, "", "--name sleepfm-stage", "promote sleepfm-stage 3")
    parser.set_defaults(run=run)
    # Without an action, what there is is listed.
    actions = parser.add_subparsers(title="actions", metavar="[ACTION]")

    def action(name: str, does: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        # Behind the action as before it; one that is not there must not hide the other.
        add_store(added, default=argparse.SUPPRESS)
        added.set_defaults(run=does)
        return added

    listing = action("list", run, "list what the registry holds, as without an action")
    _add_list_options(listing, default=argparse.SUPPRESS)
    add_examples(listing, "", "--name sleepfm-stage")
    promote = action("promote", _promote, "make a version the champion, whatever its figures")
    promote.add_argument("model", metavar="NAME", help="registered model")
    promote.add_argument("version", metavar="VERSION", help="number of the version")
    add_examples(promote, "sleepfm-stage 3")
    prune = action(
        "prune",
        _prune,
        "remove versions that runs registered while they trained: those that nobody uses, but the newest of each run",
    )
    prune.add_argument("model", nargs="?", metavar="NAME", help="registered model (default: all)")
    prune.add_argument(
        "--keep", type=positive, default=1, metavar="N", help="how many versions of each run to keep (default: %(default)s)"
    )
    add_examples(prune, "", "sleepfm-stage --keep 3")
    bind = action("bind", _bind, f"bind the champions of all tasks into a new version of {SCORER}, and make it the champion")
    add_examples(bind, "")


def _add_list_options(parser: argparse.ArgumentParser, **default: Any) -> None:
    parser.add_argument("--name", **default, help="show only this model: every figure of each version, and what it was made from")
    parser.add_argument("--json", **default, action="store_true", help="print everything as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print a table of versions; raises :class:`RegistryError` where there is no store, or no model ``--name`` in it."""
    everything = registry.versions(arguments.store)
    found = [version for version in everything if arguments.name in (None, version.name)]
    if arguments.name is not None and not found:
        there = registered(arguments.name, (version.name for version in everything))
        raise RegistryError(f"{shown(store_uri(arguments.store))}: no version of {arguments.name!r} is registered; {there}")
    if arguments.json:
        print(json.dumps([_plain(version) for version in found], indent=1))
        return 0
    if not found:
        print(f"{shown(store_uri(arguments.store))}: no models registered yet")
        return 0
    print(_table([_HEADER, *(_row(version) for version in found)]))
    if arguments.name:
        for version in found:
            print(f"\n{version.name}:{version.version}")
            if leak := version.tags.get(registry.LEAK):
                print(f"  test people seen before: {leak}")
            intervals = _intervals(version)
            for key, value in sorted(_metrics(version).items()):
                print(f"  {key:32} {_figure(value, intervals.get(key))}")
            for line in _tree(lineage(version.name, str(version.version), arguments.store)["parents"]):
                print(f"  {line}")
    return 0


def _promote(arguments: argparse.Namespace) -> int:
    now, before = promote_by_hand(f"models:/{arguments.model}/{arguments.version}", CHAMPION, arguments.store)
    print(f"{now} is {CHAMPION} now{f', {before} was' if before and before != now else ''}")
    if f"models:/{arguments.model}@{CHAMPION}" in CHAMPIONS.values():
        version = bind_champions(CHAMPIONS, arguments.store)
        if version is not None:
            print(f"{SCORER}:{version} binds it with the champions of the other tasks, and is {CHAMPION} now")
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    removed = prune_all(arguments.keep, arguments.model, arguments.store)
    print("\n".join(f"{label} removed" for label in removed) if removed else "nothing to remove")
    return 0


def _bind(arguments: argparse.Namespace) -> int:
    version = bind_champions(CHAMPIONS, arguments.store)
    if version is None:
        missing = [address for address in CHAMPIONS.values() if registry.look_up_if_there(address, arguments.store) is None]
        raise UsageError(f"{SCORER} needs a model of every task; {', '.join(missing)} does not exist: train one, or promote one")
    print(f"{SCORER}:{version} is {CHAMPION} now")
    return 0


def _plain(version: ModelVersion) -> dict[str, object]:
    tags = dict(version.tags)
    return {
        "name": version.name,
        "version": str(version.version),
        "aliases": list(version.aliases),
        "metrics": _metrics(version),
        "intervals": _intervals(version),
        "parents": json.loads(tags.get("parents", "[]")),
        "run_id": version.run_id,
        "tags": {key: value for key, value in tags.items() if not key.startswith(_METRIC) and key not in _SHOWN_APART},
    }


_SHOWN_APART = ("parents", registry.INTERVALS)


def _metrics(version: ModelVersion) -> dict[str, float]:
    return {key.removeprefix(_METRIC): float(value) for key, value in version.tags.items() if key.startswith(_METRIC)}


def _intervals(version: ModelVersion) -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads(version.tags.get(registry.INTERVALS, "{}"))
    return found


def _figure(value: float, interval: Sequence[float] | None) -> str:
    return f"{value:z.4f}" if interval is None else f"{value:z.4f} ({interval[0]:z.4f} to {interval[1]:z.4f})"


def _row(version: ModelVersion) -> tuple[str, ...]:
    metric = version.tags.get("selected_by", "")
    value = _metrics(version).get(metric)
    figure = f"{metric} {_figure(value, _intervals(version).get(metric))}" if value is not None else ""
    return (
        version.name,
        str(version.version),
        ", ".join(version.aliases),
        f"{figure} LEAK" if registry.LEAK in version.tags else figure,
        version.tags.get("dataset_digest", "")[:12],
        ", ".join(json.loads(version.tags.get("parents", "[]"))),
    )


def _tree(parents: Sequence[dict[str, Any]], depth: int = 0) -> Iterator[str]:
    """A line for each ancestor, further in than what was made from it."""
    for parent in parents:
        label = f"{parent['name']}:{parent['version']}" if parent["version"] else parent["name"]
        digest = parent["tags"].get("dataset_digest", "")
        known = f"data set {digest[:12]}" if digest else "data set not known" if parent["tags"] else "not in this registry"
        yield f"{'  ' * depth}made from {label} ({known})"
        yield from _tree(parent["parents"], depth + 1)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
