"""Memory that new files can have at once, on a virtual machine whose host takes unused memory back.

Such a machine tells its host which memory is free (Linux: free page reporting of ``virtio_balloon``), and the host takes it
away within seconds. Each page of a new file is then asked of the host again, which costs several times what the writing does,
and two processes wait for each other there. A machine that has its memory to itself pays none of this. So whoever measures what
a program does holds some memory beforehand, and lets go of it while the program writes.
"""

from __future__ import annotations

import mmap
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_PIECE_BYTES = 64 * 2**20
_AT_FIRST = 6


@contextmanager
def memory_at_hand(pieces: int = 40, seconds: float = 0.3) -> Iterator[None]:
    """While this lasts, so many pieces of 64 MiB become free: six at once and one in each ``seconds``."""
    command = [sys.executable, __file__, str(pieces), str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin and holder.stdout
        holder.stdout.readline()  # all is held
        holder.stdin.close()
        try:
            yield
        finally:
            holder.kill()


def hold(pieces: int, seconds: float) -> None:
    held = []
    for _ in range(pieces):
        piece = mmap.mmap(-1, _PIECE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # Given back in 32 large pages instead of 16,384 small ones, which would take processor time from who is measured.
        piece.madvise(mmap.MADV_HUGEPAGE)
        for place in range(0, _PIECE_BYTES, mmap.PAGESIZE):
            piece[place] = 1
        held.append(piece)
    print("held", flush=True)
    sys.stdin.read()
    for number in range(pieces):
        if number >= _AT_FIRST:
            time.sleep(seconds)
        held.pop().close()


if __name__ == "__main__":
    hold(int(sys.argv[1]), float(sys.argv[2]))
