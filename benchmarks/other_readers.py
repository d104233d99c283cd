"""What others read epochs with: WebDataset's own pipeline over our tars, and one Parquet file an epoch (the layout of OSF)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from noise_nights import CHANNELS

PARQUET_EPOCHS = 2_000


def make_parquet(out: Path, stream: Any) -> None:
    """Epochs of ``stream``, a file each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir(parents=True)
    for start in range(0, PARQUET_EPOCHS, 100):
        signals = stream.batch(start, 100).signals[:, 0].numpy()
        for number, epoch in enumerate(signals):
            table = pa.table(dict(zip(CHANNELS, epoch, strict=True)))
            pq.write_table(table, out / f"{start + number:06d}.parquet")


def webdataset_batches(path: Path, channels: tuple[str, ...], batch: int) -> Iterator[int]:
    """A user's loader of the same tars."""
    import torch
    import webdataset as wds

    def epochs(samples: Iterator[dict[str, Any]]) -> Iterator[torch.Tensor]:
        for sample in samples:
            for channel in channels:
                for epoch in sample[f"{channel.lower()}.npy"]:
                    yield torch.from_numpy(epoch * np.float32(32 / 32767))

    urls = [str(tar) for tar in sorted((path / "shards").glob("*.tar"))]
    data = wds.DataPipeline(
        wds.SimpleShardList(urls, seed=0),
        wds.shuffle(8),
        wds.tarfile_to_samples(),
        wds.decode(),
        epochs,
        wds.shuffle(1000),
        wds.batched(batch, collation_fn=torch.stack),
    )
    while True:
        for read in data:
            yield len(read)


def parquet_batches(folder: Path, columns: tuple[str, ...], size: int) -> Iterator[int]:
    import pyarrow.parquet as pq
    import torch

    files = sorted(folder.glob("*.parquet"))
    order = np.random.default_rng(0)
    each = size // len(columns)
    while True:
        for begin in range(0, len(files) - each, each):
            chosen = order.choice(len(files), each, replace=False) if begin == 0 else order.integers(0, len(files), each)
            tables = [pq.read_table(files[index], columns=list(columns), memory_map=False) for index in chosen]
            batch = torch.from_numpy(np.stack([np.stack([column.to_numpy() for column in table.columns]) for table in tables]))
            yield len(batch) * len(columns)
