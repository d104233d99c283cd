"""Operations that make the host wait for the device, counted where a step runs, without a GPU.

On CUDA an operation whose shape or value must be known to the host (``item``, a boolean index, ``unique``), and a copy between
host and device that is not asked to be asynchronous, lets the host wait until the device has done everything before it. On a
CPU they cost nothing and nobody misses them: :class:`HostReads` finds them by name, in forward and backward passes that begin in
its thread.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]
_TORCH = str(Path(torch.__file__).parent)
# What stands between torch and the line that called it.
_BETWEEN = (_TORCH, __file__, str(ROOT / "tests" / "simulated_cuda.py"), contextlib.__file__)

# Operations of ``aten`` whose result's shape or value is known to the host once they return.
READING = frozenset(
    {
        *(
            "_local_scalar_dense",
            "item",
            "is_nonzero",
            "equal",
            "allclose",
            "_linalg_check_errors",
            "_linalg_eigh",
            "_linalg_svd",
        ),
        *("nonzero", "nonzero_numpy", "argwhere", "masked_select", "bincount", "histc", "_pack_padded_sequence"),
        *("unique_dim", "unique_consecutive", "unique_dim_consecutive", "_unique", "_unique2"),
    }
)
_INDEXED = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"})
_COPIES = frozenset({"copy_", "_copy_from", "_to_copy"})
# Methods that no operation of ``aten`` shows where the tensor is on the host already.
_METHODS: dict[Callable[..., Any], str] = {
    torch.Tensor.tolist: "tolist",
    torch.Tensor.numpy: "numpy",
    torch.Tensor.__array__: "numpy",
    torch.Tensor.cpu: "cpu",
}
# Functions that make a tensor of numbers, which no operation shows either.
_MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)


@dataclass(frozen=True, order=True)
class Read:
    """One wait: the operation, and the line of the program that asked for it (``-`` for torch's own threads)."""

    operation: str
    place: str

    def __str__(self) -> str:
        return f"{self.operation} at {self.place}"


class HostReads:
    """Context manager; :attr:`found` are the waits inside, in their order.

    Args:
        device: whose tensors count. With ``cpu`` every tensor counts, and copies do not, which have no other side there.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.found: list[Read] = []
        kind = torch.device(device).type
        self._modes: tuple[Any, ...] = (_Operations(self.found, kind), _Methods(self.found, kind))

    def __enter__(self) -> HostReads:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)


class _Operations(TorchDispatchMode):
    def __init__(self, found: list[Read], kind: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found, self._kind = found, kind

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (operation := self._waits(func, args, kwargs or {}, out)) is not None:
            self._found.append(Read(operation, _place()))
        return out

    def _waits(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> str | None:
        """The name of the operation if it waits."""
        name = func._schema.name.removeprefix("aten::")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = any(tensor.device.type == self._kind for tensor in given)
        if name in READING and there:
            return name
        if name == "repeat_interleave" and isinstance(args[0], Tensor) and there and kwargs.get("output_size") is None:
            # Of a number or with its size given, it is another operation.
            return "repeat_interleave with a tensor"
        if name in _INDEXED and args[0].device.type == self._kind:
            return self._index(name, args)
        if self._kind != "cpu":
            return self._copy(name, args, kwargs, out)
        return None

    def _index(self, name: str, args: Any) -> str | None:
        indices = [index for index in args[1] if index is not None]
        # A single number is written by a mask without asking where.
        filled = name.startswith("index_put") and args[2].numel() == 1
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices) and not filled:
            return f"{name} with a mask"
        if any(index.device.type != self._kind for index in indices):
            return f"{name} with an index of the host"
        return None

    def _copy(self, name: str, args: Any, kwargs: dict[str, Any], out: Any) -> str | None:
        if name not in _COPIES:
            return None
        if name == "_to_copy":
            source, target, later = args[0], out, kwargs.get("non_blocking", False)
        else:
            target, source = (args[0], args[1]) if name == "copy_" else (args[1], args[0])
            later = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        crossed = (source.device.type == self._kind) != (target.device.type == self._kind)
        return f"copy from {source.device.type} to {target.device.type}" if crossed and not later else None


class _Methods(TorchFunctionMode):
    def __init__(self, found: list[Read], kind: str) -> None:
        super().__init__()
        self._found, self._kind = found, kind

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._kind == "cpu" and func in _METHODS:
            self._found.append(Read(_METHODS[func], _place()))
        out = func(*args, **(kwargs or {}))
        if self._kind != "cpu" and func in _MAKERS and out.device.type == self._kind:
            self._found.append(Read("tensor of numbers of the host", _place()))
        return out


def _place() -> str:
    """File and line that called torch, relative to the checkout or to the folder of installed packages."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((*_BETWEEN, "<")):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return "-"
    path = Path(frame.f_code.co_filename)
    if path.is_relative_to(ROOT):
        path = path.relative_to(ROOT)
    elif "site-packages" in path.parts:
        path = Path(*path.parts[path.parts.index("site-packages") + 1 :])
    return f"{path}:{frame.f_lineno}"
