"""A night in, stages and respiratory events out: the registered models applied to one recording.

Signals go through :func:`sleepfm.signals.prepare.prepare`, the function that made the training data, so that
training and inference cannot differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sleepfm.errors import ModelError, MontageError
from sleepfm.evaluation.breathing import Breathing, count_breathing
from sleepfm.evaluation.events import join_overlapping, positive_runs
from sleepfm.evaluation.seconds import events_from_seconds
from sleepfm.evaluation.sleep_statistics import SleepStatistics, sleep_statistics
from sleepfm.evaluation.stretches import stretch_warnings, unscored_warning
from sleepfm.evaluation.tasks import TASKS
from sleepfm.inference.embed import embed, embed_frames, prepared_epochs
from sleepfm.inference.windows import classify_night, locate_night
from sleepfm.models.build import model_config
from sleepfm.models.downstream import Downstream
from sleepfm.registry import load_package
from sleepfm.signals.annotations import Event
from sleepfm.signals.cohort import load_cohort
from sleepfm.signals.prepare import PreparedRecording, prepare
from sleepfm.signals.raw import recording_from_raw
from sleepfm.signals.recording import Recording, read_recording
from sleepfm.signals.text_counts import TextCounts

if TYPE_CHECKING:
    import mne
    from torch import nn

CHAMPIONS = tuple(f"models:/{task.registered_name}@champion" for task in TASKS.values())


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


@dataclass(frozen=True)
class TaskModel:
    """A downstream model with what its package says about how to use it."""

    model: Downstream
    task: str
    window: int
    threshold: float
    address: str
    event_threshold: float = 0.5


class Scorer:
    """Models loaded once, for any number of nights; at most one for each task."""

    def __init__(self, models: Sequence[TaskModel]) -> None:
        self.models = {model.task: model for model in models}
        if len(self.models) < len(models):
            raise ModelError(f"two models for one task: {', '.join(m.address for m in models)}; give one for each")
        # Probes of one encoder share it, and each night then passes through it once.
        self._encoder = {task: _digest(entry.model.encoder) for task, entry in self.models.items()}

    @classmethod
    def load(cls, addresses: Sequence[str | Path] | None = None, store: str | None = None) -> Scorer:
        """Load models by registry address or package folder; the champion of every task by default.

        Raises:
            RegistryError: nothing registered there, or bytes that have changed.
            ModelError: a model that is not a downstream model, or two for one task.
        """
        return cls([_load(address, store) for address in (addresses or CHAMPIONS)])

    @property
    def channels(self) -> tuple[str, ...]:
        """Every channel that some model can use."""
        return tuple(dict.fromkeys(name for entry in self.models.values() for name in entry.model.channels))

    def score(self, night: PreparedRecording, chunk: int = 64) -> NightScore:
        """Score a prepared night with the channels it has.

        Raises:
            MontageError: it has none that the models can use.
        """
        used = [name for name in self.channels if name in night.channels]
        for entry in self.models.values():
            if not set(entry.model.channels) & set(used):
                raise MontageError(
                    f"{night.path}: none of the channels of {entry.address} ({', '.join(entry.model.channels)}); "
                    f"found {', '.join(night.channels) or 'no canonical channel'}"
                )
        embedded: dict[str, Any] = {}
        probability: dict[str, NDArray[np.float64]] = {}
        events: list[Event] = []
        runs: list[Event] = []
        for task, entry in self.models.items():
            key = self._encoder[task]
            epochs = prepared_epochs(night, entry.model.channels, chunk)
            if entry.model.config.events is not None:
                frames = embed_frames(entry.model.encoder, epochs)
                embedded[key] = frames.mean(1)
                seconds = locate_night(entry.model, frames, entry.window)
                events += events_from_seconds(seconds, entry.event_threshold, task)
            elif key not in embedded:
                embedded[key] = embed(entry.model.encoder, epochs)
            probability[task] = classify_night(entry.model, embedded[key], entry.window)
            if task != "stage" and entry.model.config.events is None:
                runs += positive_runs(probability[task][:, 1], entry.threshold, task)
        return self._assemble(night, used, probability, events, runs)

    def _assemble(
        self,
        night: PreparedRecording,
        used: Sequence[str],
        probability: Mapping[str, NDArray[np.float64]],
        events: Sequence[Event],
        runs: Sequence[Event],
    ) -> NightScore:
        density = probability.get("stage", np.full((night.n_epochs, len(TASKS["stage"].classes)), np.nan))
        unscored = np.isnan(density).any(axis=1)
        stages = np.where(unscored, -1, np.nan_to_num(density).argmax(axis=1)).astype(np.int8)
        warnings = stretch_warnings(night, self.channels)
        # Where the models use different channels: what none of them could score.
        nowhere = np.all([np.isnan(p).any(axis=1) for p in probability.values()], axis=0)
        if told := unscored_warning(night, nowhere):
            warnings.append(told)
        warnings += _told_of_reading(night)
        return NightScore(
            record=night.record,
            channels=tuple(used),
            models={task: entry.address for task, entry in self.models.items()},
            stages=stages,
            hypnodensity=density,
            probability={task: p[:, 1] for task, p in probability.items() if task != "stage"},
            threshold={task: e.threshold for task, e in self.models.items() if task != "stage"},
            events=join_overlapping(events),
            warnings=tuple(warnings),
            runs=tuple(sorted(runs, key=lambda run: (run.onset, run.type))),
            event_threshold={t: e.event_threshold for t, e in self.models.items() if e.model.config.events is not None},
            inputs={t: tuple(name for name in e.model.channels if name in used) for t, e in self.models.items()},
        )


def _told_of_reading(night: PreparedRecording) -> list[str]:
    """What a reader must know of how the recording and its human scoring were read."""
    warnings = [f"recording: {text}" for text in night.provenance.get("warnings", ())]
    if reason := night.provenance.get("scoring_refused"):
        return [*warnings, f"not compared with its human scoring, which cannot be used: {reason}"]
    texts = TextCounts()
    texts.add(night.record, night.provenance)
    return warnings + [f"human scoring: {line}" for line in texts.not_understood()]


def score(
    recording: str | Path | Recording | mne.io.BaseRaw,
    model: str | Path | nn.Module | Sequence[str | Path | nn.Module] | None = None,
    cohort: str = "auto",
) -> NightScore:
    """Score one night.

    Args:
        recording: path of an EDF or BDF file, an opened recording, or an ``mne`` Raw.
        model: registry address, package folder or loaded module, or several; the champions of
            ``sleepfm-stage``, ``sleepfm-apnea`` and ``sleepfm-hypopnea`` by default.
        cohort: channel rules, a name in ``configs/cohorts`` or a file; ``auto`` recognises them.

    Raises:
        RecordingError, MontageError, SignalError: the recording cannot be used.
        RegistryError, ModelError: the models cannot.
    """
    if model is None:
        model = CHAMPIONS
    chosen = model if isinstance(model, Sequence) and not isinstance(model, str) else [model]
    return Scorer([_load(item, None) for item in chosen]).score(prepare_night(recording, cohort))


def prepare_night(
    recording: str | Path | Recording | mne.io.BaseRaw, cohort: str = "auto", scoring: Path | None = None
) -> PreparedRecording:
    """The recording's canonical channels, harmonised as for training. Raises as :func:`score`."""
    rules = None if cohort == "auto" else load_cohort(cohort)
    if isinstance(recording, (str, Path)):
        recording = read_recording(recording)
    elif not isinstance(recording, Recording):
        recording = recording_from_raw(recording)
    # In an NSRR download the scoring lies beside `edfs`, not beside the recording.
    root = next((above.parent for above in recording.path.absolute().parents if above.name == "edfs"), None)
    return prepare(recording, rules, root=root, scoring=scoring)


def _load(item: str | Path | nn.Module, store: str | None) -> TaskModel:
    if isinstance(item, Downstream):
        # A bare module does not carry its package's threshold and window.
        return TaskModel(item, item.config.task, 20, 0.5, "a module in memory")
    if not isinstance(item, (str, Path)):
        raise ModelError(f"{type(item).__name__} gives no stages or events; a Downstream model is needed")
    package = load_package(item, store)
    if not isinstance(package.module, Downstream):
        raise ModelError(
            f"{package.source.uri}: a {package.config['model']['kind']} gives no stages or events; "
            "name a model of sleepfm-stage, sleepfm-apnea or sleepfm-hypopnea"
        )
    threshold = package.config.get("threshold")
    return TaskModel(
        package.module,
        package.module.config.task,
        int(package.config.get("window", 20)),
        0.5 if threshold is None else float(threshold),
        package.source.uri,
        float(package.config.get("event_threshold") or 0.5),
    )


def _digest(module: nn.Module) -> str:
    # The number of heads, say, is in no weight.
    digest = hashlib.sha256(repr(model_config(module)).encode())
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
