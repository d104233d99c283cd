"""Whether the tables of a manifest are those that ``dataset.json`` tells of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from sleepfm.data.format import DATASET_FILE, MANIFEST_FOLDER
from sleepfm.signals.files import file_sha256


def told_digests(out: Path) -> dict[str, str]:
    """SHA-256 of the tables in ``out`` by their names, as ``dataset.json`` has them; none where that is not there.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return dict(json.loads((out / DATASET_FILE).read_text(encoding="utf-8"))["tables"])
    except FileNotFoundError:
        return {}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{DATASET_FILE} is damaged") from error


def check_table(out: Path, name: str, told: Mapping[str, str]) -> None:
    """Raises :class:`ValueError` if the bytes of the table ``name`` are not those that are ``told`` of, if any are."""
    if name in told and file_sha256(out / MANIFEST_FOLDER / f"{name}.parquet") != told[name]:
        raise ValueError(f"{name}.parquet has changed")
