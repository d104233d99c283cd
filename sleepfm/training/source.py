"""The data set of a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sleepfm.data.dataset import read_description


def dataset_digest(config: Any) -> str:
    """Digest of the data set at ``config.data.path``, without opening it. Raises :class:`DatasetError`."""
    return str(read_description(Path(config.data.path))["digest"])
