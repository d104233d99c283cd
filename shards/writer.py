"""A tar of WebDataset samples with reproducible bytes, known digest and known byte offsets."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE  # a header, then the content padded to whole blocks


class ShardWriter:
    """Writes samples as members of a tar, named ``<key>.<member>``, with fixed time, owner and mode.

    A member is a USTAR header and its content, and nothing of a member depends on what is around it; ``tarfile`` makes the
    headers. ``bytes`` and ``sha256`` describe what was written.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.bytes = 0

    def write(self, key: str, members: Mapping[str, bytes]) -> dict[str, int]:
        """Append one sample with ``members`` in their order; returns the byte offset of each one's content.

        Raises:
            ValueError: a name is longer than a USTAR header holds.
        """
        offsets = {}
        for name, content in members.items():
            self._append(_header(f"{key}.{name}", len(content)))
            offsets[name] = self.bytes
            self._append(content)
            self._append(bytes(-len(content) % BLOCK))
        return offsets

    def close(self) -> None:
        """Write the end of the archive: two empty blocks, and more up to a whole record."""
        self._append(bytes(2 * BLOCK))
        self._append(bytes(-self.bytes % tarfile.RECORDSIZE))

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def _append(self, content: bytes) -> None:
        self._sha256.update(content)
        self.bytes += len(content)
        self._file.write(content)


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o444
    member.uname = member.gname = "sleepfm"
    return member.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
