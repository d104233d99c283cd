"""The toy on two ranks, of which the second has a processor without AVX-512: oneDNN is told so before torch is there."""

from __future__ import annotations

import os

if os.environ.get("RANK") == "1":
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"

from toy import ToyRunConfig, ToyStage

from sleepfm.training.job import run

if __name__ == "__main__":
    run(ToyRunConfig, ToyStage, lambda config: ToyStage.dataset_digest, "toy")
