"""The epochs of a night, from its shards or as prepared, and what an encoder makes of them, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sleepfm.constants import EPOCH_SAMPLES
from sleepfm.data.ahead import fetching_ahead
from sleepfm.data.dataset import Dataset
from sleepfm.data.epochs import stored_and_read
from sleepfm.data.in_order import iter_record
from sleepfm.data.prefetch import Ahead
from sleepfm.models.device import Precision, full_precision, products_in
from sleepfm.models.downstream import Downstream
from sleepfm.models.inputs import held_channels
from sleepfm.signals.prepare import PreparedRecording
from sleepfm.signals.quality import unusable
from sleepfm.signals.rates import recording_rate

# Signals [B, C, 3000] and presence [B, C] of consecutive epochs.
Epochs = tuple[Tensor, Tensor]

CHUNKS_AHEAD = 4
# Epochs of a night that pass through an encoder at once where a night is scored: an encoder of base size takes 14 MB for each.
NIGHT_CHUNK = 32


def stored_epochs(dataset: Dataset, record: str, channels: Sequence[str], chunk: int) -> Iterator[Epochs]:
    """The epochs of a recording of ``dataset`` in order, at most ``chunk`` at a time."""
    for batch in iter_record(dataset, record, channels, length=1, windows=chunk, labels=()):
        yield batch.signals[:, 0], batch.present[:, 0]


def recordings_ahead(
    dataset: Dataset, rows: Sequence[int], channels: Sequence[str], chunk: int, at_chunk: Callable[[], None] | None = None
) -> Iterator[tuple[int, Iterator[Epochs]]]:
    """Each of ``rows``, recordings of ``dataset`` in shard order, with its epochs as :func:`stored_epochs`; a thread reads ahead.

    The epochs of a recording are taken before the next one is asked for. ``at_chunk`` is called with every chunk of them.
    """

    def chunks() -> Iterator[tuple[int, Epochs | None]]:
        for row in fetching_ahead(dataset, rows, channels):
            # Also of a recording without an epoch.
            yield row, None
            for epochs in stored_epochs(dataset, dataset.names[row], channels, chunk):
                yield row, epochs

    with Ahead(chunks(), depth=CHUNKS_AHEAD) as ahead:
        for row, group in groupby(ahead, itemgetter(0)):
            yield row, _given(group, at_chunk)


def _given(chunks: Iterable[tuple[int, Epochs | None]], at_chunk: Callable[[], None] | None) -> Iterator[Epochs]:
    for _, epochs in chunks:
        if epochs is not None:
            yield epochs
            if at_chunk is not None:
                at_chunk()


def prepared_epochs(night: PreparedRecording, channels: Sequence[str], chunk: int) -> Iterator[Epochs]:
    """The epochs of a prepared night, bit-equal to what its shards would give.

    Samples are clipped and rounded, and channels of low rate thinned out and interpolated, as in storage. A channel is absent,
    and 0, in the epochs in which it is unusable (:data:`sleepfm.signals.quality.UNUSABLE`).
    """
    for start in range(0, night.n_epochs, chunk):
        count = min(chunk, night.n_epochs - start)
        signals = np.zeros((count, len(channels), EPOCH_SAMPLES), np.float32)
        present = np.zeros((count, len(channels)), bool)
        for column, name in enumerate(channels):
            if name in night.channels:
                rate = recording_rate(night.provenance, name)
                rows = stored_and_read(name, night.channels[name], rate, start, start + count)
                present[:, column] = ~unusable(night.quality[name][start : start + count])
                signals[:, column] = np.where(present[:, column, None], rows, np.float32(0.0))
        yield torch.from_numpy(signals), torch.from_numpy(present)


def epochs_with_any(night: PreparedRecording, channels: Sequence[str]) -> NDArray[np.bool_]:
    """Epochs [E] in which one of ``channels`` is usable; all where none is named."""
    if not channels:
        return np.ones(night.n_epochs, bool)
    there = [~unusable(night.quality[name]) for name in channels if name in night.channels]
    return np.any(there, axis=0) if there else np.zeros(night.n_epochs, bool)


def counted(epochs: Iterable[Epochs], progress: Callable[[int], object] | None) -> Iterator[Epochs]:
    """``epochs``; ``progress`` is called with the number of those in a chunk when the next one is asked for."""
    for signals, present in epochs:
        yield signals, present
        if progress is not None:
            progress(len(signals))


def embed(
    encoder: Any,
    epochs: Iterable[Epochs],
    keep: Sequence[bool] | None = None,
    precision: Precision = "fp32",
    n_epochs: int | None = None,
) -> Tensor:
    """Embeddings [E, D] of all ``epochs``; an epoch without any channel gives nan.

    Args:
        encoder: a module with ``encode(signals [B, C, T], present [B, C], channels) -> [B, D]`` and the names ``channels``.
        keep: [C], channels the encoder may use; all by default.
        precision: of its products, ``fp32`` or ``bf16``.
        n_epochs: how many there are, where that is known: what is found is then held once, and not twice at the end.
    """
    return encoded(encoder, encoder.encode, (encoder.dim,), epochs, keep, precision, n_epochs)


def embed_frames(encoder: Any, epochs: Iterable[Epochs], keep: Sequence[bool] | None = None) -> Tensor:
    """Frame tokens [E, F, D] of all ``epochs``, as :func:`embed`; their mean over frames is the embedding."""
    shape = (len(encoder.frame_times), encoder.dim)
    return encoded(encoder, encoder.encode_frames, shape, epochs, keep)


def frame_features(
    model: Downstream,
    epochs: Iterable[Epochs],
    keep: Sequence[bool] | None = None,
    precision: Precision = "fp32",
    n_epochs: int | None = None,
) -> Tensor:
    """What the heads of ``model`` see of all ``epochs``, [E, F, D'], as :func:`embed`: frame tokens, behind them amplitudes."""
    shape = (len(model.encoder.frame_times), model.feature_dim)
    return encoded(model, model.frame_features, shape, epochs, keep, precision, n_epochs)


def embed_subsets(encoder: Any, epochs: Iterable[Epochs], subsets: Sequence[Sequence[bool]]) -> Tensor:
    """Embeddings [S, E, D] of all ``epochs`` from each of ``subsets`` [S, C] of the channels, as :func:`embed`.

    Args:
        encoder: a module with ``encode_subsets(signals [B, C, T], present [B, C], subsets [S, C], channels) -> [S, B, D]``
            and the names ``channels``.
    """

    def encode(signals: Tensor, present: Tensor, channels: Sequence[str]) -> Tensor:
        own = [[kept for name, kept in zip(encoder.channels, subset, strict=True) if name in channels] for subset in subsets]
        found = encoder.encode_subsets(signals, present, own, channels)
        usable = (present[None] & torch.tensor(own)[:, None].to(present.device)).any(-1)
        return found.masked_fill(~usable[..., None], torch.nan).transpose(0, 1)

    return encoded(encoder, encode, (len(subsets), encoder.dim), epochs, None).transpose(0, 1)


@full_precision()
@torch.inference_mode()
def encoded(
    encoder: Any,
    encode: Any,
    shape: tuple[int, ...],
    epochs: Iterable[Epochs],
    keep: Sequence[bool] | None,
    precision: Precision = "fp32",
    n_epochs: int | None = None,
) -> Tensor:
    """What ``encode(signals, present, channels)`` of the module ``encoder`` gives for all ``epochs``, [E, *shape]; the rest as
    :func:`embed`.
    """
    device = next(encoder.parameters()).device
    night = torch.empty(n_epochs or 0, *shape)
    rows, done = [night], 0
    for signals, present in epochs:
        there = present if keep is None else present & torch.tensor(keep)
        usable = there.any(dim=1)
        whole = torch.full((len(signals), *shape), torch.nan)
        if usable.any():
            given, held, channels = held_channels(signals[usable], there[usable], encoder.channels)
            with products_in(precision, device):
                found = encode(given.to(device), held.to(device), channels)
            whole[usable] = found.float().cpu()
        if n_epochs is None:
            rows.append(whole)
        else:
            night[done : done + len(whole)] = whole
            done += len(whole)
    return torch.cat(rows) if n_epochs is None else night[:done]
