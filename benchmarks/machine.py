"""What a figure was measured on, in words for people to compare with theirs; without the machine's name."""

from __future__ import annotations

import re
from typing import Any


def facts() -> dict[str, Any]:
    """The processor's name, its cores, whether it multiplies in bf16, memory in GiB, and the names of GPUs.

    Imports torch, whose memory a process passes on to the peaks of those it starts: call it after what is measured.
    """
    from sleepfm.models.device import native_bf16
    from sleepfm.training.tracking.machine import environment

    found = environment("")
    return {
        "processor": found["cpu"],
        "cores": found["cores"],
        "bf16": native_bf16("cpu"),
        "memory_gib": found["memory_gib"],
        "gpus": found["gpus"],
    }


def describe() -> str:
    """:func:`facts` in a line."""
    found = facts()
    words = [f"{found['cores']} cores", f"{found['memory_gib']:.0f} GiB", found["processor"]]
    words.append("bf16 instructions" if found["bf16"] else "no bf16 instructions")
    return ", ".join(words + found["gpus"])


def slug(found: dict[str, Any]) -> str:
    """Processor and cores of :func:`facts` in the name of a file: ``amd-epyc-2-cores``."""
    return "-".join(re.findall("[a-z0-9]+", f"{found['processor']} {found['cores']} cores".lower()))


if __name__ == "__main__":
    print(describe())
