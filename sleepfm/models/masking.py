"""Random masking of tokens and its inverse, from noise that the caller draws (:mod:`.noise`)."""

from __future__ import annotations

import torch
from torch import Tensor


def kept_count(length: int, mask_ratio: float) -> int:
    """Tokens that stay visible; at least one, or nothing could be reconstructed from."""
    return max(1, int(length * (1 - mask_ratio)))


def keep_indices(noise: Tensor, count: int) -> Tensor:
    """Indices ``[..., count]`` of the ``count`` smallest entries of ``noise`` ``[..., F]``, in order of the
    noise.
    """
    return noise.argsort(dim=-1)[..., :count]


def take(tokens: Tensor, keep: Tensor) -> Tensor:
    """Visible tokens ``[..., K, D]`` of ``tokens`` ``[..., F, D]``."""
    return tokens.gather(-2, keep[..., None].expand(*keep.shape, tokens.shape[-1]))


def unshuffle(visible: Tensor, keep: Tensor, fill: Tensor, length: int) -> Tensor:
    """``[..., length, D]`` with ``visible`` ``[..., K, D]`` back at its places and ``fill`` ``[D]``
    everywhere else.
    """
    full = fill.to(visible.dtype).expand(*visible.shape[:-2], length, visible.shape[-1])
    return full.scatter(-2, keep[..., None].expand_as(visible), visible)


def hidden(keep: Tensor, length: int) -> Tensor:
    """True ``[..., length]`` where a token is hidden."""
    mask = torch.ones(*keep.shape[:-1], length, dtype=torch.bool, device=keep.device)
    return mask.scatter(-1, keep, torch.zeros_like(keep, dtype=torch.bool))
