"""Embeddings of whole nights by one encoder, kept on disk for the next job that needs them.

One safetensors file a recording, under a folder named for all that decides it (see :class:`EmbeddingCache`), written
atomically. A file that is damaged, or was made from anything else, is made again.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sleepfm.config import digest
from sleepfm.data.dataset import Dataset
from sleepfm.data.mixture import Mixture
from sleepfm.errors import EmptySplitError, SleepFMError
from sleepfm.inference.embed import Epochs, embed, frame_features, recordings_ahead
from sleepfm.models.build import model_config
from sleepfm.models.downstream import Downstream
from sleepfm.registry.package import save_tensors, sha256_file
from sleepfm.training.ranks.distributed import agree, gather_json
from sleepfm.training.ranks.shared_work import ALONE, SharedWork
from sleepfm.wording import counted


@lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256 of the source files that decide what an embedding is: models, reading of shards, encoding, arithmetic, and this
    module.
    """
    package = Path(__file__).resolve().parents[1]
    own = [package / "inference" / "embed.py", package / "training" / "ranks" / "precision.py", Path(__file__).resolve()]
    files = sorted([*package.glob("models/*.py"), *package.glob("data/*.py"), *own])
    return digest([[path.relative_to(package).as_posix(), sha256_file(path)] for path in files])


# Epochs that pass through the encoder at once.
CHUNK = 64


class EmbeddingCache:
    """Embeddings of ``dataset`` by ``encoder``, whose weights have the digest ``encoder_sha256``, by the ranks of ``work``.

    With ``on_paper`` there are zeros in their place: nothing is computed or stored, and only shapes are right.

    Kept under all that decides them: weights, the model's configuration (the number of heads, say, is in no weight), type and
    device of the computation, code, and data set.
    """

    def __init__(
        self,
        folder: Path,
        dataset: Dataset,
        encoder: Any,
        encoder_sha256: str,
        chunk: int = CHUNK,
        work: SharedWork = ALONE,
        on_paper: bool = False,
    ) -> None:
        self._dataset, self._encoder, self._chunk, self._work, self._on_paper = dataset, encoder, chunk, work, on_paper
        dtype = "autocast bf16" if work.dtype == "bf16" else str(next(encoder.parameters()).dtype)
        self._origin = {
            "encoder": encoder_sha256,
            "model": digest(model_config(encoder)),
            "compute": f"{dtype} {work.device.type}",
            "code": code_digest(),
            "dataset": dataset.digest,
            **self._also(),
        }
        self.folder = folder / f"{encoder_sha256[:16]}-{dataset.digest[:16]}-{digest(self._origin)[:16]}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is kept of an epoch."""
        return (self._encoder.dim,)

    def _also(self) -> dict[str, str]:
        """What else decides it."""
        return {}

    def _encoded(self, epochs: Iterable[Epochs]) -> Tensor:
        return embed(self._encoder, epochs)

    def split(self, split: str, only: frozenset[int] | None = None) -> dict[str, Tensor]:
        """Embeddings [E, D] of every recording of ``split`` by name, of those in the rows ``only`` if these are given; the same
        numbers on every rank; they stay in their files and are mapped into memory. Every rank calls this.

        The ranks divide the recordings that no node has. What a node then lacks, or has with other bytes, it gets from the first
        that has it, so that nodes with different processors learn from the same numbers. An epoch without a channel is nan.

        Raises:
            DatasetError: the split, or what ``only`` leaves of it, is empty.
            ShardError: an epoch is corrupt.
            StorageError: a file cannot be written.
        """
        rows = self._dataset.select(split, self._encoder.channels).tolist()
        if only is not None:
            rows = [row for row in rows if row in only]
            if not rows:
                raise EmptySplitError(
                    f"{self._dataset.origin}: no recording of split {split!r} was drawn; raise data.label_fraction"
                )
        if self._on_paper:
            # One row in memory for all epochs.
            zeros = torch.zeros(1, *self.shape)
            return {self._dataset.names[row]: zeros.expand(int(self._dataset.n_epochs[row]), *self.shape) for row in rows}
        world = self._work.world
        nodes = sorted(set(gather_json(world, world.rank - world.local_rank)))
        missing = [row for row, digests in zip(rows, self._held(rows, nodes), strict=True) if not any(digests)]
        if missing:
            costs = self._dataset.n_epochs[missing].tolist()
            self._work.each(f"embedding {split}", costs, lambda share: self._embed(split, [missing[n] for n in share]))
        if len(nodes) > 1:
            self._exchange(rows, nodes)
        nights = {}
        for row in rows:
            nights[self._dataset.names[row]] = self.get(self._dataset.names[row])
            self._work.goes_on()
        return nights

    def get(self, record: str) -> Tensor:
        """Embeddings [E, D] of one recording, computed if they are not stored."""
        found = self._stored(record)
        if found is not None:
            return found
        with torch.no_grad(), self._work.precision():
            return next(self._computed([self._dataset.index_of(record)]))

    def _embed(self, split: str, rows: Sequence[int]) -> Iterator[tuple[Tensor, ...]]:
        """Store the embeddings of ``rows``; nothing of them is to be gathered."""
        for number, _ in enumerate(self._computed(rows), 1):
            if self._work.world.is_main and (number == len(rows) or number % 20 == 0):
                print(f"embedded {number} of {counted(len(rows), 'recording')} of {split}", file=sys.stderr, flush=True)
            yield ()

    def _computed(self, rows: Sequence[int]) -> Iterator[Tensor]:
        """The embeddings of ``rows``, which are then stored."""
        encoder = self._encoder
        before = next(encoder.parameters()).device
        encoder.to(self._work.device)
        try:
            for row, epochs in recordings_ahead(self._dataset, rows, encoder.channels, self._chunk, self._work.goes_on):
                embedding = self._encoded(epochs)
                self._store(self._dataset.names[row], embedding)
                yield embedding
        finally:
            encoder.to(before)

    def _held(self, rows: Sequence[int], nodes: Sequence[int]) -> list[list[int]]:
        """The beginning of the digest of each of ``rows`` as each node has it, [N, nodes]; 0 where it has none.

        ``nodes`` are the first ranks of all nodes. The ranks of a node divide the work of looking.
        """
        world = self._work.world
        held = torch.zeros(len(rows), len(nodes), dtype=torch.int64)
        for number in range(world.local_rank, len(rows), world.local_size):
            embedding = self._stored(self._dataset.names[rows[number]])
            if embedding is not None:
                held[number, nodes.index(world.rank - world.local_rank)] = 1 + int(_digest(embedding)[:15], 16)
            self._work.goes_on()
        if world.size > 1:
            held = held.to(world.device)
            dist.all_reduce(held)
        return held.tolist()

    def _exchange(self, rows: Sequence[int], nodes: Sequence[int]) -> None:
        """Give every node those of ``rows`` that it lacks or has otherwise than the first node that has them."""
        world, failure = self._work.world, None
        own = nodes.index(world.rank - world.local_rank)
        for row, digests in zip(rows, self._held(rows, nodes), strict=True):
            source = next(number for number, found in enumerate(digests) if found)
            if len(set(digests)) == 1:
                continue
            embedding = torch.empty(int(self._dataset.n_epochs[row]), *self.shape)
            if world.rank == nodes[source]:
                embedding.copy_(self.get(self._dataset.names[row]))
            embedding = embedding.to(world.device)
            dist.broadcast(embedding, src=nodes[source])
            if world.local_rank == 0 and digests[own] != digests[source]:
                try:
                    self._store(self._dataset.names[row], embedding.cpu())
                except SleepFMError as error:
                    failure = error
            self._work.goes_on()
        # Only then the other ranks of a node find the files.
        agree(world, failure)

    def _path(self, record: str) -> Path:
        return self.folder / f"{record}.safetensors"

    def _stored(self, record: str) -> Tensor | None:
        try:
            with safe_open(self._path(record), framework="pt") as file:
                embedding, metadata = file.get_tensor("embedding"), file.metadata()
        except (FileNotFoundError, SafetensorError):
            return None
        return embedding if metadata == self._origin | {"sha256": _digest(embedding)} else None

    def _store(self, record: str, embedding: Tensor) -> None:
        save_tensors(self._path(record), {"embedding": embedding}, self._origin | {"sha256": _digest(embedding)})


