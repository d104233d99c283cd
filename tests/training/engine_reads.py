"""Counts what makes the host wait for the device within a block, on any device: on the CPU as it would be on CUDA.

An operation whose result or shape the host needs is found where it is dispatched or, since a tensor of the CPU gives its numbers
without an operation, where Python asks for them. So is a call that waits for all of a device.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

# Operations whose result, or its shape, comes back to the host.
OPERATIONS = frozenset(
    {
        "_local_scalar_dense",
        "_unique2",
        "equal",
        "is_nonzero",
        "item",
        "masked_select",
        "nonzero",
        "nonzero_numpy",
        "repeat_interleave",
        "unique_consecutive",
        "unique_dim",
    }
)
# Those that read it where one of their tensors is a mask.
INDEXED = frozenset({"index", "index_put", "index_put_", "_index_put_impl_"})
# Methods by which Python asks for numbers, or for a copy on the host.
METHODS = frozenset(
    {"__bool__", "__complex__", "__float__", "__index__", "__int__", "__iter__", "cpu", "item", "numpy", "tolist", "__array__"}
)
_ROOT = str(Path(__file__).resolve().parents[2])


@dataclass
class Waits:
    """What was found: each with the lines that led to it."""

    found: list[str] = field(default_factory=list)
    paused: int = 0

    def add(self, what: str) -> None:
        if not self.paused:
            frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
            ours = [frame for frame in frames if frame.filename.startswith(_ROOT) or "deepspeed" in frame.filename]
            self.found.append(f"{what}: " + " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in ours[:-4:-1]))

    def pausing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, during which nothing is found."""

        def paused(*args: Any, **kwargs: Any) -> Any:
            self.paused += 1
            refused = torch.cuda.get_sync_debug_mode() if torch.cuda.is_available() else 0
            if refused:
                torch.cuda.set_sync_debug_mode("default")
            try:
                return function(*args, **kwargs)
            finally:
                self.paused -= 1
                if refused:
                    torch.cuda.set_sync_debug_mode(refused)

        return paused


class _Dispatched(TorchDispatchMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        masks = name in INDEXED and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        if name in OPERATIONS or masks:
            self._waits.add(name)
        return func(*args, **(kwargs or {}))


class _Called(TorchFunctionMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = (resolve_name(func) or getattr(func, "__name__", "")).rsplit(".", 1)[-1]
        # The name of the host; a device that happens to be one is an object.
        copies = name == "to" and "cpu" in [value for value in (*args[1:], *(kwargs or {}).values()) if isinstance(value, str)]
        if name in METHODS or copies:
            self._waits.add(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def counted(waits: Waits) -> Iterator[None]:
    """Within the block ``waits`` takes down what waits for the device."""
    from deepspeed.accelerator import get_accelerator

    with ExitStack() as stack:
        owners: list[Any] = [get_accelerator(), torch.cuda]
        for owner in owners:
            inner = owner.synchronize

            def synchronize(*args: Any, inner: Callable[..., Any] = inner) -> Any:
                waits.add("synchronize")
                return inner(*args)

            own = vars(owner).get("synchronize")
            owner.synchronize = synchronize
            stack.callback(setattr if own is not None else delattr, owner, "synchronize", *([own] if own is not None else []))
        stack.enter_context(_Called(waits))
        stack.enter_context(_Dispatched(waits))
        yield
