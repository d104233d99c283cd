"""Less memory for more arithmetic: what happens inside a unit of a model is computed again in the backward pass.

Only the inputs of units (classes marked with :func:`recomputable`: transformer blocks, residual blocks of the frame encoder,
context layers) are kept for the backward pass (arXiv 1604.06174). The second forward pass sees the same dropout, the same
precision, the same adapters, the same rows as existing, and leaves running statistics alone, so losses and gradients are those
without, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from sleepfm.models.lora import LoRALinear
from sleepfm.models.normalisation import RowBatchNorm

ModuleT = TypeVar("ModuleT", bound=type[nn.Module])

_RECOMPUTABLE: set[type[nn.Module]] = set()


def recomputable(kind: ModuleT) -> ModuleT:
    """Class decorator: an instance may forget its activations. Its ``forward`` is a function of its arguments, its state and what
    the module docstring names.
    """
    _RECOMPUTABLE.add(kind)
    return kind


def recompute_activations(module: nn.Module) -> int:
    """Make every unit of ``module`` forget its activations where gradients are wanted, in place; returns how many there are.

    A unit inside another one is not treated again.
    """
    count = 0
    for part in module.children():
        if type(part) in _RECOMPUTABLE:
            part.forward = _Forgetful(part)
            count += 1
        else:
            count += recompute_activations(part)
    return count


class _Forgetful:
    """The forward pass of ``unit``, which it replaces."""

    def __init__(self, unit: nn.Module) -> None:
        self._unit = unit
        self._forward: Callable[..., Any] = unit.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        return checkpoint(self._forward, *args, use_reentrant=False, context_fn=self._contexts, **kwargs)

    def _contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """For the first and the second forward pass."""
        chosen = [(part, "_index", part._index) for part in self._unit.modules() if isinstance(part, LoRALinear)]
        existing = [(part, "valid", part.valid) for part in self._unit.modules() if isinstance(part, RowBatchNorm)]
        return nullcontext(), _second_pass(self._unit, [*chosen, *existing], _get_current_function_mode_stack())


@contextmanager
def _second_pass(unit: nn.Module, chosen: list[tuple[nn.Module, str, Any]], modes: list[TorchFunctionMode]) -> Iterator[None]:
    """What was ``chosen`` and the function modes of the first pass, and running statistics that nobody sees."""
    with ExitStack() as undo:
        # torch leaves its function modes, of which bf16 rounding is one, while it handles ``backward``.
        for mode in modes:
            undo.enter_context(mode)
        for part, name, value in chosen:
            undo.callback(setattr, part, name, getattr(part, name))
            setattr(part, name, value)
        for norm in unit.modules():
            if isinstance(norm, _BatchNorm) and norm.training:
                for name, buffer in norm.named_buffers(recurse=False):
                    undo.callback(setattr, norm, name, buffer)
                    # Another tensor, since the backward pass refuses one that has changed after it was kept.
                    setattr(norm, name, buffer.clone())
        yield
