"""Memory that a process frees, kept for what it does next.

glibc takes large arrays from the system one by one and gives them back as soon as they are freed. The system clears every page
that it gives: a quarter of a million pages in every training step whose gradients and activations take a gigabyte, and twenty
thousand for every night that is converted.
"""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3), of malloc.h, and the largest number that they take.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1
_LARGEST_BLOCK = 2**30


def keep_freed_memory(most: int = _LARGEST) -> bool:
    """Have this process keep what it frees from now on, blocks up to 1 GiB.

    Args:
        most: bytes; what is free at the end of the heap beyond that goes back to the system, and so does a block above that.
            Without it, what the process held at most stays its own.

    Returns:
        Whether the C library can: glibc can, others take no such wish.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    return bool(mallopt(_M_MMAP_THRESHOLD, min(most, _LARGEST_BLOCK))) and bool(mallopt(_M_TRIM_THRESHOLD, most))
