"""Fixtures that several packages share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import ObjectStore, object_store

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real, openly licensed recordings beside the checkout; skips the test where missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real recordings at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def s3() -> Iterator[ObjectStore]:
    """A local S3 server with one bucket; its address and credentials are in the environment."""
    with object_store() as store:
        yield store
