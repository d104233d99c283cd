"""Digests by which two files are known to hold one signal, whatever their headers, dates, names and order of channels are."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

# Shorter beginnings are not compared: 2 ** 15 samples are 4.4 minutes at 125 Hz, and nothing at the 1 Hz of an oximeter.
_LEAST = 1 << 15
# A beginning in which the signal moves less than this often may be an open input, which many recordings share.
_CHANGES = 1024
_KEPT = 3
_DIGEST_BYTES = 8


class SampleDigests:
    """Digests of the beginnings of one signal, of 2 ** k samples as they stand in the file, fed block by block.

    The longest three beginnings are kept, and two signals are the same if they share a digest. So a recording is known again that
    was cut at its end, as long as a quarter of it is left. Pauses count as nothing.
    """

    def __init__(self, sample_bytes: int) -> None:
        self._bytes = sample_bytes
        self._hash = hashlib.sha256()
        self._count = self._changes = 0
        self._next = _LEAST
        self._found: list[str] = []

    def add(self, block: NDArray[np.uint8]) -> None:
        """The bytes of the samples that follow, contiguous."""
        content = block.reshape(-1, self._bytes)
        while len(content):
            part = content[: self._next - self._count]
            if self._changes < _CHANGES:
                self._changes += int(np.count_nonzero(part[1:, 0] != part[:-1, 0]))
            self._hash.update(part.data)
            self._count += len(part)
            content = content[len(part) :]
            if self._count == self._next:
                self._next *= 2
                if self._changes >= _CHANGES:
                    self._found.append(self._hash.copy().hexdigest()[: 2 * _DIGEST_BYTES])

    @property
    def kept(self) -> tuple[str, ...]:
        """Those of the longest beginnings, 16 hexadecimal digits each; none for a signal that is short or hardly moves."""
        return tuple(self._found[-_KEPT:])
