"""Class probabilities of whole nights, of epochs and of seconds, in bounded memory and each once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.models.device import full_precision
from sleepfm.models.downstream import Downstream

_EPOCHS_AT_ONCE = 64


@torch.inference_mode()
def classify_night(
    model: Downstream, embedding: Tensor, length: int, assessed: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Class probabilities [E, K] of a night's embeddings [E, D].

    The context sees windows of ``length`` epochs, as in training, that overlap by half; each epoch is taken
    once, from the window that shows most of its past (for a context that looks both ways, where it is nearest
    the middle). Epochs that are nan (no usable channel) or not ``assessed`` [E] (all are by default) are nan; the context goes on
    across them as if they were not there. Logits are divided by the temperature of the model's usage, where it has one.
    """
    context = model.config.context
    window = 1 if context.kind == "none" else length
    temperature = model.usage.temperature if model.usage is not None else 1.0
    classify = _softmax(lambda batch: model.classify(batch) / temperature)
    return _by_windows(model, classify, embedding, window, context.bidirectional, (len(model.config.classes),), assessed)


@torch.inference_mode()
def locate_night(
    model: Downstream, frames: Tensor, length: int, assessed: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Probability [30 E, 1 + K] that an event goes on in each second, and of each kind that the head tells apart if one does, of
    a night's frame tokens [E, F, D].

    Windows and epochs without a channel as in :func:`classify_night`. Raises :class:`ModelError` for a model
    without event head.
    """
    events = model.config.events
    both_ways = events is not None and events.context.bidirectional
    kinds = len(model.config.kinds)
    # Behind the two logits of an event stand those of its kinds.
    locate = _softmax(model.locate, 2)
    seconds = _by_windows(model, locate, frames, length, both_ways, (EPOCH_SECONDS, 2 + kinds), assessed)
    return seconds[..., 1:].reshape(-1, 1 + kinds)


def _softmax(function: Callable[[Tensor], Tensor], first: int | None = None) -> Callable[[Tensor], Tensor]:
    """``function`` with the softmax over the last dimension of its logits, over the ``first`` and the rest apart."""

    def probabilities(batch: Tensor) -> Tensor:
        logits = function(batch).double()
        parts = [logits] if first is None else [logits[..., :first], logits[..., first:]]
        return torch.cat([part.softmax(dim=-1) for part in parts], dim=-1)

    return probabilities


@full_precision()
def _by_windows(
    model: Downstream,
    function: Callable[[Tensor], Tensor],
    night: Tensor,
    length: int,
    bidirectional: bool,
    shape: tuple[int, ...],
    assessed: NDArray[np.bool_] | None,
) -> NDArray[np.float64]:
    """``function``, [W, L, ...] to probabilities [W, L, *shape], over windows of a night [E, ...]: [E, *shape]."""
    probability = np.full((len(night), *shape), np.nan)
    # A few epochs at a time: what a night of frames makes at once is as large as itself.
    usable = torch.cat([epochs.flatten(1).isfinite().all(dim=1) for epochs in night.split(_EPOCHS_AT_ONCE)])
    if assessed is not None:
        usable &= torch.from_numpy(assessed)
    if not usable.any():
        return probability
    device = next(model.head.parameters()).device
    (places,) = usable.nonzero(as_tuple=True)
    window = min(length, len(places))
    rows = torch.empty(len(places), *shape, dtype=torch.float64)
    # Frames are some thirty times an embedding: fewer windows at once.
    for starts, owners in _windows(len(places), window, bidirectional, batch=256 if night.ndim == 2 else 16):
        batch = torch.stack([night[places[s : s + window]] for s in starts]).to(device)
        softmax = function(batch).cpu()
        for row, (start, owned) in enumerate(zip(starts, owners, strict=True)):
            rows[owned] = softmax[row, owned.start - start : owned.stop - start]
    probability[usable.numpy()] = rows.numpy()
    return probability


def _windows(n_epochs: int, length: int, bidirectional: bool, batch: int) -> Iterator[tuple[list[int], list[slice]]]:
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
