"""One table of all scored nights of a folder: ``summary/summary.parquet`` and ``summary/summary.csv``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sleepfm.files import read_json
from sleepfm.output import MARKER, Origin, check_free, whole_folder

FOLDER = "summary"
KIND = "summary of scored nights"
# Of a night's summary, what is one value; the rest stays in its own file.
_SECTIONS = ("sleep", "lights", "breathing", "ahi_by_definition", "oximetry")
_VALUES = ("record", "file", "epochs", "arousal_index")


def check_summary(out: Path) -> None:
    """Raises :class:`StorageError` where :func:`write_summary` would, before the work."""
    check_free(out / FOLDER, _origin(out))


def write_summary(out: Path, refused: dict[str, str]) -> Path:
    """Write the tables: a row for each night that is in ``out``, by whatever call, and for each of ``refused`` (file to reason).

    A figure that is not defined, or was not assessed, is null, in the CSV an empty cell. A reason does not repeat its file.
    Returns the folder.

    Raises:
        StorageError: there is something else, or it cannot be written.
    """
    # Imported here: where a table may be written is asked before the work.
    import pandas as pd

    reasons = {file: why.removeprefix(f"{file}: ") for file, why in refused.items()}
    rows = [*_nights(out), *({"status": "refused", "file": file, "reason": why} for file, why in reasons.items())]
    table = pd.DataFrame(rows)
    first = [name for name in ("record", "file", "status", "reason") if name in table]
    table = table[[*first, *(name for name in table if name not in first)]].convert_dtypes()
    with whole_folder(out / FOLDER, _origin(out)) as folder:
        table.to_parquet(folder / "summary.parquet", index=False)
        table.to_csv(folder / "summary.csv", index=False)
    return out / FOLDER


def _origin(out: Path) -> Origin:
    # Of whatever is in this folder, wherever it has been moved to.
    return Origin(KIND, KIND, str(out))


def _nights(out: Path) -> Iterator[dict[str, Any]]:
    for marker in sorted(out.glob(f"*/{MARKER}")):
        try:
            written, content = read_json(marker), read_json(marker.parent / "summary.json")
        except (OSError, ValueError):
            continue
        whole = isinstance(written, dict) and written.get("kind") == "scored night" and written.get("finished")
        if whole and isinstance(content, dict):
            yield _row(content)


def _agreement(found: dict[str, Any]) -> dict[str, Any]:
    """What a human's scoring of the night came to beside the models'; None where there is none, or nothing to compare."""
    stage, ahi = found.get("stage") or {}, found.get("ahi") or {}
    row: dict[str, Any] = {f"agreement_stage_{name}": stage.get(name) for name in ("kappa", "accuracy")}
    for kind in ("apnea", "hypopnea", "arousal"):
        family = found.get(kind) or {}
        of_runs = bool(family.get("positive_runs"))
        row[f"agreement_{kind}_f1"] = None if of_runs else family.get("f1")
        if of_runs:
            row[f"agreement_{kind}_positive_runs_f1"] = family.get("f1")
    return row | {"agreement_ahi_model": ahi.get("model"), "agreement_ahi_human": ahi.get("scored")}


def _row(content: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"status": "scored"} | {name: content.get(name) for name in _VALUES}
    for section in _SECTIONS:
        for name, value in (content.get(section) or {}).items():
            if isinstance(value, dict):
                row |= {f"{section}_{name}_{key}": item for key, item in value.items()}
            elif not isinstance(value, list):
                row[f"{section}_{name}"] = value
    row |= _agreement(content.get("agreement") or {})
    row |= {f"model_{task}": address for task, address in content.get("models", {}).items()}
    row["channels"] = " ".join(content.get("channels", ()))
    row["warnings"] = len(content.get("warnings", ()))
    return row
