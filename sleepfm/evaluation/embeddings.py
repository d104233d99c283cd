"""Embeddings of a data set's recordings by one frozen encoder, kept on disk for the next job that needs them.

One safetensors file a recording, under a folder named for the encoder's weights and the data set, written
atomically. A file that is damaged, or was made from other weights or data, is made again.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sleepfm.data.dataset import Dataset
from sleepfm.evaluation.inference import embed, stored_epochs
from sleepfm.training.distributed import World

ALONE = World(0, 1, 0, 1)


class EmbeddingCache:
    """Embeddings of ``dataset`` by ``encoder``, whose weights have the digest ``encoder_sha256``."""

    def __init__(self, folder: Path, dataset: Dataset, encoder: Any, encoder_sha256: str, chunk: int = 64) -> None:
        self._dataset, self._encoder, self._chunk = dataset, encoder, chunk
        self._origin = {"encoder": encoder_sha256, "dataset": dataset.digest}
        self.folder = folder / f"{encoder_sha256[:16]}-{dataset.digest[:16]}"

    def split(self, split: str, world: World = ALONE) -> dict[str, Tensor]:
        """Embeddings [E, D] of every recording of ``split`` by name, on every rank.

        Each rank computes its share of those that are missing; an epoch without a channel is nan.

        Raises:
            DatasetError: the split is empty.
            ShardError: an epoch is corrupt.
        """
        names = [self._dataset.names[row] for row in self._dataset.select(split, self._encoder.channels)]
        missing = [name for name in names if self._stored(name) is None]
        mine = missing[world.rank :: world.size]
        for number, name in enumerate(mine, 1):
            self._store(name)
            if world.is_main and (number == len(mine) or number % 20 == 0):
                print(f"embedded {number} of {len(mine)} recordings of {split}", file=sys.stderr, flush=True)
        if world.size > 1:
            dist.barrier()
        return {name: self.get(name) for name in names}

    def get(self, record: str) -> Tensor:
        """Embeddings [E, D] of one recording, computed if they are not stored."""
        found = self._stored(record)
        return self._store(record) if found is None else found

    def _path(self, record: str) -> Path:
        return self.folder / f"{record}.safetensors"

    def _stored(self, record: str) -> Tensor | None:
        try:
            with safe_open(self._path(record), framework="pt") as file:
                embedding, metadata = file.get_tensor("embedding"), file.metadata()
        except (FileNotFoundError, SafetensorError):
            return None
        return embedding if metadata == self._origin | {"sha256": _digest(embedding)} else None

    def _store(self, record: str) -> Tensor:
        epochs = stored_epochs(self._dataset, record, self._encoder.channels, self._chunk)
        embedding = embed(self._encoder, epochs)
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{record}.{os.getpid()}.tmp"
        save_file({"embedding": embedding}, temporary, metadata=self._origin | {"sha256": _digest(embedding)})
        temporary.replace(self._path(record))
        return embedding


def _digest(embedding: Tensor) -> str:
    return hashlib.sha256(embedding.numpy().tobytes()).hexdigest()
