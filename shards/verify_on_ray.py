"""``verify`` where its tars are many: each is a Ray task."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

from shards.verify import StarMap, verify
from sleepfm.data.dataset import read_description
from sleepfm.extras import require

# Below this a cluster takes longer to start than the tars to read.
_SMALL_BYTES = 2 << 30


def verify_in_parallel(path: Path, workers: int) -> Iterator[str]:
    """:func:`shards.verify.verify` on the cluster at ``RAY_ADDRESS``; without one on ``workers`` CPUs here, where that pays.

    Raises:
        DatasetError: as it does.
        ConfigError, ShardError: as :func:`shards.cluster.cluster` and :func:`shards.parallel.starmap`.
    """
    if not os.environ.get("RAY_ADDRESS") and (workers < 2 or _bytes(path) < _SMALL_BYTES):
        yield from verify(path)
        return
    from shards.build_config import load_build_config
    from shards.cluster import check_paths, cluster
    from shards.parallel import starmap

    require("ray")
    check_paths(str(path))
    patience = load_build_config().ray.wait_for_nodes_s
    with cluster(workers) as ray:
        yield from verify(path, cast(StarMap, partial(starmap, ray, patience=patience, say=partial(print, flush=True))))


def _bytes(path: Path) -> int:
    counts = read_description(path).get("counts")
    found = counts.get("bytes") if isinstance(counts, dict) else None
    return found if isinstance(found, int) else 0
