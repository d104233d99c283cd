"""Memory that a step on a processor frees, kept for the next step.

glibc takes large tensors from the system one by one and gives them back as soon as they are freed. The system clears every page
that it gives: of a step whose gradients and activations take a gigabyte, a quarter of a million pages, in every step.
"""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3), of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 2**30


def keep_freed_memory() -> bool:
    """Have this process keep what it frees from now on, below 1 GiB at a time. What it held at most stays its own.

    Returns:
        Whether the C library can: glibc can, others take no such wish.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
