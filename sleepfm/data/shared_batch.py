"""Batches in memory that two processes share."""

from __future__ import annotations

import mmap
import os
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from sleepfm.data.batch import Batch

# Where tensors may begin.
ALIGNMENT = 64


class Place(NamedTuple):
    """Where a tensor lies in shared memory."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class SharedMemory:
    """Memory for one batch at a time, of the file descriptor ``handle``; it grows with the batches.

    It has no name, so that nothing of it stays when its processes are gone, however they end, and it is not taken from
    ``/dev/shm``, which containers keep small.
    """

    def __init__(self, handle: int | None = None) -> None:
        self.handle = os.memfd_create("sleepfm-batch") if handle is None else handle
        self._mapped: mmap.mmap | None = None

    def write(self, batch: Batch) -> Batch:
        """Copy ``batch`` here; returns it with a :class:`Place` instead of each tensor."""
        tensors: list[Tensor] = []
        batch.apply(tensors.append)
        sizes = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors]
        offsets = iter(accumulate(sizes, initial=0))
        if os.fstat(self.handle).st_size < sum(sizes):
            os.ftruncate(self.handle, sum(sizes))

        def place(tensor: Tensor) -> Place:
            # Dense tensors keep the order of their dimensions, as a copy in this process does.
            strides = torch.empty_like(tensor, device="meta").stride()
            taken = Place(next(offsets), tensor.dtype, tuple(tensor.shape), strides)
            self._view(taken).copy_(tensor)
            return taken

        return batch.apply(place)

    def read(self, places: Batch) -> Batch:
        """The batch that :meth:`write` told the places of, until the next one is written: its tensors are this memory."""
        return places.apply(self._view)

    def _view(self, place: Place) -> Tensor:
        size = torch.Size(place.shape).numel()
        if not size:
            return torch.empty(place.shape, dtype=place.dtype)
        end = place.offset + size * place.dtype.itemsize
        if self._mapped is None or len(self._mapped) < end:
            self._mapped = mmap.mmap(self.handle, os.fstat(self.handle).st_size)
        flat = torch.frombuffer(self._mapped, dtype=place.dtype, count=size, offset=place.offset)
        return flat.as_strided(place.shape, place.strides)

    def close(self) -> None:
        """Give the descriptor back; memory that tensors still use stays."""
        os.close(self.handle)
