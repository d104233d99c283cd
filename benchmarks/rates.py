"""What this machine reaches with nothing in the way: the rates behind the physical limits of `run.py`.

    python benchmarks/rates.py [--seconds S] [--json F]

Each rate is the best of what fits into S seconds. `product`: operations/s of one large square matrix product, by type and by
threads; bf16 only where the processor multiplies in it. `copy`: bytes/s that one thread copies in memory, each of them read and
written. `conversion`: numbers/s that one thread turns from int16 into float32, as readers of shards must.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ORDER = 2048
# Far more than the caches of a processor hold.
BYTES = 2**28
# Of a training process in training.py, and of models.py.
THREADS = (1, 2)


def best_seconds(work: Callable[[], Any], seconds: float) -> float:
    """The shortest call of ``work``, which is called once more and then for ``seconds``."""
    work()
    best, begun = float("inf"), time.monotonic()
    while best == float("inf") or time.monotonic() - begun < seconds:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def product_rate(seconds: float = 2.0) -> dict[str, float]:
    """Floating-point operations a second of one large product, with torch's threads, in each type that we compute in here."""
    import torch

    from sleepfm.models.device import native_bf16

    found = {}
    for dtype in (torch.float32, *([torch.bfloat16] if native_bf16("cpu") else [])):
        a, b, out = (torch.randn(ORDER, ORDER).to(dtype) for _ in range(3))
        taken = best_seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), seconds)
        found[str(dtype).removeprefix("torch.")] = 2 * ORDER**3 / taken
    return found


def copy_rate(seconds: float) -> float:
    """Bytes copied a second by one thread."""
    import numpy as np

    source = np.ones(BYTES, np.uint8)
    target = np.empty_like(source)
    return BYTES / best_seconds(lambda: np.copyto(target, source), seconds)


def conversion_rate(seconds: float) -> float:
    """Numbers a second that one thread turns from int16 into float32."""
    import numpy as np

    source = np.ones(BYTES // 4, np.int16)
    target = np.empty(len(source), np.float32)
    return len(source) / best_seconds(lambda: np.copyto(target, source), seconds)


def measure(seconds: float) -> dict[str, Any]:
    """All of them."""
    import torch

    products = {}
    for threads in THREADS:
        torch.set_num_threads(threads)
        products[str(threads)] = product_rate(seconds)
    return {
        "product_flops_a_second": products,
        "copied_bytes_a_second": copy_rate(seconds),
        "converted_numbers_a_second": conversion_rate(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="that each rate may take (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the rates there")
    arguments = parser.parse_args()
    text = json.dumps(measure(arguments.seconds), indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
