"""A probe of whole recordings (age, sex, …): ``deepspeed [launcher options] launch/recordings.py CONFIG [key=value …]``."""

from __future__ import annotations

if __name__ == "__main__":
    from sleepfm.training.ranks.preemption import leave_at_once

    # The other imports take seconds.
    leave_at_once()

from sleepfm.stages.data_config import dataset_digest
from sleepfm.stages.downstream_config import RecordingProbeConfig
from sleepfm.stages.recording_probe import RecordingProbeStage
from sleepfm.training.job import Context, run


def build_stage(config: RecordingProbeConfig, context: Context) -> RecordingProbeStage:
    """The stage, from the encoder version that this run started with."""
    return RecordingProbeStage(config, context.pull(config.encoder), context.work, context.on_paper)


if __name__ == "__main__":
    run(RecordingProbeConfig, build_stage, dataset_digest, __doc__)
