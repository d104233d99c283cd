"""The index by which ``wids.ShardListDataset`` finds the samples of tars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def index_of(name: str, samples: Mapping[str, int]) -> dict[str, Any]:
    """The content of an index called ``name``.

    Args:
        samples: how many each tar holds, by its path relative to the index, in order.
    """
    shards = [{"url": url, "nsamples": count} for url, count in samples.items()]
    return {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": name, "shardlist": shards}
