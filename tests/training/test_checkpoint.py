"""What every rank does while a checkpoint is saved."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from sleepfm.training.ranks.distributed import World, free_port, import_deepspeed, start
from sleepfm.training.state import checkpoint

RANKS = 2


def save_on_one_rank(rank: int, folder: str, port: str) -> None:
    """Saves with an extra file for which rank 0 takes its time, and notes which files this rank brought to the disk."""
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(RANKS),
        LOCAL_RANK=str(rank),
        LOCAL_SIZE=str(RANKS),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port,
    )
    world, output = World.from_environment(), Path(folder)
    start(world, 60)
    model = nn.Linear(3, 3)
    settings = {"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "AdamW", "params": {"torch_adam": True}}}
    engine, *_ = import_deepspeed().initialize(
        model=model, model_parameters=model.parameters(), config=settings, dist_init_required=False
    )
    synced: list[str] = []
    sync_file, save_weights = checkpoint.sync_file, checkpoint.save_weights

    def noted(path: Path) -> None:
        sync_file(path)
        synced.append(path.name)

    def slow(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        time.sleep(2)
        save_weights(path, tensors)

    checkpoint.sync_file, checkpoint.save_weights = noted, slow
    checkpoint.save(engine, world, output / "checkpoints", 1, 0, 2, {"extra.safetensors": {"weight": torch.ones(3)}})
    (output / f"synced-{rank}.json").write_text(json.dumps(synced))
    dist.destroy_process_group()


@pytest.mark.timeout(300)
def test_every_file_is_brought_to_the_disk_by_one_rank_however_slow_rank_0_writes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(save_on_one_rank, (str(tmp_path), free_port()), nprocs=RANKS)
    saved = checkpoint.newest(tmp_path / "checkpoints")
    assert saved is not None
    assert torch.equal(load_file(saved.folder / "extra.safetensors")["weight"], torch.ones(3))
    files = {path.name for path in saved.folder.iterdir()} - {checkpoint.MARK}
    synced = [name for rank in range(RANKS) for name in json.loads((tmp_path / f"synced-{rank}.json").read_text())]
    assert sorted(synced) == sorted(files)
