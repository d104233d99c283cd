"""Fixtures that several packages share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import ObjectStore, object_store

pytest_plugins = ("small_cohort",)

# Folders whose tests share what is dear to make (a Ray cluster, a data set): with several workers (`make test`), one
# takes the whole folder; of the others, a file.
WHOLE_FOLDERS = {"shards", "evaluation"}
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Keep together on one worker what belongs together."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = Path(nodeid.split("::")[0])
            return path.parent.name if path.parent.name in WHOLE_FOLDERS else str(path)

    return Scheduling(config, log)


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
