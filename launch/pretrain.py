"""One pretraining stage: ``deepspeed [launcher options] launch/pretrain.py CONFIG [key=value …]``."""

from __future__ import annotations

from sleepfm.training.job import run
from sleepfm.training.pretrain import PretrainConfig, build_stage
from sleepfm.training.source import dataset_digest

if __name__ == "__main__":
    run(PretrainConfig, build_stage, dataset_digest, __doc__)
