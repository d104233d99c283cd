"""Watches the steps of a real job for what waits for the device: reads, and calls that wait for all of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from host_reads import HostReads, Read


class Waits(HostReads):
    """Context manager that may be entered again and again; :attr:`found` grows."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self._stack = ExitStack()

    def __enter__(self) -> Waits:
        from deepspeed.accelerator import get_accelerator

        owners: list[Any] = [get_accelerator(), torch.cuda]
        for owner in owners:
            own, inner = vars(owner).get("synchronize"), owner.synchronize
            owner.synchronize = self._noting(inner)
            self._stack.callback(*(delattr, owner, "synchronize") if own is None else (setattr, owner, "synchronize", own))
        super().__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        self._stack.close()

    def _noting(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            caller = sys._getframe(1).f_code
            self.found.append(Read("synchronize", f"{Path(caller.co_filename).name}:{sys._getframe(1).f_lineno}"))
            return inner(*arguments)

        return noted

    def passing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, during which what waits is not found, and not refused by CUDA."""

        def passed(*arguments: Any, **options: Any) -> Any:
            known = len(self.found)
            refused = torch.cuda.get_sync_debug_mode() if torch.cuda.is_available() else 0
            if refused:
                torch.cuda.set_sync_debug_mode("default")
            try:
                return function(*arguments, **options)
            finally:
                del self.found[known:]
                if refused:
                    torch.cuda.set_sync_debug_mode(refused)

        return passed
