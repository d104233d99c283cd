"""A fine-tune: ``deepspeed [launcher options] launch/finetune.py CONFIG [key=value …]``."""

from __future__ import annotations

if __name__ == "__main__":
    from sleepfm.training.ranks.preemption import leave_at_once

    # The other imports take seconds.
    leave_at_once()

from sleepfm.stages.data_config import dataset_digest
from sleepfm.stages.downstream_config import FinetuneConfig
from sleepfm.stages.finetune import FinetuneStage
from sleepfm.training.job import Context, run


def build_stage(config: FinetuneConfig, context: Context) -> FinetuneStage:
    """The stage, from the encoder version that this run started with."""
    return FinetuneStage(config, context.pull(config.encoder), context.work, context.on_paper)


if __name__ == "__main__":
    run(FinetuneConfig, build_stage, dataset_digest, __doc__)
