"""Embeddings of whole nights by one encoder, kept on disk for the next job that needs them.

One safetensors file a recording, under a folder named for all that decides it (see :class:`EmbeddingCache`), written
atomically. A file that is damaged, or was made from anything else, is made again.
"""

from __future__ import annotations

import hashlib
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sleepfm.config import digest
from sleepfm.data.ahead import fetching_ahead
from sleepfm.data.dataset import Dataset
from sleepfm.inference.embed import embed, stored_epochs
from sleepfm.models.build import model_config
from sleepfm.registry.package import save_tensors, sha256_file
from sleepfm.training.ranks.distributed import World

ALONE = World(0, 1, 0, 1)


@lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256 of the source files that decide what an embedding is: models, reading of shards, encoding, and this module."""
    package = Path(__file__).resolve().parents[1]
    own = [package / "inference" / "embed.py", Path(__file__).resolve()]
    files = sorted([*package.glob("models/*.py"), *package.glob("data/*.py"), *own])
    return digest([[path.relative_to(package).as_posix(), sha256_file(path)] for path in files])


class EmbeddingCache:
    """Embeddings of ``dataset`` by ``encoder``, whose weights have the digest ``encoder_sha256``.

    Kept under all that decides them: weights, the model's configuration (the number of heads, say, is in no weight), type and
    device of the computation, code, and data set.
    """

    def __init__(self, folder: Path, dataset: Dataset, encoder: Any, encoder_sha256: str, chunk: int = 64) -> None:
        self._dataset, self._encoder, self._chunk = dataset, encoder, chunk
        parameter = next(encoder.parameters())
        self._origin = {
            "encoder": encoder_sha256,
            "model": digest(model_config(encoder)),
            "compute": f"{parameter.dtype} {parameter.device.type}",
            "code": code_digest(),
            "dataset": dataset.digest,
        }
        self.folder = folder / f"{encoder_sha256[:16]}-{dataset.digest[:16]}-{digest(self._origin)[:16]}"

    def split(self, split: str, world: World = ALONE) -> dict[str, Tensor]:
        """Embeddings [E, D] of every recording of ``split`` by name, on every rank; they stay in their files and are
        mapped into memory.

        Each rank computes its share of those that are missing; where nodes do not share the folder, the ranks of a node then
        compute what it still lacks. An epoch without a channel is nan.

        Raises:
            DatasetError: the split is empty.
            ShardError: an epoch is corrupt.
        """
        rows = self._dataset.select(split, self._encoder.channels).tolist()
        names = [self._dataset.names[row] for row in rows]
        self._embed(split, rows[world.rank :: world.size], world)
        if world.size > world.local_size:
            self._embed(split, rows[world.local_rank :: world.local_size], world)
        return {name: self.get(name) for name in names}

    def _embed(self, split: str, share: list[int], world: World) -> None:
        """Those of ``share`` that are missing, on every rank its own; ends when all have."""
        # Divided before looking: what is missing changes as soon as another rank writes.
        mine = [row for row in share if self._stored(self._dataset.names[row]) is None]
        for number, row in enumerate(fetching_ahead(self._dataset, mine), 1):
            self._store(self._dataset.names[row])
            if world.is_main and (number == len(mine) or number % 20 == 0):
                print(f"embedded {number} of {len(mine)} recordings of {split}", file=sys.stderr, flush=True)
        if world.size > 1:
            dist.barrier()

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
        save_tensors(self._path(record), {"embedding": embedding}, self._origin | {"sha256": _digest(embedding)})
        return embedding


def _digest(embedding: Tensor) -> str:
    return hashlib.sha256(embedding.numpy().tobytes()).hexdigest()