class FrameCache(EmbeddingCache):
    """The same of what the heads of ``model`` see of every frame, [E, F, D']: tokens of its frozen encoder, and amplitudes.

    Models of different tasks on one encoder share it.
    """

    def __init__(self, folder: Path, dataset: Dataset, model: Downstream, *settings: Any) -> None:
        """``settings`` are those of :class:`EmbeddingCache` from ``encoder_sha256`` on."""
        self._model = model
        super().__init__(folder, dataset, model.encoder, *settings)

    @property
    def shape(self) -> tuple[int, ...]:
        """Frames and width."""
        return (len(self._model.encoder.frame_times), self._model.feature_dim)

    def _also(self) -> dict[str, str]:
        return {"frames": ",".join(("tokens", *self._model.config.amplitudes))}

    def _encoded(self, epochs: Iterable[Epochs]) -> Tensor:
        return frame_features(self._model, epochs)


def caches_of(
    mixture: Mixture, folder: str | Path, encoder: Any, encoder_sha256: str, *settings: Any
) -> dict[str, EmbeddingCache]:
    """The cache of each source by its name; ``settings`` are those of :class:`EmbeddingCache` from ``chunk`` on."""
    return {
        source.name: EmbeddingCache(Path(folder), source.dataset, encoder, encoder_sha256, *settings)
        for source in mixture.sources
    }


def _digest(embedding: Tensor) -> str:
    return hashlib.sha256(embedding.numpy().tobytes()).hexdigest()
