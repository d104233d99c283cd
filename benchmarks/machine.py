"""What a figure was measured on, in words for people to compare with theirs; without the machine's name."""

from __future__ import annotations

import os
import platform
from pathlib import Path

# What multiplies in bf16: AVX512-BF16, AMX, ARM's.
_BF16 = ("avx512_bf16", "amx_bf16", "bf16")


def describe() -> str:
    """Cores, memory, processor, whether it multiplies in bf16, and the first GPU if there is one."""
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    facts = {name.strip(): value.strip() for name, _, value in lines}
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    words = [f"{os.cpu_count()} cores", f"{memory:.0f} GiB", facts.get("model name", platform.machine())]
    words.append("bf16 instructions" if any(flag in flags for flag in _BF16) else "no bf16 instructions")
    return ", ".join(words + _gpus())


def _gpus() -> list[str]:
    if not Path("/dev/nvidia0").exists():
        return []
    import torch

    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


if __name__ == "__main__":
    print(describe())
