"""What the models say about one night."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sleepfm.evaluation.breathing import Breathing, count_breathing
from sleepfm.evaluation.sleep_statistics import SleepStatistics, sleep_statistics
from sleepfm.signals.scorings.scoring import Event


@dataclass(frozen=True)
class NightScore:
    """What the models say about one night.

    Attributes:
        record: name of the recording.
        channels: canonical channels that were used.
        models: task to the address of the model that scored it.
        stages: [E] int8, -1 where no channel could be used (or no model of the stages was given).
        hypnodensity: [E, 5] probability of each stage, nan where unscored.
        probability: task to [E] probability of an event in the epoch, nan where unscored.
        threshold: task to the probability from which an epoch is called positive.
        events: apneas and hypopneas told to the second, by onset; a hypopnea that overlaps an apnea is part of it.
        warnings: what a reader must know: channels missing, and when others hold no usable signal.
        runs: runs of positive epochs of the tasks whose models do not tell seconds apart, by onset; they are no events.
        event_threshold: task to the probability from which a second belongs to an event; only tasks told to the second.
        inputs: task to the channels that its model was given.
    """

    record: str
    channels: tuple[str, ...]
    models: dict[str, str]
    stages: NDArray[np.int8]
    hypnodensity: NDArray[np.float64]
    probability: dict[str, NDArray[np.float64]]
    threshold: dict[str, float]
    events: tuple[Event, ...]
    warnings: tuple[str, ...] = ()
    runs: tuple[Event, ...] = ()
    event_threshold: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def n_epochs(self) -> int:
        """Epochs of 30 s."""
        return len(self.stages)

    @property
    def statistics(self) -> SleepStatistics:
        """Sleep time, efficiency, latencies and stage minutes."""
        return sleep_statistics(self.stages)

    @property
    def breathing(self) -> Breathing:
        """Counts and indices of respiratory events, or of runs of positive epochs; what was not scored is not in it."""
        scored = {task: np.isfinite(probability) for task, probability in self.probability.items()}
        return count_breathing(self.stages, self.events, self.runs, scored, tuple(self.event_threshold))

    @property
    def ahi(self) -> float:
        """Apneas and hypopneas per hour of scored sleep; nan without sleep, or unless both were told to the second."""
        return self.breathing.ahi
