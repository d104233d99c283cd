"""What makers state of GPUs in their data sheets, and what is assumed of them where nothing was measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """A GPU as its data sheet states it, without sparsity.

    Attributes:
        name: words that stand in the device's name as torch gives it.
        bf16: dense peak in FLOP/s; 0 where it has none.
        fp32: peak as torch computes by default, that is without TF32.
        memory: bytes.
        bandwidth: bytes/s between the chip and its memory.
        nvlink: bytes/s in one direction to the other GPUs of a node; 0 where it is not the SXM form, or has none.
        source: where the figures stand.
    """

    name: str
    bf16: float
    fp32: float
    memory: float = 0.0
    bandwidth: float = 0.0
    nvlink: float = 0.0
    source: str = ""


DEVICES = (
    Device("H200", 989e12, 67e12, 141e9, 4.8e12, 450e9, "nvidia.com/en-us/data-center/h200 (SXM)"),
    Device("H100 PCIe", 756e12, 51e12, 80e9, 2.0e12, 0.0, "nvidia.com/en-us/data-center/h100"),
    Device("H100", 989e12, 67e12, 80e9, 3.35e12, 450e9, "nvidia.com/en-us/data-center/h100 (SXM)"),
    Device("A100", 312e12, 19.5e12, 80e9, 2.039e12, 300e9, "nvidia.com/en-us/data-center/a100 (80 GB SXM)"),
    Device("L40S", 362e12, 91.6e12, 48e9, 0.864e12, 0.0, "nvidia.com/en-us/data-center/l40s"),
    Device("A10", 125e12, 31.2e12, 24e9, 0.6e12, 0.0, "nvidia.com/en-us/data-center/products/a10-gpu"),
    Device("V100", 0.0, 15.7e12, 32e9, 0.9e12, 150e9, "nvidia.com/en-us/data-center/v100"),
)

# Those that the expected time is told for.
NAMED = tuple(device for device in DEVICES if device.nvlink and device.bf16)


def known_device(name: str) -> Device | None:
    """The device whose every word stands in ``name``, as ``torch.cuda.get_device_name`` gives it."""
    return next((device for device in DEVICES if all(word in name for word in device.name.split())), None)
