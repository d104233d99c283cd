"""Import once, at install time, what every job imports: the first run is faster, and a broken install shows now.

Nothing is compiled: the training engine uses no operator of DeepSpeed that needs a compiler on CPUs.
"""

from __future__ import annotations

import importlib

from sleepfm.training.ranks.distributed import import_deepspeed

for name in ("torch._dynamo", "mlflow", "ray", "sklearn.linear_model", "matplotlib.pyplot", "mne"):
    importlib.import_module(name)

deepspeed = import_deepspeed()
print(f"DeepSpeed {deepspeed.__version__} on {deepspeed.get_accelerator().device_name()}")
