"""The training engine: DeepSpeed, schedules, checkpoints, tracking. Knows nothing of sleep stages."""
