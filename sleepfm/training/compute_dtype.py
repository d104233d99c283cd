"""What ``deepspeed.dtype: auto`` stands for in a job: the same on all ranks, and in a run that goes on the same as before."""

from __future__ import annotations

from typing import TypeVar

from sleepfm.errors import StorageError
from sleepfm.models.device import native_bf16
from sleepfm.training.branch import parse
from sleepfm.training.folder import Resume, RunFolder
from sleepfm.training.ranks.distributed import World, gather_json
from sleepfm.training.run_config import RunConfig

ConfigT = TypeVar("ConfigT", bound=RunConfig)


def as_begun(config: ConfigT, resume: Resume) -> ConfigT:
    """``config`` with the type of the run that goes on, or that it branches from; as it is where none has begun.

    Reads ``run.json`` alone, so that a process knows it before it has met the others.
    """
    if config.deepspeed.dtype != "auto" or resume == "never":
        return config
    folders = [RunFolder(config.train.output), *([parse(config.branch_from)[0]] if config.branch_from else [])]
    for folder in folders:
        try:
            known = folder.settings()
        except StorageError:
            # Whoever checks the folder refuses it, with everything else that is wrong.
            return config
        if known:
            return _with(config, known["deepspeed"]["dtype"])
    return config


def settle(config: ConfigT, world: World) -> ConfigT:
    """``config`` with a type that all ranks share: one that a rank knows, else ``bf16`` if every rank's device multiplies in it.

    Every rank calls this, whatever its configuration says.
    """
    everyone = gather_json(world, [config.deepspeed.dtype, native_bf16(world.device)])
    if config.deepspeed.dtype != "auto":
        return config
    known = [dtype for dtype, _ in everyone if dtype != "auto"]
    return _with(config, known[0] if known else "bf16" if all(native for _, native in everyone) else "fp32")


def _with(config: ConfigT, dtype: str) -> ConfigT:
    return config.model_copy(update={"deepspeed": config.deepspeed.model_copy(update={"dtype": dtype})})
