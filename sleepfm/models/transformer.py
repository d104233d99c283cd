"""The pre-norm transformer block of ViT (arXiv 2010.11929), with the parameter names of timm's ``Block``."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from sleepfm.errors import ModelError
from sleepfm.models.recompute import recomputable

NORM_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention with biased query, key and value projections."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ModelError(f"width {dim} is not a multiple of {heads} attention heads")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """``[B, N, D] -> [B, N, D]``; ``keys`` ``[B, N]`` is False for tokens that nobody attends to."""
        batch, length, dim = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mask = None if keys is None else keys[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, dim))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


@recomputable
class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``; the MLP is four times as wide as the tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """``[B, N, D] -> [B, N, D]``; ``keys`` as in :class:`Attention`."""
        x = x + self.attn(self.norm1(x), keys)
        return x + self.mlp(self.norm2(x))


class Blocks(nn.ModuleList):
    """``depth`` blocks, one after the other."""

    def __init__(self, depth: int, dim: int, heads: int) -> None:
        super().__init__(Block(dim, heads) for _ in range(depth))

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """``[B, N, D] -> [B, N, D]``; ``keys`` as in :class:`Attention`."""
        for block in self:
            x = block(x, keys)
        return x


def init_transformer(module: nn.Module) -> None:
    """Xavier-uniform linear layers without bias, unit layer norms (as MAE, arXiv 2111.06377), in place and
    recursively.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
