"""One pretraining stage: ``deepspeed [launcher options] launch/pretrain.py CONFIG [key=value …]``."""

from __future__ import annotations

if __name__ == "__main__":
    from sleepfm.training.ranks.preemption import leave_at_once

    # The other imports take seconds.
    leave_at_once()

from sleepfm.stages.data_config import dataset_digest
from sleepfm.stages.pretrain import PretrainConfig, build_stage
from sleepfm.training.job import run

if __name__ == "__main__":
    run(PretrainConfig, build_stage, dataset_digest, __doc__)
