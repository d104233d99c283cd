"""Read byte ranges of the data records in blocks, whatever the size of a record."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sleepfm.errors import RecordingError
from sleepfm.signals.edf.header import EdfHeader
from sleepfm.signals.files import MemoryFile, RandomFile

_BLOCK_BYTES = 1 << 22
# From this size on a record is not read whole: seeking to the wanted part is cheaper.
_LARGE_RECORD = 1 << 18


def iter_blocks(
    file: RandomFile, header: EdfHeader, name: str, begin: int, end: int, first: int, stop: int
) -> Iterator[NDArray[np.uint8]]:
    """Bytes ``begin`` to ``end`` of records ``first`` to ``stop``, as blocks [records, end - begin] in order.

    Raises:
        RecordingError: the file ends early, that is, it changed since its header was read.
    """
    if header.record_bytes > _LARGE_RECORD:
        for record in range(first, stop):
            start = header.data_offset + record * header.record_bytes + begin
            yield _read(file, start, end - begin, record, name)[None, :]
        return
    per_block = _BLOCK_BYTES // header.record_bytes
    for record in range(first, stop, per_block):
        count = min(per_block, stop - record)
        start = header.data_offset + record * header.record_bytes
        block = _read(file, start, count * header.record_bytes, record, name)
        yield block.reshape(count, header.record_bytes)[:, begin:end]


def _read(file: RandomFile, start: int, length: int, record: int, name: str) -> NDArray[np.uint8]:
    block = file.view(start, length) if isinstance(file, MemoryFile) else file.read(start, length)
    if len(block) < length:
        raise RecordingError(f"{name}: ends after record {record}; the file became shorter while it was read")
    return np.frombuffer(block, dtype=np.uint8)
