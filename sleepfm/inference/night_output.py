"""A downstream model applied to one night: the one way from epochs to probabilities, for files and for shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sleepfm.inference.embed import Epochs, embed, embed_frames
from sleepfm.inference.windows import classify_night, locate_night
from sleepfm.models.downstream import Downstream


@dataclass(frozen=True)
class NightOutput:
    """What a model gives for one night; nan where an epoch has no usable channel.

    Attributes:
        embedding: [E, D], by its encoder.
        epochs: [E, K], probability of each class.
        seconds: [30 E], probability that an event goes on; only with an event head on frames.
    """

    embedding: Tensor
    epochs: NDArray[np.float64]
    seconds: NDArray[np.float64] | None = None

    @property
    def positive(self) -> NDArray[np.float64]:
        """Probability of an event, of tasks of two classes: of seconds [30 E] where there are, else of epochs [E]."""
        return self.epochs[:, 1] if self.seconds is None else self.seconds


def apply_to_epochs(
    model: Downstream,
    epochs: Iterable[Epochs],
    window: int,
    keep: Sequence[bool] | None = None,
    embedding: Tensor | None = None,
) -> NightOutput:
    """What ``model`` (in eval mode) gives for a night.

    Args:
        epochs: of the whole night in order, with the model's channels.
        window: epochs that the temporal context sees at once, as in training.
        keep: [C], channels the encoder may use; all by default.
        embedding: [E, D] of the same ``epochs`` by an equal encoder, where there is one already; what needs no frames then
            does not encode them again.
    """
    if model.config.events is not None:
        frames = embed_frames(model.encoder, epochs, keep)
        embedding, seconds = frames.mean(1), locate_night(model, frames, window)
        return NightOutput(embedding, classify_night(model, embedding, window), seconds)
    return apply_to_embedding(model, embed(model.encoder, epochs, keep) if embedding is None else embedding, window)


def apply_to_embedding(model: Downstream, embedding: Tensor, window: int) -> NightOutput:
    """What ``model`` gives for every epoch of a night from its ``embedding`` [E, D]; seconds need frames."""
    return NightOutput(embedding, classify_night(model, embedding, window))
