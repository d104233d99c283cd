"""What the models say about one night."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import Stage
from sleepfm.evaluation.breathing import KINDS, Breathing, count_breathing
from sleepfm.evaluation.desaturations import Desaturation, Oximetry, find_desaturations, summarise_oximetry
from sleepfm.evaluation.events import index_per_hour
from sleepfm.evaluation.hypopnea_rules import (
    DEFINITIONS,
    SCORED_SHARE,
    Evidence,
    ahi_by_definition,
    breathing_events,
    find_evidence,
    hours_by_definition,
)
from sleepfm.evaluation.lights import Lights
from sleepfm.evaluation.sleep_statistics import SleepStatistics, sleep_statistics
from sleepfm.inference.night_frames import events_frame, hypnodensity_frame, stages_frame
from sleepfm.signals.scorings.scoring import Event
from sleepfm.tasks import TASKS
from sleepfm.wording import counted

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image


@dataclass(frozen=True)
class FineHypnodensity:
    """``probability`` [30 E / seconds, 5] of each stage in stretches of ``seconds``; nan where unscored.

    The value of a stretch is that of the 30-s epoch around it (:mod:`sleepfm.inference.resolution`).
    """

    seconds: int
    probability: NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class NightScore:
    """What the models say about one night. It prints as one line; :meth:`plot` draws it, and the tables are pandas' DataFrames.

    Example:
        >>> import sleepfm
        >>> night = sleepfm.score("patient.edf", model="stage")
        >>> night
        <NightScore patient: 30 epochs, 15 min of sleep>
        >>> list(night.stages_frame().columns)
        ['epoch', 'onset_s', 'stage', 'confidence']
        >>> night.plot().save("patient.png")  # hypnogram, hypnodensity, events and SpO2

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
        saturation: [30 E] SpO2 of every second in %, nan where unscored; None without oximetry.
        without_evidence: tasks whose events (or stages) no channel of the recording shows; whatever a model says, they are not
            assessed.
        seconds: task to [30 E] probability that an event goes on; only tasks told to the second.
        lights: when the person was in bed, outside of which no epoch belongs to any figure of sleep.
        fine: the hypnodensity at a finer resolution, where it was asked for.
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
    saturation: NDArray[np.float64] | None = None
    without_evidence: tuple[str, ...] = ()
    seconds: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    lights: Lights = field(default_factory=Lights)
    fine: FineHypnodensity | None = None

    def __repr__(self) -> str:
        return f"<NightScore {self.record}: {self.headline}>"

    @property
    def headline(self) -> str:
        """The night in one line: what was scored, and nothing of what was not."""
        parts = [counted(self.n_epochs, "epoch")]
        if "stage" in self.models:
            stats = self.statistics
            slept = stats.total_sleep_time
            parts.append("no epoch staged" if math.isnan(slept) else f"{slept:.0f} min of sleep")
            parts += [f"{stats.unscored:g} min unscored"] if stats.unscored else []
        return ", ".join([*parts, *([str(self.breathing)] if self.breathing.counted else [])])

    def plot(self) -> Image:
        """The night as a Pillow image, which a notebook shows: hypnodensity, hypnogram, respiratory events, oxygen saturation."""
        # By its name: reports stand above inference, and only a picture needs them.
        found: Image = import_module("sleepfm.reports.plots").plot_score(self)
        return found

    def stages_frame(self) -> pd.DataFrame:
        """A row for each epoch, see :func:`sleepfm.inference.night_frames.stages_frame`."""
        return stages_frame(self)

    def hypnodensity_frame(self) -> pd.DataFrame:
        """A row for each epoch, see :func:`sleepfm.inference.night_frames.hypnodensity_frame`."""
        return hypnodensity_frame(self)

    def events_frame(self) -> pd.DataFrame:
        """A row for each event, see :func:`sleepfm.inference.night_frames.events_frame`."""
        return events_frame(self)

    @property
    def n_epochs(self) -> int:
        """Epochs of 30 s."""
        return len(self.stages)

    @property
    def statistics(self) -> SleepStatistics:
        """Sleep time, efficiency, latencies and stage minutes."""
        return sleep_statistics(self.stages, self.lights.bounds(self.n_epochs))

    @property
    def in_bed(self) -> NDArray[np.int8]:
        """:attr:`stages`, -1 before lights off and after lights on."""
        off, on = self.lights.bounds(self.n_epochs)
        inside = np.zeros(self.n_epochs, bool)
        inside[off:on] = True
        return np.where(inside, self.stages, np.int8(Stage.UNSCORED))

    @cached_property
    def breathing(self) -> Breathing:
        """Counts and indices of respiratory events, or of runs of positive epochs; what was not scored is not in it."""
        return count_breathing(self.in_bed, self.events, self.runs, self._assessed, tuple(self.event_threshold))

    @property
    def _assessed(self) -> dict[str, NDArray[np.bool_]]:
        """Epochs [E] in which each task was; a task that was in none is not there."""
        scored = {t: np.isfinite(p) for t, p in self.probability.items() if t not in self.without_evidence}
        return {task: epochs for task, epochs in scored.items() if epochs.any() or not TASKS[task].evidence}

    @property
    def assessed(self) -> tuple[str, ...]:
        """The tasks beside the stages that were assessed in some epoch."""
        return tuple(task for task, epochs in self._assessed.items() if epochs.any())

    @cached_property
    def desaturations(self) -> tuple[Desaturation, ...]:
        """By rule from :attr:`saturation`."""
        return () if self.saturation is None else find_desaturations(self.saturation)

    @property
    def oximetry(self) -> Oximetry | None:
        """ODI, time below 90 % and the lowest saturation of sleep; None without oximetry or stages."""
        if self.saturation is None or not (self.stages >= 0).any():
            return None
        return summarise_oximetry(self.saturation, self.desaturations, self.in_bed > Stage.W)

    @cached_property
    def evidence(self) -> dict[Event, Evidence]:
        """What followed each apnea and hypopnea of :attr:`events`."""
        events = breathing_events(self.events)
        scored = self._arousals_scored
        arousals = None if scored is None else [event for event in self.events if event.type == "arousal"]
        found = find_evidence(events, self.saturation, self.desaturations, arousals, scored)
        return dict(zip(events, found, strict=True))

    @property
    def ahi_by_definition(self) -> dict[str, float]:
        """The index by each of :data:`sleepfm.evaluation.hypopnea_rules.DEFINITIONS`; nan where it is not defined."""
        return self._by_definition(ahi_by_definition)

    @property
    def hours_by_definition(self) -> dict[str, float]:
        """The hours of sleep that each of :attr:`ahi_by_definition` is of; nan where there is no AHI."""
        return self._by_definition(hours_by_definition)

    def _by_definition(self, figures: Callable[..., dict[str, float]]) -> dict[str, float]:
        if math.isnan(self.ahi):
            return dict.fromkeys(DEFINITIONS, math.nan)
        assessed = self._assessed
        asleep = (self.in_bed > Stage.W) & assessed["apnea"] & assessed["hypopnea"]
        evidence = self.evidence
        return figures(tuple(evidence), evidence, asleep, self._oxygen_scored, self._arousals_scored)

    @property
    def assessed_families(self) -> dict[str, NDArray[np.bool_]]:
        """Family (breathing, arousal, desaturation) to the epochs [E] in which its events were looked for to the second."""
        assessed, found = self._assessed, {}
        if set(KINDS) <= assessed.keys() & self.event_threshold.keys():
            found["breathing"] = np.all([assessed[kind] for kind in KINDS], axis=0)
        for family, scored in (("arousal", self._arousals_scored), ("desaturation", self._oxygen_scored)):
            if scored is not None:
                found[family] = scored
        return found

    def counted_sleep(self, kind: str) -> NDArray[np.bool_]:
        """Epochs [E] of sleep in bed in which events of ``kind`` count: those in which both apneas and hypopneas were assessed,
        or the kind alone where the models tell not both to the second.
        """
        family = "breathing" if kind in KINDS else kind
        scored = self.assessed_families.get(family, self._assessed.get(kind))
        asleep = self.in_bed > Stage.W
        return asleep if scored is None else asleep & scored

    @property
    def arousal_index(self) -> float:
        """Arousals per hour of sleep in which they were scored; nan unless they were told to the second."""
        scored = self._arousals_scored
        arousals = [event for event in self.events if event.type == "arousal"]
        return math.nan if scored is None else index_per_hour(arousals, scored & (self.in_bed > Stage.W))

    @property
    def _arousals_scored(self) -> NDArray[np.bool_] | None:
        return self._assessed.get("arousal") if "arousal" in self.event_threshold else None

    @property
    def _oxygen_scored(self) -> NDArray[np.bool_] | None:
        if self.saturation is None:
            return None
        return np.isfinite(self.saturation).reshape(self.n_epochs, -1).mean(axis=1) >= SCORED_SHARE

    @property
    def ahi(self) -> float:
        """Apneas and hypopneas per hour of scored sleep; nan without sleep, or unless both were told to the second."""
        return self.breathing.ahi
