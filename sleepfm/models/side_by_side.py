"""Equal transformers, each on an input of its own, as one: with weights stacked, a product of each is one product of all.

A GPU is asked for as many kernels then as for one of them. The transformers stay what they are and where they are: nothing of
this stands in a state dict. Tensors have one dimension more, of the parts, which comes first; :mod:`.transformer` and
:mod:`.lora` say what is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sleepfm.models.lora import LoRALinear
from sleepfm.models.normalisation import RowMlp
from sleepfm.models.recompute import compilable, compile_unit, is_compiled
from sleepfm.models.transformer import Attention, Block, Blocks


def side_by_side(
    parts: Sequence[Blocks], norms: Sequence[nn.LayerNorm], inputs: Sequence[Tensor], heads: Sequence[nn.Linear] = ()
) -> Sequence[Tensor]:
    """What each of ``parts``, after it its own of ``norms``, or the only one, and last its own of ``heads``, if there are any,
    make of its own of ``inputs`` ``[N, S, D]``; all are of the same structure and shape.

    Only where they are compiled they are computed as one: stacked weights are then a copy in the type of the products that is
    made anyway.
    """
    if len(parts) == 1 or not all(is_compiled(block) for part in parts for block in part):
        each = norms if len(norms) > 1 else [*norms] * len(parts)
        mixed = [norm(part(x)) for part, norm, x in zip(parts, each, inputs, strict=True)]
        return [head(x) for head, x in zip(heads, mixed, strict=True)] if heads else mixed
    x, last = torch.stack(tuple(inputs)), len(parts[0]) - 1
    for number, blocks in enumerate(zip(*parts, strict=True)):
        x = compile_unit(SideBySide(blocks, *((norms, heads) if number == last else ())))(x)
    return x.unbind(0)


def rows_side_by_side(parts: Sequence[RowMlp], inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """What each of ``parts`` makes of its own of ``inputs`` ``[N, D]``; they need not be alike. Where they are compiled they are
    one unit: what lies between their products shares launches.
    """
    if not all(is_compiled(part) for part in parts):
        return [part(x) for part, x in zip(parts, inputs, strict=True)]
    return compile_unit(RowsSideBySide(parts))(*inputs)


@compilable
class RowsSideBySide(nn.Module):
    """Networks on rows."""

    def __init__(self, parts: Sequence[RowMlp]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, *inputs: Tensor) -> Sequence[Tensor]:
        """``[N, D]`` for each, to as many results."""
        results = list(inputs)
        # A layer at a time, so that equal ones stand next to one another.
        for layers in zip(*cast(Sequence[RowMlp], self.parts), strict=True):
            results = [layer(x) for layer, x in zip(layers, results, strict=True)]
        return results


@compilable
class SideBySide(nn.Module):
    """Blocks, and after them ``norms``, or one for all of them, or none, and ``heads`` or none; all of the same structure."""

    def __init__(self, blocks: Sequence[Block], norms: Sequence[nn.LayerNorm] = (), heads: Sequence[nn.Linear] = ()) -> None:
        super().__init__()
        self.blocks, self.norms, self.heads = (nn.ModuleList(layers) for layers in (blocks, norms, heads))

    def forward(self, x: Tensor) -> Tensor:
        """``[P, N, S, D]``, of every block its own, to as many; of heads, their width stands in the place of ``D``."""
        x = _block(cast(Sequence[Block], self.blocks), x)
        x = _norm(cast(Sequence[nn.LayerNorm], self.norms), x) if len(self.norms) else x
        return _linear([*self.heads], x) if len(self.heads) else x


def _stacked(parts: Iterable[Any], name: str) -> Tensor:
    return torch.stack([getattr(part, name) for part in parts])


def _block(parts: Sequence[Block], x: Tensor) -> Tensor:
    x = x + _attention([part.attn for part in parts], _norm([part.norm1 for part in parts], x))
    hidden = _linear([part.mlp.fc1 for part in parts], _norm([part.norm2 for part in parts], x))
    return x + _linear([part.mlp.fc2 for part in parts], F.gelu(hidden))


def _norm(parts: Sequence[nn.LayerNorm], x: Tensor) -> Tensor:
    weight, bias = (_stacked(parts, name)[:, None, None] for name in ("weight", "bias"))
    return (F.layer_norm(x, parts[0].normalized_shape, eps=parts[0].eps) * weight + bias).to(x.dtype)


def _linear(parts: Sequence[Any], x: Tensor) -> Tensor:
    """``[P, N, S, in] -> [P, N, S, out]``."""
    if isinstance(parts[0], LoRALinear):
        return _linear([part.base for part in parts], x) + _update(parts, x)
    out = _product(x.flatten(1, 2), _stacked(parts, "weight"), _stacked(parts, "bias"))
    return out.unflatten(1, x.shape[1:3])


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``[P, n, in]``, weights ``[P, out, in]`` and biases ``[P, out]`` to ``[P, n, out]``, in the type of products."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    with torch.autocast(kind, enabled=False):
        return _Linear.apply(  # type: ignore[no-untyped-call]
            x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        )


class _Linear(torch.autograd.Function):
    """The product of :func:`_product`.

    The gradient of the weights lies as they do, which torch's own does not: each would be copied once more.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            torch.bmm(grad, weight) if to_x else None,
            torch.bmm(grad.mT, x) if to_weight else None,
            grad.sum(1) if to_bias else None,
        )


def _update(parts: Sequence[LoRALinear], x: Tensor) -> Tensor:
    """What low-rank updates add; every part has as many adapters, all of them chosen, which share its rows equally."""
    down, up = (_stacked(parts, name).flatten(0, 1) for name in ("lora_a", "lora_b"))  # [P A, R, in], [P A, out, R]
    rows = parts[0].dropout(x).reshape(len(down), -1, x.shape[-1])
    return parts[0].scale * _product(_product(rows, down), up).view(*x.shape[:3], -1)


def _attention(parts: Sequence[Attention], x: Tensor) -> Tensor:
    count, rows, length, dim = x.shape
    heads = parts[0].heads
    mixed = _linear([part.qkv for part in parts], x).view(count * rows, length, 3, heads, dim // heads)
    query, key, value = mixed.permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(x.shape)
    return _linear([part.proj for part in parts], out)
