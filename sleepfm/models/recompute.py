"""What a training step does with the units of a model: compute their inside again, compile it, or neither.

Units are the classes marked with :func:`recomputable`: transformer blocks, stem and residual blocks of the frame encoder, context
layers; and those marked with :func:`compilable`, which are only compiled: the small networks on rows (adapters, projectors),
blocks side by side, the reconstruction loss. Both settings hold where gradients are wanted, change no parameter and no name in a
state dict, and go together.

*Recomputing* keeps only the inputs of units for the backward pass (arXiv 1604.06174): less memory for more arithmetic. The second
forward pass sees the same dropout, the same precision, the same adapters, the same rows as existing, and leaves running
statistics alone, so losses and gradients are those without, to the bit.

*Compiling* a unit at a time takes seconds, since equal units share what is compiled, and fuses what stands between products.
Losses and gradients are those without up to rounding. (Several blocks in one unit would move more bytes: what the options below
leave to be computed again is then a longer chain.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import lru_cache, partial, wraps
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from sleepfm.models.lora import LoRALinear
from sleepfm.models.normalisation import RowBatchNorm, RowMlp

ModuleT = TypeVar("ModuleT", bound=type[nn.Module])
UnitT = TypeVar("UnitT", bound=nn.Module)
Forward = Callable[..., Any]

# Attributes of a unit, set by `recompute_activations` and `compile_units`.
_FORGETS, _COMPILED = UNIT_SETTINGS = ("_forgets_activations", "_is_compiled")

# Classes of units, with their own forward pass.
_FORWARDS: dict[type[nn.Module], Forward] = {}
_ONLY_COMPILED: set[type[nn.Module]] = set()

# Options of Inductor. How much of a chain of elementwise operations may be computed again where its result is used, instead of
# being written to memory: the gradient of a normalisation is used five times, and costs less to compute than to read
# (benchmarks/roofline.py).
COMPILER_OPTIONS: dict[str, Any] = {
    "realize_reads_threshold": 32,
    "realize_opcount_threshold": 300,
    "realize_acc_reads_threshold": 32,
    # Casts of weights and sums of their gradients, which do not depend on one another, share a launch.
    "combo_kernels": True,
}
# Shapes of one class of unit that are compiled each for itself: the twelve residual blocks of a frame encoder, in bf16 and fp32,
# with gradients of their input or without.
_SHAPES = 64


def recomputable(kind: ModuleT) -> ModuleT:
    """Class decorator: an instance may forget its activations, and may be compiled. Its ``forward`` is a function of its
    arguments, its state and what the module docstring names.
    """
    return _unit(kind, forgets=True)


def compilable(kind: ModuleT) -> ModuleT:
    """Class decorator: an instance may be compiled."""
    return _unit(kind, forgets=False)


def _unit(kind: ModuleT, forgets: bool) -> ModuleT:
    plain = kind.forward
    _FORWARDS[kind] = plain
    if not forgets:
        _ONLY_COMPILED.add(kind)

    @wraps(plain)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(self, *args, **kwargs)
        # mypy takes the class for one of its instances, in whose stub __hash__ differs.
        run: Forward = _compiled(kind) if getattr(self, _COMPILED, False) else plain  # type: ignore[arg-type]
        if not getattr(self, _FORGETS, False):
            return run(self, *args, **kwargs)
        return checkpoint(partial(run, self), *args, use_reentrant=False, context_fn=partial(_contexts, self), **kwargs)

    setattr(kind, "forward", forward)  # noqa: B010  (mypy refuses an assignment to a method)
    return kind


def recompute_activations(module: nn.Module) -> int:
    """Make every unit of ``module`` forget its activations where gradients are wanted, in place; returns how many there are.

    A unit inside another one is not treated again.
    """
    return _mark(module, _FORGETS, lambda unit: type(unit) not in _ONLY_COMPILED)


def compile_units(module: nn.Module, chosen: Callable[[nn.Module], bool] = lambda unit: True) -> int:
    """Have every ``chosen`` unit of ``module`` compiled at its first use where gradients are wanted, in place; returns how many
    there are.

    What runs without gradients (validation, embedding, scoring), in batches of any size, stays as it is.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _SHAPES)
    return _mark(module, _COMPILED, chosen)


def compile_unit(unit: UnitT) -> UnitT:
    """``unit``, to be compiled at its first use."""
    setattr(unit, _COMPILED, True)
    return unit


def is_compiled(unit: nn.Module) -> bool:
    """Whether ``unit`` runs compiled now, and keeps its activations."""
    return getattr(unit, _COMPILED, False) and torch.is_grad_enabled() and not getattr(unit, _FORGETS, False)


def is_unit(module: nn.Module) -> bool:
    """Whether ``module`` is of a class marked with :func:`recomputable` or :func:`compilable`."""
    return type(module) in _FORWARDS


def _mark(module: nn.Module, setting: str, chosen: Callable[[nn.Module], bool]) -> int:
    count = 0
    for part in module.children():
        if not is_unit(part):
            count += _mark(part, setting, chosen)
        elif chosen(part):
            setattr(part, setting, True)
            count += 1
    return count


@lru_cache
def _compiled(kind: type[nn.Module]) -> Forward:
    """The forward pass of every unit of a class, for fixed shapes, as training steps have: kernels for any shape are slower."""
    return torch.compile(_FORWARDS[kind], dynamic=False, options=COMPILER_OPTIONS)


def _contexts(unit: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For the first and the second forward pass."""
    chosen = [(part, "_index", part._index) for part in unit.modules() if isinstance(part, LoRALinear)]
    existing = [(part, "valid", part.valid) for part in unit.modules() if isinstance(part, RowBatchNorm)]
    return nullcontext(), _second_pass(unit, [*chosen, *existing], _get_current_function_mode_stack())


compilable(RowMlp)


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
