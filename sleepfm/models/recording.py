"""A pretrained encoder and a head that says one thing of a whole recording: a number, or one of several classes.

The epochs of a night are weighed by gated attention, as the instances of a bag are in multiple-instance learning (Ilse et al.
2018, arXiv 1802.04712, equations 8 and 9), so that the order and the number of epochs do not matter.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from sleepfm.config import Config
from sleepfm.errors import ModelError
from sleepfm.models.embedding import BuiltOnEncoder


class PoolConfig(Config):
    """Gated attention of ``heads`` weighings, ``hidden`` wide; ``dropout`` before the last layer."""

    heads: int = Field(default=1, ge=1)
    hidden: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)


class RecordingModelConfig(Config):
    """``classes`` are those of the task in order, or none where it asks for a number; ``encoder`` is the configuration of the
    pretrained model.
    """

    kind: Literal["recording"] = "recording"
    task: str
    classes: tuple[str, ...] = ()
    unit: str = ""
    encoder: dict[str, Any]
    pool: PoolConfig = PoolConfig()


class RecordingModel(BuiltOnEncoder):
    """The encoder, which stays as it is, and the head on the embeddings of a night.

    Embeddings are standardised by ``mean`` and ``std`` ``[D]``; a number is learnt as its distance from ``centre`` in units of
    ``spread``. All four are of the recordings that the head learns from.
    """

    mean: Tensor
    std: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, config: RecordingModelConfig, encoder: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.encoder: Any = cast(Any, encoder)
        self.encoder.drop_pretraining()
        self.encoder.requires_grad_(False)
        dim, pool = self.encoder.dim, config.pool
        self.value, self.gate = nn.Linear(dim, pool.hidden), nn.Linear(dim, pool.hidden)
        self.weigh = nn.Linear(pool.hidden, pool.heads)
        self.dropout = nn.Dropout(pool.dropout)
        self.head = nn.Linear(dim * pool.heads, len(config.classes) or 1)
        for name, fill in (
            ("mean", torch.zeros(dim)),
            ("std", torch.ones(dim)),
            ("centre", torch.zeros(())),
            ("spread", torch.ones(())),
        ):
            self.register_buffer(name, fill)
        self.train(self.training)

    @property
    def channels(self) -> tuple[str, ...]:
        """Canonical channels of the encoder."""
        return self.encoder.channels

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.encoder.dim

    def train(self, mode: bool = True) -> RecordingModel:
        """The encoder stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def attention(self, embedding: Tensor, valid: Tensor) -> Tensor:
        """Weights ``[B, E, heads]`` of the epochs ``valid`` ``[B, E]`` of nights ``embedding`` ``[B, E, D]``; 0 for the others.

        Raises:
            ModelError: other shapes.
        """
        return self._attention(self._standardised(embedding, valid), valid)

    def forward(self, embedding: Tensor, valid: Tensor) -> Tensor:
        """Embeddings ``[B, E, D]`` of nights, of which the epochs ``valid`` ``[B, E]`` count, to logits ``[B, K]`` or
        standardised numbers ``[B, 1]``. Of a night without such an epoch nothing is known: nan.

        Raises:
            ModelError: other shapes.
        """
        x = self._standardised(embedding, valid)
        pooled = torch.einsum("beh,bed->bhd", self._attention(x, valid), x).flatten(1)
        found = self.head(self.dropout(pooled))
        return found.masked_fill(~valid.any(1, keepdim=True), torch.nan)

    def predict(self, embedding: Tensor, valid: Tensor) -> Tensor:
        """The same as probabilities ``[B, K]`` of the classes, or numbers ``[B, 1]`` in ``config.unit``."""
        found = self(embedding, valid).float()
        return found.softmax(-1) if self.config.classes else found * self.spread + self.centre

    @torch.no_grad()
    def of_night(self, embedding: Tensor) -> Tensor:
        """What :meth:`predict` says ``[K]`` of one night: ``embedding`` ``[E, D]`` is nan in epochs that have none, and so is
        what is found if no epoch has one.

        Raises:
            ModelError: another shape.
        """
        valid = embedding.isfinite().all(-1)
        return self.predict(embedding.masked_fill(~valid[:, None], 0.0)[None], valid[None])[0]

    def _standardised(self, embedding: Tensor, valid: Tensor) -> Tensor:
        if embedding.ndim != 3 or embedding.shape[-1] != self.dim or valid.shape != embedding.shape[:2]:
            raise ModelError(
                f"expected embeddings [B, E, {self.dim}] and valid [B, E], found {list(embedding.shape)} and {list(valid.shape)}"
            )
        return ((embedding - self.mean) / self.std).masked_fill(~valid[..., None], 0.0)

    def _attention(self, x: Tensor, valid: Tensor) -> Tensor:
        score = self.weigh(torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x))).float()
        # Of a night without a valid epoch all are weighed alike, and its result is nan.
        lowest = torch.finfo(score.dtype).min
        return score.masked_fill(~valid[..., None], lowest).softmax(1).to(x.dtype)
