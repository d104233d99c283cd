"""The third pretraining stage: temporal context learnt without labels, by predicting the embeddings of masked epochs from the
rest of the night.

The encoder below it stays as it is. Neighbouring epochs are much alike, so whole spans are masked: what stands in the middle of
five minutes cannot be copied from the epoch beside it.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from sleepfm.config import Config
from sleepfm.errors import ModelError
from sleepfm.models import guards
from sleepfm.models.context import ContextConfig, TemporalContext, build_context
from sleepfm.models.embedding import BuiltOnEncoder
from sleepfm.models.losses import LossOutput, masked_reconstruction
from sleepfm.models.masking import hidden, keep_indices, kept_count


class MaskedContextConfig(Config):
    """``encoder`` is the configuration of the pretrained model; ``length`` epochs make a sequence, of which ``mask_ratio`` are
    hidden, ``span`` neighbours at a time.
    """

    kind: Literal["context"] = "context"
    encoder: dict[str, Any] = {}
    context: ContextConfig = ContextConfig(bidirectional=True)
    length: int = Field(1400, ge=2)
    span: int = Field(10, ge=1)
    mask_ratio: float = Field(0.4, gt=0, lt=1)

    @field_validator("context")
    @classmethod
    def _looks_along(cls, context: ContextConfig) -> ContextConfig:
        if context.kind == "none":
            raise ValueError("kind none has nothing to learn; use mamba, lstm or attention")
        return context

    @property
    def spans(self) -> int:
        """Spans in a sequence, the last one possibly shorter."""
        return -(-self.length // self.span)


class MaskedContext(BuiltOnEncoder):
    """A frozen encoder, the context to be trained on its embeddings, and what predicts masked ones.

    Args:
        config: dimensions; its ``encoder`` is replaced by that of ``encoder``.
        encoder: a SynthSleepNet or NeuroNet, taken over without what only its own pretraining needs, bit-identical and in eval
            mode for good.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: MaskedContextConfig, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder: Any = cast(Any, encoder)
        self.encoder.drop_pretraining()
        self.encoder.requires_grad_(False)
        self.config = config.model_copy(update={"encoder": self.encoder.config.model_dump(mode="json")})
        dim = self.encoder.dim
        self.context = cast(TemporalContext, build_context(config.context, dim))
        # As large as a normalised embedding: at zero Mamba's gate is shut, and no gradient passes.
        self.mask_token = nn.Parameter(torch.randn(dim))
        self.predict = nn.Linear(dim, dim)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.train(self.training)

    @property
    def channels(self) -> tuple[str, ...]:
        """Canonical channels of the encoder."""
        return self.encoder.channels

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.encoder.dim

    @property
    def noise_shape(self) -> tuple[int]:
        """Shape of one sequence's masking noise: a draw for every span."""
        return (self.config.spans,)

    def train(self, mode: bool = True) -> MaskedContext:
        """The encoder stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def standardise(self, mean: Tensor, std: Tensor) -> None:
        """Set the statistics ``[D]`` of the embeddings, in whose terms masked ones are predicted."""
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=1e-6))

    def forward(self, embedding: Tensor, valid: Tensor, noise: Tensor) -> LossOutput:
        """The loss of embeddings ``[B, L, D]`` with the existing epochs ``valid`` ``[B, L]``; masks come from ``noise``
        ``[B, *noise_shape]`` alone.

        The squared error of masked epochs in units of each feature's variance over the data set: 1 is what predicting the mean
        reaches.

        Raises:
            ModelError: other shapes.
        """
        config = self.config
        expected = (config.length, self.dim)
        if embedding.ndim != 3 or tuple(embedding.shape[1:]) != expected or embedding.shape[:2] != valid.shape:
            raise ModelError(
                f"expected embeddings [B, {expected[0]}, {expected[1]}] and existing epochs [B, {expected[0]}], "
                f"found {list(embedding.shape)} and {list(valid.shape)}"
            )
        if tuple(noise.shape) != (embedding.shape[0], *self.noise_shape):
            raise ModelError(f"expected noise {[embedding.shape[0], *self.noise_shape]}, found {list(noise.shape)}")
        keep = keep_indices(noise, kept_count(config.spans, config.mask_ratio))
        masked = hidden(keep, config.spans).repeat_interleave(config.span, dim=1)[:, : config.length] & valid
        # The normalisation sees the epochs that may be seen; masked ones enter as a learned token.
        seen = self.context[0](embedding, valid & ~masked)
        out = self.context.mix(torch.where(masked[..., None], self.mask_token.to(seen.dtype), seen), valid)
        target = (embedding - self.mean) / self.std
        error = masked_reconstruction(self.predict(out), target, masked)
        parts = {"reconstruction_vs_mean": error.mean().detach()}
        if guards.wanted():
            rows, there = out.flatten(0, 1), valid.flatten()
            parts |= {"context_std": guards.embedding_std(rows, there), "context_rank": guards.effective_rank(rows, there)}
        return LossOutput(error.mean(), parts, error.detach())
