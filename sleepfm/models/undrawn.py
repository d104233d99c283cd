"""Models without initial values, where weights are loaded anyway: drawing those of a large model takes longer than loading it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

_DRAWS = frozenset(
    {
        Tensor.normal_,
        Tensor.uniform_,
        init.kaiming_normal_,
        init.kaiming_uniform_,
        init.normal_,
        init.trunc_normal_,
        init.uniform_,
        init.xavier_normal_,
        init.xavier_uniform_,
    }
)


class Undrawn(TorchFunctionMode):
    """Within it tensors that would be filled with random numbers stay as they are: what was never written to takes no memory.

    Values that do not depend on chance, such as positions and zeros, are made as ever.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _DRAWS:
            found = args[0] if args else (kwargs or {})["tensor"]
            assert isinstance(found, torch.Tensor)
            return found
        return func(*args, **(kwargs or {}))
