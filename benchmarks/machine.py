"""What a figure was measured on, in words for people to compare with theirs; without the machine's name."""

from __future__ import annotations


def describe() -> str:
    """Cores, memory, processor, whether it multiplies in bf16, and GPUs.

    Imports torch, whose memory a process passes on to the peaks of those it starts: call it after what is measured.
    """
    from sleepfm.models.device import native_bf16
    from sleepfm.training.tracking.machine import environment

    facts = environment("")
    words = [f"{facts['cores']} cores", f"{facts['memory_gib']:.0f} GiB", facts["cpu"]]
    words.append("bf16 instructions" if native_bf16("cpu") else "no bf16 instructions")
    return ", ".join(words + facts["gpus"])


if __name__ == "__main__":
    print(describe())
