"""One pretraining stage: ``deepspeed [launcher options] launch/pretrain.py CONFIG [key=value …]``."""

from __future__ import annotations

from sleepfm.stages.data_config import dataset_digest
from sleepfm.stages.pretrain import PretrainConfig, build_stage
from sleepfm.training.job import run

if __name__ == "__main__":
    run(PretrainConfig, build_stage, dataset_digest, __doc__)
