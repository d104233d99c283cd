"""``sleepfm models``: what the registry holds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sleepfm.registry import registry
from sleepfm.registry.promotion import CHAMPION, promote_by_hand
from sleepfm.registry.store import shown, store_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_HEADER = ("model", "version", "alias", "selected by", "data set", "made from")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", help="MLflow address; default: MLFLOW_TRACKING_URI, else runs/mlflow.db")
    parser.add_argument("--name", help="only the versions of this model, with every metric")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.add_argument(
        "--promote",
        metavar="URI",
        help="have the alias champion mean models:/NAME/VERSION, whatever its figures are compared with",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a table of versions, or move an alias; raises :class:`RegistryError` where there is no store."""
    if arguments.promote is not None:
        now, before = promote_by_hand(arguments.promote, CHAMPION, arguments.store)
        print(f"{now} is {CHAMPION} now{f', {before} was' if before else ''}")
        return 0
    found = registry.versions(arguments.store)
    if arguments.name:
        found = [version for version in found if version.name == arguments.name]
    if arguments.json:
        print(json.dumps([_plain(version) for version in found], indent=1))
        return 0
    if not found:
        what = f"no version of {arguments.name!r}" if arguments.name else "no models"
        print(f"{shown(store_uri(arguments.store))}: {what} registered yet")
        return 0
    rows = [_row(version) for version in found]
    print(_table([_HEADER, *rows]))
    if arguments.name:
        for version in found:
            print(f"\n{version.name}:{version.version}")
            for key, value in sorted(_metrics(version).items()):
                print(f"  {key:32} {value:.4f}")
    return 0


def _plain(version: ModelVersion) -> dict[str, object]:
    tags = dict(version.tags)
    return {
        "name": version.name,
        "version": str(version.version),
        "aliases": list(version.aliases),
        "metrics": _metrics(version),
        "parents": json.loads(tags.get("parents", "[]")),
        "run_id": version.run_id,
        "tags": {key: value for key, value in tags.items() if not key.startswith("metric.") and key != "parents"},
    }


def _metrics(version: ModelVersion) -> dict[str, float]:
    prefix = "metric."
    return {key[len(prefix) :]: float(value) for key, value in version.tags.items() if key.startswith(prefix)}


def _row(version: ModelVersion) -> tuple[str, ...]:
    metric = version.tags.get("selected_by", "")
    value = _metrics(version).get(metric)
    return (
        version.name,
        str(version.version),
        ", ".join(version.aliases),
        f"{metric} {value:.4f}" if value is not None else "",
        version.tags.get("dataset_digest", "")[:12],
        ", ".join(json.loads(version.tags.get("parents", "[]"))),
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
