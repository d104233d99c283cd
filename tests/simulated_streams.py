"""Streams of a device, on a build of torch for CPUs: what is launched on one of them happens when somebody waits for it.

On the device of :mod:`simulated_cuda`, a copy that is launched on a stream of its own leaves its target unset (nan, or -1) until
that stream has come to it, as CUDA may: whoever computes without waiting for the copy's event computes with what is not there,
and whoever overwrites the memory that is copied from has that copied instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from simulated_cuda import NAME, DeviceTensor
from torch import Tensor


class Event:
    """The point that a stream had come to when it was recorded."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.launched = stream, len(stream.work)

    def wait(self) -> None:
        """Everything before it has happened."""
        while self.stream.done < self.launched:
            self.stream.work[self.stream.done]()
            self.stream.done += 1


class Stream:
    """Work that was launched, and how much of it has happened."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.work: list[Callable[[], object]] = []
        self.done = 0

    def record_event(self) -> Event:
        return Event(self)

    def wait_event(self, event: Event) -> None:
        """What is launched from now on waits; this stream has nothing that would not happen at once."""
        event.wait()


class Streams:
    """What torch's module of a device offers of streams, and the calls that copies and memory hear of.

    ``recorded`` holds tensors of the device with the streams that they were recorded on, ``threads`` who has launched copies.
    """

    def __init__(self) -> None:
        self.default = Stream()
        self.recorded: list[tuple[Tensor, Stream]] = []
        self.threads: set[int] = set()
        self._own = threading.local()
        self.Stream = Stream

    def current_stream(self, device: torch.device) -> Stream:
        return getattr(self._own, "stream", self.default)

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        """Launches of this thread go to ``stream``."""
        before = self.current_stream(torch.device("cpu"))
        self._own.stream = stream
        try:
            yield
        finally:
            self._own.stream = before

    def copy(self, tensor: Tensor, device: torch.device) -> Tensor:
        """What ``tensor.to(device, non_blocking=True)`` does."""
        stream = self.current_stream(device)
        self.threads.add(threading.get_ident())
        assert getattr(tensor, "pinned", False), "a copy from memory that is not pinned waits for the device"
        unset = torch.full_like(tensor, float("nan") if tensor.is_floating_point() else 0)
        if not tensor.is_floating_point() and tensor.dtype != torch.bool:
            unset -= 1
        there = DeviceTensor(unset)
        stream.work.append(lambda: unset.copy_(tensor))
        return there

    def record(self, tensor: Tensor, stream: Stream) -> None:
        """What ``tensor.record_stream(stream)`` does."""
        self.recorded.append((tensor, stream))


def pinned(tensor: Tensor) -> Tensor:
    """What ``tensor.pin_memory()`` does: a copy, made before it returns."""
    copied = tensor.clone()
    copied.pinned = True  # type: ignore[attr-defined]
    return copied


def install() -> Streams:
    """Have torch's tensors and the simulated device use these streams from now on, in a process of its own."""
    streams, plain = Streams(), Tensor.to
    module = torch.get_device_module(NAME)
    for name in ("Stream", "stream", "current_stream"):
        setattr(module, name, getattr(streams, name))

    def to(self: Tensor, device: Any, non_blocking: bool = False) -> Tensor:
        return streams.copy(self, device) if torch.device(device).type == NAME else plain(self, device, non_blocking=non_blocking)

    Tensor.to = to  # type: ignore[assignment]
    Tensor.pin_memory = pinned  # type: ignore[assignment]
    DeviceTensor.record_stream = lambda self, stream: streams.record(self, stream)  # type: ignore[assignment, arg-type]
    return streams
