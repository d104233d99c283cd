"""Embeddings and class probabilities of whole nights, in bounded memory and each epoch once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sleepfm.constants import EPOCH_SAMPLES
from sleepfm.data.dataset import Dataset
from sleepfm.data.evaluation import iter_record
from sleepfm.data.format import CHANNEL_SCALE, INT16_MAX
from sleepfm.models.downstream import Downstream
from sleepfm.signals.prepare import PreparedRecording
from sleepfm.signals.quality import Quality

# Signals [B, C, 3000] and presence [B, C] of consecutive epochs.
Epochs = tuple[Tensor, Tensor]


def stored_epochs(dataset: Dataset, record: str, channels: Sequence[str], chunk: int) -> Iterator[Epochs]:
    """The epochs of a recording of ``dataset`` in order, at most ``chunk`` at a time."""
    for batch in iter_record(dataset, record, channels, length=1, windows=chunk, labels=()):
        yield batch.signals[:, 0], batch.present


def prepared_epochs(night: PreparedRecording, channels: Sequence[str], chunk: int) -> Iterator[Epochs]:
    """The epochs of a prepared night, bit-equal to what its shards would give.

    Samples are clipped and rounded as in storage. A channel is absent from an epoch that lies wholly in a
    gap.
    """
    for start in range(0, night.n_epochs, chunk):
        count = min(chunk, night.n_epochs - start)
        signals = np.zeros((count, len(channels), EPOCH_SAMPLES), np.float32)
        present = np.zeros((count, len(channels)), bool)
        for column, name in enumerate(channels):
            if name in night.channels:
                part = night.channels[name][start * EPOCH_SAMPLES : (start + count) * EPOCH_SAMPLES]
                rows = _as_stored(part.reshape(count, EPOCH_SAMPLES), CHANNEL_SCALE[name])
                gap = (night.quality[name][start : start + count] & Quality.GAP) > 0
                signals[:, column] = rows
                present[:, column] = ~gap | rows.any(axis=1)
        yield torch.from_numpy(signals), torch.from_numpy(present)


@torch.inference_mode()
def embed(encoder: Any, epochs: Iterable[Epochs], keep: Sequence[bool] | None = None) -> Tensor:
    """Embeddings [E, D] of all ``epochs``; an epoch without any channel gives nan.

    Args:
        encoder: a module with ``encode(signals [B, C, T], present [B, C]) -> [B, D]``.
        keep: [C], channels the encoder may use; all by default.
    """
    device = next(encoder.parameters()).device
    rows = [torch.empty(0, encoder.dim)]
    for signals, present in epochs:
        there = present if keep is None else present & torch.tensor(keep)
        usable = there.any(dim=1)
        whole = torch.full((len(signals), encoder.dim), torch.nan)
        if usable.any():
            found = encoder.encode(signals[usable].to(device), there[usable].to(device))
            whole[usable] = found.float().cpu()
        rows.append(whole)
    return torch.cat(rows)


@torch.inference_mode()
def classify_night(model: Downstream, embedding: Tensor, length: int) -> NDArray[np.float64]:
    """Class probabilities [E, K] of a night's embeddings [E, D].

    The context sees windows of ``length`` epochs, as in training, that overlap by half; each epoch is taken
    once, from the window that shows most of its past (for a context that looks both ways, where it is nearest
    the middle). Epochs that are nan (no usable channel) stay nan; the context goes on across them as if they
    were not there.
    """
    probability = np.full((len(embedding), len(model.config.classes)), np.nan)
    usable = torch.isfinite(embedding).all(dim=1)
    if not usable.any():
        return probability
    device = next(model.head.parameters()).device
    night = embedding[usable]
    window = 1 if model.config.context.kind == "none" else min(length, len(night))
    rows = torch.empty(len(night), probability.shape[1], dtype=torch.float64)
    for starts, owners in _windows(len(night), window, model.config.context.bidirectional):
        batch = torch.stack([night[s : s + window] for s in starts]).to(device)
        softmax = model.classify(batch).double().softmax(dim=-1).cpu()
        for row, (start, owned) in enumerate(zip(starts, owners, strict=True)):
            rows[owned] = softmax[row, owned.start - start : owned.stop - start]
    probability[usable.numpy()] = rows.numpy()
    return probability


def _as_stored(samples: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    counts = np.rint(samples * np.float32(1 / scale)).clip(-INT16_MAX, INT16_MAX)
    return np.multiply(counts.astype(np.int16), np.float32(scale), dtype=np.float32)


def _windows(n_epochs: int, length: int, bidirectional: bool, batch: int = 256) -> Iterator[tuple[list[int], list[slice]]]:
    """Batches of window starts with the epochs that each window decides; together every epoch once."""
    stride = max(1, length // 2)
    last = n_epochs - length
    starts = [*range(0, last, stride), last]
    if bidirectional:
        lead = (length - stride) // 2
        edges = [0, *(start + lead for start in starts[1:]), n_epochs]
    else:
        # An epoch belongs to the first window that holds it: the one with most of its past.
        edges = [0, *(start + length for start in starts[:-1]), n_epochs]
    owners = [slice(a, b) for a, b in itertools.pairwise(edges)]
    for first in range(0, len(starts), batch):
        yield starts[first : first + batch], owners[first : first + batch]
