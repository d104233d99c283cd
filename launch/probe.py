"""A probe on a frozen encoder: ``deepspeed [launcher options] launch/probe.py CONFIG [key=value …]``."""

from __future__ import annotations

if __name__ == "__main__":
    from sleepfm.training.ranks.preemption import leave_at_once

    # The other imports take seconds.
    leave_at_once()

from sleepfm.stages.data_config import dataset_digest
from sleepfm.stages.downstream_config import ProbeConfig
from sleepfm.stages.probe import ProbeStage
from sleepfm.training.job import Context, run


def build_stage(config: ProbeConfig, context: Context) -> ProbeStage:
    """The stage, from the encoder version that this run started with."""
    return ProbeStage(config, context.pull(config.encoder), context.work, context.on_paper)


if __name__ == "__main__":
    run(ProbeConfig, build_stage, dataset_digest, __doc__)
