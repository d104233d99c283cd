"""A tar of WebDataset samples with reproducible bytes, known digest and known byte offsets."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

from sleepfm.data.format import MEMBERS

CHUNK = 1 << 19
BLOCK = 512  # tar: a header block, then the content padded to whole blocks


class _HashingFile:
    """Passes writes on and digests them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def write(self, content: bytes) -> int:
        self.sha256.update(content)
        self.bytes += len(content)
        return self._file.write(content)


def _tar_writer() -> Any:
    """WebDataset's ``TarWriter``, imported without torch unless that is loaded already.

    WebDataset has stand-ins for a missing torch; with it, a worker would take 180 MB more and 2 s longer to start.
    """
    if "webdataset" not in sys.modules and "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]
        try:
            importlib.import_module("webdataset.writer")
        finally:
            del sys.modules["torch"]
    from webdataset.writer import TarWriter

    return TarWriter


class ShardWriter:
    """Writes samples through WebDataset's ``TarWriter`` with fixed time and owner.

    ``bytes`` and ``sha256`` describe the whole tar once it is closed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = _HashingFile(file)
        self._tar = _tar_writer()(self._file, user="sleepfm", group="sleepfm", mtime=0, encoder=False, compress=False)
        # A member at a time instead of 10 kB: the same bytes with a fortieth of the calls.
        self._tar.tarstream.copybufsize = self._tar.tarstream.fileobj.bufsize = CHUNK

    def write(self, key: str, members: Mapping[str, bytes]) -> dict[str, int]:
        """Append one sample; returns the byte offset of each of :data:`MEMBERS` in the tar, -1 where absent."""
        offset = self._tar.tarstream.offset
        offsets = dict.fromkeys(MEMBERS, -1)
        # TarWriter sorts the members of a sample by name.
        for name in sorted(members):
            offsets[name] = offset + BLOCK
            offset += BLOCK + -(-len(members[name]) // BLOCK) * BLOCK
        self._tar.write({"__key__": key, **members})
        # A name too long for a plain header would put further blocks before it.
        assert self._tar.tarstream.offset == offset, f"{key}: tar layout is not the expected one"
        return offsets

    def close(self) -> None:
        """Write the end of the archive."""
        self._tar.close()

    @property
    def bytes(self) -> int:
        return self._file.bytes

    @property
    def sha256(self) -> str:
        return self._file.sha256.hexdigest()
