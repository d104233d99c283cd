"""Build DeepSpeed's shared-memory collective at install time: no training run then waits for a compiler."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from deepspeed.accelerator import get_accelerator
from deepspeed.comm.torch import build_shm_op

if get_accelerator().device_name() == "cpu":
    print("building DeepSpeed's shared-memory collective (about a minute, once) ...", flush=True)
    build_shm_op()
