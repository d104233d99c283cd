"""A downstream model applied to one night: the one way from epochs to probabilities, for files and for shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sleepfm.inference.embed import Epochs, encoded, frame_features
from sleepfm.inference.windows import classify_night, locate_night
from sleepfm.models.device import Precision
from sleepfm.models.downstream import Downstream


@dataclass(frozen=True)
class NightOutput:
    """What a model gives for one night; nan where an epoch has no usable channel.

    Attributes:
        embedding: [E, D], what it classifies an epoch by.
        epochs: [E, K], probability of each class.
        seconds: [30 E], probability that an event goes on; only with an event head on frames.
        kinds: [30 E, K], probability of each kind of event that the head tells apart, if one goes on; only with such a head.
        frames: [E, F, D'], what an event head saw.
    """

    embedding: Tensor
    epochs: NDArray[np.float64]
    seconds: NDArray[np.float64] | None = None
    kinds: NDArray[np.float64] | None = None
    frames: Tensor | None = None

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
    assessed: NDArray[np.bool_] | None = None,
    frames: Tensor | None = None,
    precision: Precision = "fp32",
) -> NightOutput:
    """What ``model`` (in eval mode) gives for a night.

    Args:
        epochs: of the whole night in order, with the model's channels.
        window: epochs that the temporal context sees at once, as in training.
        keep: [C], channels the encoder may use; all by default.
        embedding: [E, D] of the same ``epochs``, where a model with an equal encoder and the same band powers has made them;
            what needs no frames then does not encode them again.
        assessed: [E], epochs that the task can be assessed in (:attr:`Downstream.evidence`); all by default. The others are as
            epochs without a usable channel, but in the embedding.
        frames: [E, F, D'] of the same ``epochs``, where a model that sees the same of them (``beside_tokens``) has made them.
        precision: of the encoder's products, ``fp32`` or ``bf16``; context and heads compute in fp32.
    """
    n_epochs = None if assessed is None else len(assessed)
    if model.config.events is not None:
        if frames is None:
            frames = frame_features(model, epochs, keep, precision, n_epochs)
        return apply_to_frames(model, frames, window, assessed)
    if embedding is None:
        embedding = encoded(model, model.embed_epochs, (model.embedding_dim,), epochs, keep, precision, n_epochs)
    return apply_to_embedding(model, embedding, window, assessed)


def apply_to_frames(model: Downstream, frames: Tensor, window: int, assessed: NDArray[np.bool_] | None = None) -> NightOutput:
    """What ``model``, which has an event head, gives for a night from the features [E, F, D'] of its frames."""
    found = apply_to_embedding(model, model.embedding_of(frames), window, assessed)
    seconds = locate_night(model, frames, window, assessed)
    kinds = seconds[:, 1:] if seconds.shape[1] > 1 else None
    return replace(found, seconds=seconds[:, 0], kinds=kinds, frames=frames)


def apply_to_embedding(
    model: Downstream, embedding: Tensor, window: int, assessed: NDArray[np.bool_] | None = None
) -> NightOutput:
    """What ``model`` gives for every epoch of a night from its ``embedding`` [E, D]; seconds need frames."""
    return NightOutput(embedding, classify_night(model, embedding, window, assessed))
