"""A model of the time of a step on GPUs, from counted arithmetic and bytes and published speeds. Nothing here is measured.

The assumptions are constants; docs/scaling.md explains them, and benchmarks/scaling.py compares the bytes with measured ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sleepfm.models import negatives
from sleepfm.models.losses import TILE_ON_GPU
from sleepfm.models.negatives import group_size
from sleepfm.training.feed import Shares
from sleepfm.training.ranks.distributed import World
from sleepfm.training.run_config import RunConfig
from sleepfm.training.tracking.devices import Device
from sleepfm.training.tracking.traffic import StepTraffic, Traffic

SHARE_OF_PEAK = 0.5  # assumed share of a GPU's peak that products reach
SHARE_OF_BANDWIDTH = 0.7  # assumed share of the memory's bandwidth
# Of the bytes outside products, what is left when a model is compiled: 0.63 of NeuroNet's, 0.60 of SynthSleepNet's, counted by
# benchmarks/roofline.py.
COMPILED = 0.62
NETWORK = 50e9  # bytes/s of one 400 Gb/s port a GPU, nvidia.com/en-us/networking/products/infiniband/quantum-2
SHARE_OF_LINK = 0.7  # assumed of NVLink and of the network
LATENCY = 10e-6  # assumed seconds a hop between nodes
GPUS_A_NODE = 8
OVERLAP = 0.5  # assumed share of the backward pass (two thirds of the arithmetic) that hides gradients on their way
KERNELS = 1_200  # assumed of a micro-step of a compiled model
LAUNCH = 5e-6  # assumed seconds to launch one
# Bytes that a contrastive loss moves for a similarity, counted in sleepfm/models/losses.py: reads and writes of an fp32 tile, 11
# for the value and 13 for the gradient; and what it takes to form the similarities again where there are several tiles.
PASSES_BYTES, AGAIN_BYTES = 4 * 24, 20


@dataclass(frozen=True)
class Contrast:
    """The contrastive losses of a step on one rank.

    Attributes:
        pairs: items of a micro-step.
        width: of an embedding.
        losses: of a step, one a channel and micro-step.
        ranks: that are compared with each other.
        sets: losses of a micro-step, which share tiles and messages.
    """

    pairs: int
    width: int
    losses: int
    ranks: int
    sets: int = 1

    @property
    def sent_bytes(self) -> float:
        """Bytes that a rank sends in a step, see :func:`sleepfm.models.negatives.sent_bytes`."""
        return self.losses * negatives.sent_bytes(self.pairs, self.width, self.ranks, bf16=True)

    def seconds(self, device: Device) -> float:
        """Of the arithmetic: two or three products and the passes over the similarities."""
        similarities = 2 * self.pairs * 2 * self.pairs * self.ranks
        again = self.sets * similarities > TILE_ON_GPU
        products = (3 if again else 2) * 2 * similarities * self.width
        moved = similarities * (PASSES_BYTES + AGAIN_BYTES * again)
        once = products / (device.bf16 * SHARE_OF_PEAK) + moved / (device.bandwidth * SHARE_OF_BANDWIDTH)
        return self.losses * once


@dataclass(frozen=True)
class Work:
    """What one rank does in a step.

    Attributes:
        traffic: forward and backward, of all its micro-steps.
        trained: parameters that train, of the whole model.
        zero: stage of ZeRO.
        gradient_bytes: of a gradient on its way between ranks.
        contrast: its contrastive losses, if it has any.
        kernels: that it launches, in all its micro-steps.
        compiled: whether the model is, so that operations outside products share their reads and writes.
    """

    traffic: Traffic
    trained: float
    zero: int
    gradient_bytes: int = 4
    contrast: Contrast | None = None
    kernels: int = KERNELS
    compiled: bool = True


def work_of(config: RunConfig, processes: int, traffic: StepTraffic, trained: float) -> Work:
    """The work of ``config`` on ``processes``, of which ``traffic`` is a micro-step on one rank.

    Raises:
        ConfigError: the configuration does not fit so many processes.
    """
    shares = Shares.of(config.train, World(0, processes, 0, min(processes, GPUS_A_NODE)))
    losses, width = config.contrasts()
    contrast = None
    if losses:
        ranks = group_size(config.negatives(), processes, min(processes, GPUS_A_NODE))
        contrast = Contrast(shares.micro_batch, width, losses * shares.accumulation, ranks, losses)
    return Work(
        traffic.of(shares.micro_batch) * shares.accumulation,
        trained,
        config.deepspeed.zero,
        2 if config.deepspeed.reduce_dtype == "bf16" else 4,
        contrast,
        KERNELS * shares.accumulation,
        config.train.compile != "off",
    )


def sent_bytes(zero: int, parameters: float, processes: int, gradient_bytes: int = 4, parameter_bytes: int = 4) -> float:
    """Bytes that a process sends in a step of one micro-step, by rings.

    Without ZeRO an all-reduce of gradients: 2 (N - 1) / N of them. ZeRO 1 and 2: the same, and an all-gather of parameters; the
    paper's reduce-scatter would send half of the gradients (Rajbhandari et al. 2020, section 7), but DeepSpeed by default reduces
    buckets that hold parts of several ranks as a whole (``use_multi_rank_bucket_allreduce``).
    """
    return _gradient_bytes(parameters, processes, gradient_bytes) + (
        _parameter_bytes(parameters, processes, parameter_bytes) if zero else 0.0
    )


def _gradient_bytes(parameters: float, processes: int, of_one: int) -> float:
    return 2 * parameters * of_one * (processes - 1) / processes


def _parameter_bytes(parameters: float, processes: int, of_one: int = 4) -> float:
    return parameters * of_one * (processes - 1) / processes


def transfer_seconds(sent: float, processes: int, device: Device) -> float:
    """Seconds of a collective in which each of ``processes`` sends ``sent`` bytes.

    As many rings as a node has ports, each with its part of the bytes, cross between nodes by a port of their own. A ring is as
    fast as its slowest link; hops between nodes count, in trees of their number.
    """
    if processes == 1:
        return 0.0
    nodes = math.ceil(processes / GPUS_A_NODE)
    link = (device.nvlink if nodes == 1 else min(device.nvlink, GPUS_A_NODE * NETWORK)) * SHARE_OF_LINK
    hops = 2 * LATENCY * math.ceil(math.log2(nodes)) if nodes > 1 else 0.0
    return sent / link + hops


def step_seconds(work: Work, processes: int, device: Device) -> dict[str, float]:
    """Seconds of a step in bf16, by part; ``step`` is the sum of ``arithmetic``, ``loss``, ``exchange`` and what the backward
    pass does not hide of ``communication``.

    ``arithmetic`` is computing (products, by their arithmetic or their bytes) and moving (all other operations, by their bytes)
    one after the other, or launching if that is longer, and then the ``optimiser``, which reads and writes 28 bytes a parameter
    (weight, gradient and two moments in, weight and two moments out), shared by ZeRO. ``loss`` and ``exchange`` are the
    arithmetic of the contrastive loss and its embeddings on their way, ``communication`` gradients and then, with ZeRO,
    parameters on theirs; these come after the optimiser, so that nothing hides them.
    """
    traffic, bandwidth = work.traffic, device.bandwidth * SHARE_OF_BANDWIDTH
    computing = max(traffic.flops / (device.bf16 * SHARE_OF_PEAK), traffic.product_bytes / bandwidth)
    moving = traffic.other_bytes * (COMPILED if work.compiled else 1.0) / bandwidth
    launching = work.kernels * LAUNCH
    optimiser = 28 * work.trained / (processes if work.zero else 1) / bandwidth
    longest = max(computing + moving, launching)
    arithmetic = longest + optimiser
    loss = exchange = 0.0
    if work.contrast is not None:
        loss = work.contrast.seconds(device)
        exchange = transfer_seconds(work.contrast.sent_bytes, work.contrast.ranks, device)
    gradients = transfer_seconds(_gradient_bytes(work.trained, processes, work.gradient_bytes), processes, device)
    parameters = transfer_seconds(_parameter_bytes(work.trained, processes), processes, device) if work.zero else 0.0
    hidden = min(gradients, OVERLAP * longest * 2 / 3)
    whole = arithmetic + loss + exchange
    return {
        "computing": computing,
        "moving": moving,
        "launching": launching,
        "optimiser": optimiser,
        "arithmetic": arithmetic,
        "loss": loss,
        "exchange": exchange,
        "communication": gradients + parameters,
        "step": whole + gradients + parameters - hidden,
        "step_without_overlap": whole + gradients + parameters,
    }
