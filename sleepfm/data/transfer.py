"""Copies to a GPU that run beside its computation."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from sleepfm.data.batch import Batch


class Transfer:
    """Copies batches to ``device`` on a stream of its own, from one thread, for another that computes with them there.

    What computes waits for its batch on the device, not on the host. The memory of a batch belongs to the stream of the copies:
    each tensor is recorded on the stream that uses it, or it would be written anew while it is still read.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module: Any = torch.get_device_module(device)
        self._stream = self._module.Stream(device)
        # Of the copies that nobody has waited for, in the order of the batches.
        self._copied: deque[Any] = deque()

    def begin(self, batch: Batch) -> Batch:
        """The batch on the device, not to be used before :meth:`arrived` has been told of it; ``batch`` may be overwritten."""
        with self._module.stream(self._stream):
            there = batch.pin().to(self._device)
            self._copied.append(self._stream.record_event())
        return there

    def arrived(self, batch: Batch) -> Batch:
        """``batch``, the oldest that has begun and was not asked for, for what the calling thread launches from now on."""
        current = self._module.current_stream(self._device)
        current.wait_event(self._copied.popleft())

        def use(tensor: Tensor) -> Tensor:
            tensor.record_stream(current)
            return tensor

        return batch.apply(use)
