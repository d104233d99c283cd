"""A device that takes and refuses what CUDA does, on a build of torch for CPUs.

Tensors on :data:`DEVICE` compute on the CPU and say that they are elsewhere: an operation that mixes them with tensors of the
host is refused, and so is reading their memory. Under ``torch.autocast(DEVICE.type, torch.bfloat16)`` every operation gets the
types of CUDA's autocast, whose list is the dispatcher's own, and one that has no kernel in CUDA for the type that it gets is
refused (:mod:`cuda_kernels`), forward and backward.

The device is torch's backend for devices written in Python (``torch.utils.backend_registration``), because a CPU build cannot run
a backward pass on fake CUDA tensors. It is registered once a process, for good: use it in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cuda_kernels import HALF, LOWER, PROMOTED, REFUSED, NoCudaKernel, refusal
from torch import Tensor
from torch._C import DispatchKeySet, _dispatch_key_parse
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
_AUTOCAST = DispatchKeySet(_dispatch_key_parse("AutocastPrivateUse1"))

# Operations that read one device and write another, and those that take indices of the host beside tensors of the device.
_TRANSFERS = ("copy_", "_copy_from", "_to_copy")
_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")


class DeviceTensor(Tensor):
    """A tensor on :data:`DEVICE`, whose numbers are in :attr:`held`."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> DeviceTensor:
        return Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.held!r})"

    def __getitem__(self, index: Any) -> Any:
        # Torch copies a list to the device where this backend is not asked; an index of the host does the same.
        parts = index if isinstance(index, tuple) else (index,)
        return super().__getitem__(tuple(torch.tensor(part) if isinstance(part, list) else part for part in parts))

    def tolist(self) -> Any:
        """Copies, as for a tensor on CUDA."""
        return self.cpu().tolist()

    def numpy(self, **options: Any) -> Any:
        """Refused, as for a tensor on CUDA."""
        raise NoCudaKernel("numpy() of a tensor on the device; copy it to the host with .cpu()")

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.removeprefix("aten::")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    if there:
        _refuse_mixture(name, args, tensors)
    if (reason := refusal(name, tensors)) is not None:
        raise NoCudaKernel(reason)
    device = kwargs.get("device")
    options = kwargs if device is None else kwargs | {"device": "cpu"}
    # A view of an ordinary tensor is an ordinary tensor, also in inference mode.
    inference = torch.is_inference_mode_enabled() and not (func.is_view and not there[0].is_inference())
    with torch.inference_mode(inference):
        out = func(*tree_map(_held, args), **tree_map(_held, options))
        if name == "copy_":
            return args[0]
        if device is not None and torch.device(device).type == "cpu":
            return out
        out = tree_map(lambda leaf: DeviceTensor(leaf) if isinstance(leaf, Tensor) else leaf, out)
        return return_and_correct_aliasing(func, args, kwargs, out) if there else out


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, DeviceTensor) else leaf


def _refuse_mixture(name: str, args: Any, tensors: list[Tensor]) -> None:
    """Tensors of the host beside some of the device: only copies, single numbers, and indices into a tensor of the device."""
    host = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor) and tensor.ndim]
    if name in _INDEXED and isinstance(args[0], DeviceTensor):
        indices = {id(leaf) for leaf in tree_leaves(args[1])}
        host = [tensor for tensor in host if id(tensor) not in indices]
    if host and name not in _TRANSFERS:
        raise NoCudaKernel(f"{name} gets tensors of the host and of the device")


def _autocast_kernel(name: str) -> Callable[..., Any]:
    short, _, overload = name.removeprefix("aten::").partition(".")
    operation = getattr(getattr(torch.ops.aten, short), overload or "default")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        if short in REFUSED:
            raise NoCudaKernel(f"{short} is refused under CUDA's autocast; use the form with logits")
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            cast = _rule(short, args, kwargs)
            return operation(*tree_map(cast, args), **tree_map(cast, kwargs))

    return kernel


def _rule(name: str, args: Any, kwargs: dict[str, Any]) -> Callable[[Any], Any]:
    """What becomes of each operand: floating tensors of at most 32 bits take the type that the operation is computed in."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    target = torch.float32
    if name in LOWER or (name in PROMOTED and all(tensor.dtype in HALF for tensor in tensors)):
        target = torch.bfloat16

    def cast(value: Any) -> Any:
        eligible = isinstance(value, DeviceTensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(target) if eligible else value

    return cast


class _Backend:
    """What torch asks the module of a device for."""

    is_initialized = is_available = staticmethod(lambda: True)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda seed: None)
    get_amp_supported_dtype = staticmethod(lambda: list(HALF))


def _registered() -> tuple[torch.device, list[torch.library.Library]]:
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    everywhere, rules = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everywhere.fallback(lambda func, *args, **kwargs: _compute(func, args, kwargs), "PrivateUse1")
    everywhere.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA"):
        rules.impl(name, _autocast_kernel(name), "AutocastPrivateUse1")
    return torch.device(NAME, 0), [everywhere, rules]


DEVICE, _LIBRARIES = _registered()
