"""What a rank does with a shared cache: asks for files in an order of its own and reads them. Arguments: see ``main``."""

from __future__ import annotations

import hashlib
import random
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from sleepfm.data.cache import FileCache

FILES, SIZE, LIMIT = 5, 300_000, 1_000_000


def content_of(number: int) -> bytes:
    return random.Random(number).randbytes(SIZE)


def slow_chunks(content: bytes, log: Path, pause: float) -> Iterator[bytes]:
    with log.open("a") as file:
        file.write("x")
    for begin in range(0, len(content), 50_000):
        time.sleep(pause)
        yield content[begin : begin + 50_000]


def main(folder: Path, log: Path, pause: float, rounds: int, seed: int) -> None:
    files, order = FileCache(folder, LIMIT), random.Random(seed)
    for _ in range(rounds):
        for number in order.sample(range(FILES), FILES):
            content = content_of(number)
            digest = hashlib.sha256(content).hexdigest()
            for _ in range(10):
                chunks = partial(slow_chunks, content, log, pause)
                path = files.get(f"d/shards/shard-{number:06d}.tar", SIZE, digest, chunks)
                try:
                    found = path.read_bytes()
                except FileNotFoundError:  # removed by another process between get and read, as readers know
                    continue
                assert found == content
                break
            else:
                raise AssertionError(f"{number} was never there long enough to be read")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
