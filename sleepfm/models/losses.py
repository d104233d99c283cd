"""Losses of both models, in fp32 whatever the precision around them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sleepfm.models.negatives import Compared, Negatives, compared, padding
from sleepfm.models.recompute import compilable

# Similarities that exist at a time, in two buffers of fp32: of 16 MB each, which processors' caches nearly hold, and of 256 MB,
# with which a GPU works for longer than it takes to launch.
TILE = 2**22
TILE_ON_GPU = 2**26


def tile_size(device: torch.device) -> int:
    """Similarities that a loss on ``device`` holds at a time."""
    return TILE_ON_GPU if device.type == "cuda" else TILE


class LossOutput(NamedTuple):
    """The scalar to minimise, detached scalars for the log, and the detached loss ``[B]`` of each item."""

    loss: Tensor
    parts: dict[str, Tensor]
    items: Tensor | None = None


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


@compilable
class MaskedReconstruction(nn.Module):
    """:func:`masked_reconstruction`, as a part of a model that may be compiled."""

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """``[..., N, D]``, twice, and ``[..., N]`` to ``[...]``."""
        return masked_reconstruction(prediction, target, mask)


def nt_xent(a: Tensor, b: Tensor, temperature: float, valid: Tensor | None = None, negatives: Negatives = "global") -> Tensor:
    """Normalised temperature-scaled cross entropy (SimCLR, arXiv 2002.05709) of positive pairs ``a[n],
    b[n]``.

    All ``2 N`` rows are anchors; an anchor's negatives are the other ``2 N - 2`` rows; its similarity with
    itself takes no part. One pair alone has no negatives and a loss of 0.

    Args:
        a, b: embeddings ``[N, D]``, normalised here.
        temperature: divides cosine similarities.
        valid: ``[N]``, False for pairs that are neither anchors nor negatives.
        negatives: of which ranks, with gradient; every rank must call with the same ``N`` and weigh the result alike. The mean
            over ranks of the result is then the loss of the concatenated batch, or the mean over groups of the loss of
            each group's.

    Under autocast to bf16, embeddings are rounded to it, travel in it, and are multiplied in it with sums in fp32; all else is
    fp32. Memory grows with ``N D``: where there are more than :func:`tile_size` similarities, so many anchors at a time are
    compared with everyone that these do not exceed it.
    """
    return nt_xent_by_pair(a, b, temperature, valid, negatives)[0]


def nt_xent_by_pair(
    a: Tensor, b: Tensor, temperature: float, valid: Tensor | None = None, negatives: Negatives = "global"
) -> tuple[Tensor, Tensor]:
    """:func:`nt_xent`, and of every pair ``[N]``, detached, the mean of its two cross entropies; 0 for one that is not valid.

    Of several sets of pairs ``[S, N, D]``, with ``valid`` ``[S, N]``, each is compared with itself alone, and the results are
    ``[S]`` and ``[S, N]``: their embeddings travel together.
    """
    if a.ndim == 2:
        total, pairs = nt_xent_by_pair(a[None], b[None], temperature, None if valid is None else valid[None], negatives)
        return total[0], pairs[0]
    kind = a.device.type
    half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
    with torch.autocast(kind, enabled=False):
        keep = torch.ones(a.shape[:2], dtype=torch.bool, device=a.device) if valid is None else valid
        anchors = F.normalize(torch.cat([a.float(), b.float()], dim=1), dim=2)
        ranks = compared(negatives)
        total, rows, entropies = _CrossEntropies.apply(  # type: ignore[no-untyped-call]
            anchors, keep.repeat(1, 2), temperature, half, ranks
        )
        return total * ranks.size / rows.clamp(min=1), entropies.unflatten(1, (2, -1)).mean(1)


class _CrossEntropies(torch.autograd.Function):
    """Sums ``[S]`` of the cross entropies of this rank's ``anchors`` ``[S, A, D]`` against everyone of their set, over the rows
    that are kept; the numbers ``[S]`` of rows that everyone keeps; and the cross entropies ``[S, A]``, 0 in other rows.

    The gradient is formed beside the value, in one buffer: similarities exist only there. (With ``torch.utils.checkpoint`` the
    buffers of many tiles would tear up the heap.) It is that of the sum over all ranks, and none is sent: a similarity belongs
    to two anchors, so that this rank knows what another rank's cross entropies owe to it as soon as it knows their
    normalisations, one number a row.
    """

    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, keep: Tensor, temperature: float, half: bool, ranks: Compared
    ) -> tuple[Tensor, Tensor, Tensor]:
        sets, count = anchors.shape[:2]
        everyone, valid = _exchange(anchors, keep, half, ranks)
        offset, width = ranks.rank * count, everyone.shape[1]
        own = everyone[:, offset : offset + count]
        places = torch.arange(count, device=anchors.device)
        itself = (offset + places)[:, None].expand(sets, -1, -1)
        positive = (offset + (places + count // 2) % count)[:, None].expand(sets, -1, -1)
        shut = torch.zeros_like(valid, dtype=torch.float32).masked_fill_(~valid, float("-inf"))[:, None]
        chunk = min(count, max(1, tile_size(anchors.device) // (sets * width)))
        similar, odds = anchors.new_empty(2, sets * chunk * width)
        tiles = [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]

        def of(buffer: Tensor, part: slice) -> Tensor:
            """Room for similarities ``[S, n, M]`` of some anchors."""
            rows = part.stop - part.start
            return buffer[: sets * rows * width].view(sets, rows, width)

        def similarities(part: slice) -> tuple[Tensor, Tensor]:
            """Of some anchors with everyone, ``-inf`` where they do not count, and those of the positive pairs."""
            tile = _product(own[:, part], everyone.mT, of(similar, part)).div_(temperature)
            paired = tile.gather(2, positive[:, part])
            # An invalid anchor keeps its positive, so that its row stays finite; it counts for nothing.
            tile.add_(shut).scatter_(2, positive[:, part], paired).scatter_(2, itself[:, part], float("-inf"))
            return tile, paired

        sums, entropies, total = anchors.new_empty(sets, count), anchors.new_empty(sets, count), anchors.new_zeros(sets)
        for part in tiles:
            tile, paired = similarities(part)
            highest = tile.amax(2, keepdim=True)
            spread = torch.sub(tile, highest, out=of(odds, part)).exp_().sum(2, keepdim=True)
            sums[:, part] = (spread.log() + highest)[..., 0]
            entropies[:, part] = (sums[:, part] - paired[..., 0]) * keep[:, part]
            total += entropies[:, part].sum(1)
        rows = valid.sum(1)
        ctx.mark_non_differentiable(rows, entropies)
        if not ctx.needs_input_grad[0]:
            return total, rows, entropies
        sums.masked_fill_(~keep, float("inf"))
        everyones = ranks.gather(sums.mT.clone(memory_format=torch.contiguous_format)).mT if ranks.size > 1 else sums
        others = everyones[:, None]
        gradient = torch.empty_like(anchors)
        for part in tiles:
            # One tile is still there from before.
            tile = similarities(part)[0] if len(tiles) > 1 else of(similar, part)
            # What an anchor's own cross entropy owes to a similarity, and what that of the other row does.
            back = torch.sub(tile, others, out=of(odds, part)).exp_()
            tile.sub_(sums[:, part, None]).exp_().add_(back)
            tile.scatter_add_(2, positive[:, part], tile.new_full((1, 1, 1), -2.0).expand(sets, tile.shape[1], 1))
            gradient[:, part] = _product(tile, everyone)
        ctx.save_for_backward(gradient.mul_(keep[..., None] / temperature))
        return total, rows, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad[:, None, None], None, None, None, None


def _exchange(anchors: Tensor, keep: Tensor, half: bool, ranks: Compared) -> tuple[Tensor, Tensor]:
    """Everyone's embeddings ``[S, M, D]`` and validity ``[S, M]``, in one message; rounded to bf16 if ``half``, and in it on
    CUDA.
    """
    rounded = anchors.bfloat16() if half else anchors
    sets, count, width = anchors.shape
    valid = keep
    if ranks.size > 1:
        message = rounded.new_zeros(count, sets, width + padding(half))
        message[..., :width], message[..., width] = rounded.transpose(0, 1), keep.mT
        everyone = ranks.gather(message).transpose(0, 1)
        rounded, valid = everyone[..., :width], everyone[..., width] > 0
    return (rounded if rounded.is_cuda else rounded.float()), valid


def _product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """``left @ right``, fp32 ``[S, n, m]``, by the type of ``right``: in fp32, or in bf16 with sums in fp32.

    CPUs have no such product. There ``right`` has been rounded to bf16 before, and what fp32 kernels make of it is the same.
    """
    if right.dtype == torch.bfloat16:
        return torch.bmm(left.bfloat16(), right, out_dtype=torch.float32, out=out)
    return torch.bmm(left, right, out=out)


def any_rank(flags: Tensor) -> Tensor:
    """True where any rank's boolean ``flags`` is."""
    if not (dist.is_available() and dist.is_initialized()):
        return flags
    shared = flags.to(torch.uint8)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return shared.bool()
