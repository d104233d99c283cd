"""What a rank does with a shared cache: fetches blocks of shards in an order of its own and reads them. See ``main``."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from pathlib import Path

import numpy as np

from sleepfm.data.cache import BLOCK, BlockCache, CachedShard
from sleepfm.data.fetch import NoRoomError, RemoteObject, fetch_blocks

SHARDS, SIZE, LIMIT = 5, 300_000, 1_000_000


def content_of(number: int) -> bytes:
    return random.Random(number).randbytes(SIZE)


def name_of(number: int) -> str:
    return f"d/shards/shard-{number:06d}.tar"


class LoggedObject(RemoteObject):
    """A shard on disk, each of whose reads takes ``pause`` seconds and writes a line: shard, begin, end."""

    def __init__(self, folder: Path, number: int, log: Path, pause: float) -> None:
        path = folder / f"{number}.tar"
        if not path.exists():
            part = path.with_name(f"{path.name}.{os.getpid()}")
            part.write_bytes(content_of(number))
            # One file for all, whoever is first.
            with contextlib.suppress(FileExistsError):
                os.link(part, path)
            part.unlink()
        super().__init__(f"file://{path}", SIZE, contextlib.nullcontext)
        self.number, self.log, self.pause = number, log, pause

    def read(self, begin: int, end: int) -> bytes:
        with self.log.open("a") as file:
            file.write(f"{self.number} {begin} {end}\n")
        time.sleep(self.pause)
        return super().read(begin, end)


def fetch(cache: BlockCache, remote: LoggedObject, begin: int, end: int, at_once: bool = True) -> CachedShard:
    shard = cache.open(name_of(remote.number), SIZE)
    fetch_blocks(cache, shard, remote, np.array([begin]), np.array([end]), at_once)
    return shard


def main(folder: Path, log: Path, pause: float, rounds: int, seed: int, limit: int = LIMIT) -> None:
    cache, order = BlockCache(folder, limit), random.Random(seed)
    objects = [LoggedObject(folder.parent, number, log, pause) for number in range(SHARDS)]
    for _ in range(rounds):
        for number in order.sample(range(SHARDS), SHARDS):
            begin = order.randrange(0, SIZE - 60_000)
            end = begin + order.randrange(1, 60_000)
            while True:
                try:
                    shard = fetch(cache, objects[number], begin, end, at_once=False)
                    break
                except NoRoomError:  # until the other ranks have closed theirs
                    time.sleep(0.01)
            assert shard.holds(begin, end)
            assert os.pread(shard.handle, end - begin, begin) == content_of(number)[begin:end]
            for block in (np.flatnonzero(~shard.absent()) * BLOCK).tolist():
                assert os.pread(shard.handle, BLOCK, block)[: SIZE - block] == content_of(number)[block : block + BLOCK]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), *map(int, sys.argv[4:]))
