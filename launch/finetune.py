"""A fine-tune: ``deepspeed [launcher options] launch/finetune.py CONFIG [key=value …]``."""

from __future__ import annotations

from sleepfm.evaluation.finetune import FinetuneStage
from sleepfm.evaluation.settings import FinetuneConfig
from sleepfm.training.job import Context, run
from sleepfm.training.source import dataset_digest


def build_stage(config: FinetuneConfig, context: Context) -> FinetuneStage:
    """The stage, from the encoder version that this run started with."""
    return FinetuneStage(config, context.pull(config.encoder))


if __name__ == "__main__":
    run(FinetuneConfig, build_stage, dataset_digest, __doc__)
