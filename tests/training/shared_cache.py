"""Embeds a split by all processes of a job, a cache for each node; run once a process by ``test_shared_work.py``.

Arguments: the folder of caches and results, the data set, the package of the encoder.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import torch.distributed as dist
from shared_stages import count_rows

from sleepfm.data.dataset import Dataset
from sleepfm.errors import SleepFMError
from sleepfm.registry.registry import load_package
from sleepfm.stages.embedding_cache import EmbeddingCache
from sleepfm.training.ranks.distributed import World, exit_ranked, start
from sleepfm.training.ranks.shared_work import SharedWork


def main() -> int:
    folder, path, source = map(Path, sys.argv[1:])
    world = World.from_environment()
    start(world, 120)
    counts: Counter[str] = Counter()
    count_rows(counts)
    package = load_package(source)
    sha256 = package.config["weights"]["sha256"]
    node = folder / f"node{world.rank // world.local_size}"
    cache = EmbeddingCache(node, Dataset.open(path), package.module, sha256, work=SharedWork(world))
    told = {}
    try:
        cache.split("pretrain")
    except SleepFMError as error:
        told["error"] = f"{type(error).__name__}: {error}"
    (folder / f"rank{world.rank}.json").write_text(json.dumps(told | {"encoded": counts["SynthSleepNet.encode"]}))
    dist.barrier()
    return 0


if __name__ == "__main__":
    exit_ranked(main)
