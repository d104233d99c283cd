"""Losses of both models, in fp32 whatever the precision around them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Similarities that exist at a time: 16 MB in fp32.
TILE = 2**22


class LossOutput(NamedTuple):
    """The scalar to minimise and detached scalars for the log."""

    loss: Tensor
    parts: dict[str, Tensor]


def masked_reconstruction(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error per sample over the tokens where ``mask`` is True, ``[B, N, D]`` and ``[B, N]`` to
    ``[B]``.

    The target is detached (a target that carries gradient can shrink to please the loss). Normalised per sample,
    so that the mean over a batch does not depend on how the batch is divided among ranks. A sample without
    any masked token gives 0.
    """
    error = F.mse_loss(prediction.float(), target.detach().float(), reduction="none").mean(-1)
    weight = mask.float()
    return (error * weight).sum(-1) / weight.sum(-1).clamp(min=1)


def nt_xent(a: Tensor, b: Tensor, temperature: float, valid: Tensor | None = None, gather: bool = True) -> Tensor:
    """Normalised temperature-scaled cross entropy (SimCLR, arXiv 2002.05709) of positive pairs ``a[n],
    b[n]``.

    All ``2 N`` rows are anchors; an anchor's negatives are the other ``2 N - 2`` rows; its similarity with
    itself takes no part. One pair alone has no negatives and a loss of 0.

    Args:
        a, b: embeddings ``[N, D]``, normalised here.
        temperature: divides cosine similarities.
        valid: ``[N]``, False for pairs that are neither anchors nor negatives.
        gather: take negatives from all ranks, with gradient; every rank must call with the same ``N``. The
            mean over ranks of the result is then the loss of the concatenated batch.

    Memory grows with ``N D``: where there are more than ``TILE`` similarities, so many anchors at a time are compared with
    everyone that these do not exceed it.
    """
    with torch.autocast(a.device.type, enabled=False):
        count, device = a.shape[0], a.device
        keep = torch.ones(count, dtype=torch.bool, device=device) if valid is None else valid
        anchors = F.normalize(torch.cat([a.float(), b.float()]), dim=1)
        world = dist.get_world_size() if gather and dist.is_available() and dist.is_initialized() else 1
        if world > 1:
            everyone = _AllGather.apply(anchors).flatten(0, 1)  # type: ignore[no-untyped-call]
            valid_all = _all_gather(keep.to(torch.uint8)).bool().repeat(1, 2).flatten()
            offset = dist.get_rank() * 2 * count
        else:
            everyone, valid_all, offset = anchors, keep.repeat(2), 0
        rows = torch.arange(2 * count, device=device)
        itself, positive = offset + rows, offset + (rows + count) % (2 * count)
        total = _AnchorLosses.apply(  # type: ignore[no-untyped-call]
            anchors, everyone, keep.repeat(2), valid_all, itself, positive, temperature
        )
        return total * world / valid_all.sum().clamp(min=1)


class _AnchorLosses(torch.autograd.Function):
    """Sum of the cross entropies of ``anchors`` ``[A, D]`` against ``everyone`` ``[M, D]``, over the anchors that are kept.

    The gradient is formed beside the value, tile by tile in one buffer: similarities exist only there, and only once. (With
    ``torch.utils.checkpoint`` they would be computed again, and the buffers of many tiles would tear up the heap.)
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        everyone: Tensor,
        keep: Tensor,
        valid: Tensor,
        itself: Tensor,
        positive: Tensor,
        temperature: float,
    ) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        total = anchors.new_zeros(())
        to_anchors, to_everyone = torch.zeros_like(anchors), torch.zeros_like(everyone)
        shut = torch.zeros_like(valid, dtype=anchors.dtype).masked_fill_(~valid, float("-inf"))
        chunk = max(1, TILE // everyone.shape[0])
        buffer = anchors.new_empty(min(chunk, anchors.shape[0]), everyone.shape[0])
        for start in range(0, anchors.shape[0], chunk):
            part = slice(start, start + chunk)
            own, pair, weight = anchors[part], positive[part, None], keep[part].to(anchors.dtype)
            tile = torch.mm(own, everyone.T, out=buffer[: len(own)]).div_(temperature)
            paired = tile.gather(1, pair)
            # An invalid anchor keeps its positive, so that its row stays finite; its weight is 0.
            tile.add_(shut).scatter_(1, pair, paired).scatter_(1, itself[part, None], float("-inf"))
            highest = tile.amax(1, keepdim=True)
            odds = tile.sub_(highest).exp_().sum(1, keepdim=True)
            total += ((odds.log() + highest - paired)[:, 0] * weight).sum()
            if not wanted:
                continue
            # Softmax less the truth: the gradient of the similarities.
            tile.div_(odds).scatter_add_(1, pair, -torch.ones_like(paired)).mul_(weight[:, None] / temperature)
            torch.mm(tile, everyone, out=to_anchors[part])
            to_everyone.addmm_(tile.T, own)
        ctx.save_for_backward(to_anchors, to_everyone)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        to_anchors, to_everyone = ctx.saved_tensors
        return to_anchors * grad, to_everyone * grad, None, None, None, None, None


def _all_gather(x: Tensor) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.stack(parts)


class _AllGather(torch.autograd.Function):
    """``[n, ...] -> [world, n, ...]``; the gradient is summed over ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _all_gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[dist.get_rank()]


def any_rank(flags: Tensor) -> Tensor:
    """True where any rank's boolean ``flags`` is."""
    if not (dist.is_available() and dist.is_initialized()):
        return flags
    shared = flags.to(torch.uint8)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return shared.bool()
