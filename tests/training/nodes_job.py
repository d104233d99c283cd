"""Two nodes of two ranks each; on every one something is fetched. Run by ``test_distributed.py``, once a rank.

Arguments: the folder, and the node whose first rank fails.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed as dist

from sleepfm.errors import RegistryError, SleepFMError
from sleepfm.training.ranks.distributed import World, on_every_node

if __name__ == "__main__":
    world = World.from_environment()
    node = world.rank // world.local_size
    fetched = Path(sys.argv[1]) / f"node{node}"

    def work() -> str:
        if fetched.exists():
            return f"rank {world.rank} found it"
        if sys.argv[2] == str(node):
            raise RegistryError("no room")
        fetched.write_text("")
        return f"rank {world.rank} fetched it"

    dist.init_process_group("gloo")
    try:
        answer = on_every_node(world, work)
    except SleepFMError as error:
        answer = f"{type(error).__name__}: {error}"
    (Path(sys.argv[1]) / f"answer{world.rank}").write_text(answer)
    dist.barrier()
    dist.destroy_process_group()
