"""A model of the time of a step on GPUs, from counted arithmetic and bytes and published speeds. Nothing here is measured.

The assumptions are constants; docs/scaling.md explains them, and benchmarks/scaling.py compares the bytes with measured ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sleepfm.training.tracking.devices import Device

SHARE_OF_PEAK = 0.30  # assumed share of a GPU's peak that arithmetic reaches (MFU)
SHARE_OF_BANDWIDTH = 0.7  # assumed share of the memory's bandwidth
NETWORK = 50e9  # bytes/s of one 400 Gb/s port a GPU, nvidia.com/en-us/networking/products/infiniband/quantum-2
SHARE_OF_LINK = 0.7  # assumed of NVLink and of the network
LATENCY = 10e-6  # assumed seconds a hop between nodes
GPUS_A_NODE = 8
OVERLAP = 0.5  # assumed share of the backward pass (two thirds of the arithmetic) that hides communication


@dataclass(frozen=True)
class Work:
    """What one rank does in a step.

    Attributes:
        flops: forward and backward, of all its micro-steps.
        activations: bytes kept for the backward pass, of all its micro-steps.
        trained: parameters that train, of the whole model.
        zero: stage of ZeRO.
        gradient_bytes: of a gradient on its way between ranks.
    """

    flops: float
    activations: float
    trained: float
    zero: int
    gradient_bytes: int = 4


def sent_bytes(zero: int, parameters: float, processes: int, gradient_bytes: int = 4, parameter_bytes: int = 4) -> float:
    """Bytes that a process sends in a step of one micro-step, by rings.

    Without ZeRO an all-reduce of gradients: 2 (N - 1) / N of them. ZeRO 1 and 2: the same, and an all-gather of parameters; the
    paper's reduce-scatter would send half of the gradients (Rajbhandari et al. 2020, section 7), but DeepSpeed by default reduces
    buckets that hold parts of several ranks as a whole (``use_multi_rank_bucket_allreduce``).
    """
    share = (processes - 1) / processes
    gradients = parameters * gradient_bytes * share
    gathered = parameters * parameter_bytes * share
    return 2 * gradients + (gathered if zero else 0.0)


def communication_seconds(work: Work, processes: int, device: Device) -> float:
    """Seconds of a step's gradients and parameters between ranks.

    As many rings as a node has ports, each with its part of the bytes, cross between nodes by a port of their own. A ring is as
    fast as its slowest link; hops between nodes count, in trees of their number.
    """
    if processes == 1:
        return 0.0
    sent = sent_bytes(work.zero, work.trained, processes, work.gradient_bytes)
    nodes = math.ceil(processes / GPUS_A_NODE)
    link = (device.nvlink if nodes == 1 else min(device.nvlink, GPUS_A_NODE * NETWORK)) * SHARE_OF_LINK
    hops = 2 * LATENCY * math.ceil(math.log2(nodes)) if nodes > 1 else 0.0
    return sent / link + hops


def step_seconds(work: Work, processes: int, device: Device) -> dict[str, float]:
    """Seconds of a step in bf16, by part; ``step`` is their sum, less what the backward pass hides.

    ``arithmetic`` is the longer of computing and moving: a kept activation is written once and read once, and the optimiser reads
    and writes 28 bytes a parameter (weight, gradient and two moments in, weight and two moments out), shared by ZeRO.
    """
    computing = work.flops / (device.bf16 * SHARE_OF_PEAK)
    optimiser = 28 * work.trained / (processes if work.zero else 1)
    moving = (2 * work.activations + optimiser) / (device.bandwidth * SHARE_OF_BANDWIDTH)
    arithmetic = max(computing, moving)
    communication = communication_seconds(work, processes, device)
    hidden = min(communication, OVERLAP * arithmetic * 2 / 3)
    return {
        "computing": computing,
        "moving": moving,
        "arithmetic": arithmetic,
        "communication": communication,
        "step": arithmetic + communication - hidden,
        "efficiency": arithmetic / (arithmetic + communication - hidden),
        "efficiency_without_overlap": arithmetic / (arithmetic + communication),
    }
