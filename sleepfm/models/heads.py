"""Classification heads on epoch embeddings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from sleepfm.config import Config
from sleepfm.models.normalisation import RowBatchNorm, on_valid


class HeadConfig(Config):
    """``mlp`` is the paper's head (two hidden layers); ``linear`` is a linear probe in the strict sense."""

    kind: Literal["mlp", "linear"] = "mlp"
    hidden: int = Field(256, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)


class Head(nn.Module):
    """Embeddings ``[B, L, D]`` to logits ``[B, L, K]``, one epoch at a time."""

    def __init__(self, dim: int, classes: int, config: HeadConfig) -> None:
        super().__init__()
        if config.kind == "linear":
            self.layers: nn.Module = nn.Linear(dim, classes)
        else:
            self.layers = nn.Sequential(
                *_hidden(dim, config.hidden, config.dropout),
                *_hidden(config.hidden, config.hidden, config.dropout),
                nn.Linear(config.hidden, classes),
            )

    def forward(self, embedding: Tensor, valid: Tensor | None = None) -> Tensor:
        """Zeros for epochs that are not ``valid`` ``[B, L]``."""
        return on_valid(self.layers, embedding, valid)


def _hidden(size_in: int, size_out: int, dropout: float) -> tuple[nn.Module, ...]:
    return nn.Linear(size_in, size_out), RowBatchNorm(size_out), nn.ELU(), nn.Dropout(dropout)
