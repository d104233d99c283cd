"""Build DeepSpeed's shared-memory collective at install time: no training run then waits for a compiler."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from deepspeed.accelerator import get_accelerator

if get_accelerator().device_name() == "cpu":
    builder = get_accelerator().create_op_builder("ShmCommBuilder")
    if builder is not None and builder.is_compatible():
        print("building DeepSpeed's shared-memory collective (about a minute, once) ...", flush=True)
        builder.load(verbose=False)
