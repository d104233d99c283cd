"""DeepSpeed's settings of a run, and what its ZeRO optimiser does otherwise here so that no step waits for the device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from sleepfm.config import merge
from sleepfm.training.feed import Shares
from sleepfm.training.run_config import DeepSpeedConfig, RunConfig

# Gradients travel in so many buckets: all but the last one while the backward pass goes on.
_BUCKETS = 8
# Below some 10 MB latency outweighs bandwidth (Li et al. 2020, arXiv 2006.15704, figures 7 and 8).
_LEAST_BUCKET = 2_500_000


def trained_sizes(module: nn.Module) -> list[int]:
    """Numbers of elements of the parameters of ``module`` that train."""
    return [parameter.numel() for parameter in module.parameters() if parameter.requires_grad]


def zero_settings(options: DeepSpeedConfig, trained: Sequence[int]) -> dict[str, Any]:
    """The section ``zero_optimization`` for parameters of ``trained`` elements, with what ``options.extra`` says of it.

    A bucket holds at least the largest parameter, since DeepSpeed reduces one that does not fit where it is, and frees it before
    another stream has read it.
    """
    settings: dict[str, Any] = {"stage": options.zero}
    if options.zero:
        bucket = max(math.ceil(sum(trained) / _BUCKETS), _LEAST_BUCKET, *trained)
        settings |= {"overlap_comm": True, "reduce_bucket_size": bucket}
    return merge(settings, options.extra.get("zero_optimization", {}))


def bucket_bytes(options: DeepSpeedConfig, trained: Sequence[int]) -> int:
    """What DeepSpeed 0.19 sets aside on a rank for gradients on their way, in fp32: two buckets for each type that they travel
    in, one to fill while the other is reduced; nothing without ZeRO.
    """
    settings = zero_settings(options, trained)
    if not options.zero or not settings.get("contiguous_gradients", True):
        return 0
    kinds = 2 if options.compute_dtype == "bf16" and options.reduce_dtype == "bf16" else 1
    return 4 * int(settings["reduce_bucket_size"]) * kinds * (2 if settings["overlap_comm"] else 1)


def deepspeed_config(config: RunConfig, shares: Shares, trained: Sequence[int], from_universal: bool) -> dict[str, Any]:
    """DeepSpeed's own configuration for parameters of ``trained`` elements.

    Learning rate and schedule stay with the engine, clipping with :class:`sleepfm.training.update.Update`.
    """
    train, options = config.train, config.deepspeed
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": shares.micro_batch,
        "gradient_accumulation_steps": shares.accumulation,
        "gradient_clipping": 0.0,
        "steps_per_print": None,
        # Its clock waits for the device twice a micro-step.
        "timers": {"throughput": {"enabled": False}},
        "zero_optimization": zero_settings(options, trained),
        "zero_allow_untested_optimizer": True,
        "optimizer": {
            "type": "AdamW",
            # The fused one alone can leave out an update without the host knowing.
            "params": {"lr": train.lr, "betas": list(train.betas), "torch_adam": True, "fused": True},
        },
    }
    if options.compute_dtype == "bf16":
        # Autocast keeps parameters, buffers and norms in fp32 and computes in bf16. The listed module classes
        # are those whose gradients travel in bf16.
        settings["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            **({"lower_precision_safe_modules": []} if options.reduce_dtype == "fp32" else {}),
        }
    if from_universal:
        settings["checkpoint"] = {"load_universal": True}
    return merge(settings, options.extra)


def leave_norm_and_clipping(zero: Any, clip: float) -> None:
    """Have ``zero``, DeepSpeed's optimiser of ZeRO 1 or 2, update without computing or reading a norm, and without clipping.

    Once a checkpoint is loaded: DeepSpeed refuses one of a run that clipped where it has no norm to clip by. ``clip`` stands in
    the checkpoints to come, as before.
    """
    zero.check_grad_overflow = zero.compute_grad_norm = False
    zero.clip_grad = clip
    zero.unscale_and_clip_grads = lambda *_: None


def wait_on_the_stream(zero: Any) -> None:
    """Have ``zero`` wait for overlapped reductions on the stream that reads their results: DeepSpeed lets the host wait for all
    of the device at the end of each backward pass.

    What the reductions read and write was taken from the allocator by the stream that waits, or is marked as used by theirs, so
    that nothing is given to another use before they are done.
    """
    from deepspeed.accelerator import get_accelerator

    accelerator, epilogue = get_accelerator(), zero.independent_gradient_partition_epilogue

    def wait(*_: Any) -> None:
        accelerator.current_stream().wait_stream(zero.reduction_stream)

    def epilogue_on_the_stream() -> None:
        with _replaced(accelerator, "synchronize", wait):
            epilogue()

    zero.independent_gradient_partition_epilogue = epilogue_on_the_stream


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within the block ``owner`` has its own attribute ``name``."""
    before: Mapping[str, Any] = dict(vars(owner))
    setattr(owner, name, value)
    try:
        yield
    finally:
        if name in before:
            setattr(owner, name, before[name])
        else:
            delattr(owner, name)
