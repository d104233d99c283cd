"""A night in, stages and respiratory events out: the registered models applied to one recording.

Signals go through :func:`sleepfm.signals.prepare.prepare`, the function that made the training data, so that
training and inference cannot differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sleepfm import builtin
from sleepfm.constants import EPOCH_SECONDS
from sleepfm.errors import ModelError, MontageError, RecordingError
from sleepfm.evaluation.desaturations import read_saturation
from sleepfm.evaluation.event_kinds import tell_kinds
from sleepfm.evaluation.events import find_events, join_overlapping
from sleepfm.evaluation.stretches import long_event_warnings, stretch_warnings, unscored_warning
from sleepfm.inference.backup import BACKUP, Seen, with_backup
from sleepfm.inference.default_models import default_models
from sleepfm.inference.embed import NIGHT_CHUNK, counted, epochs_with_any, prepared_epochs
from sleepfm.inference.night_output import apply_to_epochs
from sleepfm.inference.night_score import NightScore
from sleepfm.inference.resolution import fine_hypnodensity
from sleepfm.inference.task_model import TaskModel, load_task_models
from sleepfm.models.device import Precision, choose_precision
from sleepfm.models.sharing import same_encoder, share_encoder, state_digest
from sleepfm.signals.cohorts.catalogue import load_rules
from sleepfm.signals.cohorts.cohort import Cohort
from sleepfm.signals.files import is_path, location
from sleepfm.signals.prepare import PreparedRecording, prepare
from sleepfm.signals.quality import unusable
from sleepfm.signals.raw import recording_from_raw
from sleepfm.signals.record_names import RecordName
from sleepfm.signals.recording import Recording, opened_recording
from sleepfm.signals.scorings.finder import FoundScoring
from sleepfm.signals.scorings.scoring import Event
from sleepfm.signals.scorings.text_counts import TextCounts
from sleepfm.tasks import TASKS, get_task

if TYPE_CHECKING:
    import mne
    from torch import nn

# Recordings shorter than five minutes are told.
_SHORT_EPOCHS = 10


# The number of its encoder, whether that runs, and the channels whose powers of bands are told.
_Sees = tuple[int, bool, tuple[str, ...]]


class Scorer:
    """Models loaded once, for any number of nights; at most one for each task."""

    def __init__(self, models: Sequence[TaskModel], precision: Precision = "fp32") -> None:
        """``precision`` of encoders, see :func:`sleepfm.models.device.choose_precision`; contexts and heads compute in fp32."""
        self.models = {get_task(model.task).name: model for model in models}
        if len(self.models) < len(models):
            raise ModelError(f"two models for one task: {', '.join(m.address for m in models)}; give one for each")
        self.precision: Precision = precision
        # Models of one encoder share what it makes of a night, which then passes through it once.
        entries = list(self.models.values())
        self._encoder = {
            task: next(number for number, other in enumerate(entries) if same_encoder(other.model, entry.model))
            for task, entry in self.models.items()
        }

    @classmethod
    def load(
        cls,
        addresses: Sequence[str | Path] | None = None,
        store: str | None = None,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
    ) -> Scorer:
        """Load models, or scorers of several, by registry address or model folder onto ``device``; by default those of
        :func:`sleepfm.inference.default_models.default_models`.

        Of an encoder that several of them have in common there is one copy.

        Raises:
            RegistryError: nothing registered there, or bytes that have changed.
            ModelError: a model that is not a downstream model, or two for one task.
            ConfigError: a task that is not in the table.
        """
        models: list[TaskModel] = []
        named = addresses or default_models(store)[0]
        for entry in (model for address in named for model in load_task_models(address, store, mapped=True)):
            share_encoder(entry.model, [other.model for other in models])
            models.append(entry)
        # When all are compared: a tensor of the host and one of a device cannot be.
        for entry in models:
            entry.model.to(device)
        return cls(models, precision)

    @property
    def channels(self) -> tuple[str, ...]:
        """Every channel that some model can use."""
        return tuple(dict.fromkeys(name for entry in self.models.values() for name in entry.model.channels))

    @property
    def digests(self) -> dict[str, str]:
        """Task to the SHA-256 of its model's weights and of how it is used."""
        usage = {task: repr(entry.usage).encode() for task, entry in self.models.items()}
        parts: dict[int, str] = {}
        weights = {task: state_digest(entry.model, parts).encode() for task, entry in self.models.items()}
        return {task: hashlib.sha256(weights[task] + usage[task]).hexdigest() for task in self.models}

    @property
    def precisions(self) -> dict[str, str]:
        """Task to the precision that its encoder computes in."""
        return {task: self._precision_of(entry) for task, entry in self.models.items()}

    def passes(self, resolution: int = EPOCH_SECONDS) -> int:
        """How often the epochs of a night go through an encoder."""
        fine = EPOCH_SECONDS // resolution if resolution != EPOCH_SECONDS and "stage" in self.models else 0
        located = {task for task, entry in self.models.items() if entry.model.events is not None}
        framed = {(self._sees(task), self.models[task].model.config.amplitudes) for task in located}
        # The mean of frames is the embedding.
        embedded = {self._sees(task) for task in self.models} - {self._sees(task) for task in located}
        return len(framed) + len(embedded) + fine

    def _sees(self, task: str) -> _Sees:
        """What the model of ``task`` classifies epochs by: models with the same of these share it."""
        config = self.models[task].model.config
        return self._encoder[task], config.encodes, config.powered

    def score(
        self,
        night: PreparedRecording,
        chunk: int = NIGHT_CHUNK,
        resolution: int = EPOCH_SECONDS,
        progress: Callable[[int], object] | None = None,
    ) -> NightScore:
        """Score a prepared night with the channels it has.

        A model of which it has no channel assesses nothing, nor does one of stages without EEG. The EEG of the other side stands
        in for a central one that a model takes (:mod:`sleepfm.inference.backup`); the warnings say so.

        Args:
            resolution: seconds that one value of the hypnodensity stands for: 30, or 5 or 1 beside these
                (:mod:`sleepfm.inference.resolution`).
            progress: called with the number of epochs that have gone through an encoder since the last call, of
                ``passes(resolution)`` times those of the night.

        Raises:
            MontageError: it has none that any model can use.
        """
        seen_by = {task: with_backup(night, entry.model.channels) for task, entry in self.models.items()}
        if not any(set(entry.model.channels) & set(seen_by[task].night.channels) for task, entry in self.models.items()):
            raise MontageError(
                f"{night.path}: none of the channels of {', '.join(entry.address for entry in self.models.values())} "
                f"({', '.join(self.channels)}); found {', '.join(night.channels) or 'no canonical channel'}"
            )
        embedded: dict[_Sees, Tensor] = {}
        framed: dict[tuple[_Sees, tuple[str, ...]], Tensor] = {}
        probability: dict[str, NDArray[np.float64]] = {}
        events: list[Event] = []
        runs: list[Event] = []
        seconds: dict[str, NDArray[np.float64]] = {}
        # Those that need frames first: their mean is the embedding, so that the others need no pass of their own.
        for task, entry in sorted(self.models.items(), key=lambda item: item[1].model.events is None):
            shown = seen_by[task].night
            if not set(entry.model.channels) & set(shown.channels):
                probability[task] = np.full((night.n_epochs, len(entry.usage.classes)), np.nan)
                continue
            key, usage = self._sees(task), entry.usage
            epochs = counted(prepared_epochs(shown, entry.model.channels, chunk), progress)
            assessed = epochs_with_any(shown, entry.model.evidence)
            # Event heads on one encoder share what they see.
            seen = (key, entry.model.config.amplitudes)
            found = apply_to_epochs(
                entry.model,
                epochs,
                usage.window,
                embedding=embedded.get(key),
                assessed=assessed,
                frames=framed.get(seen),
                precision=self._precision_of(entry),
            )
            embedded[key], probability[task] = found.embedding, found.epochs
            if found.frames is not None:
                framed[seen] = found.frames
            if found.seconds is not None:
                seconds[task] = found.seconds
            if _lacks_evidence(task, night) and not TASKS[task].event:
                # Whatever a model without these channels says.
                probability[task] = np.full_like(found.epochs, np.nan)
            if TASKS[task].event:
                mine = find_events(found.positive, usage.detection_threshold, task, usage.located)
                if found.kinds is not None:
                    mine = tell_kinds(mine, found.kinds, entry.model.config.kinds)
                (events if usage.located else runs).extend(mine)
        score = self._assemble(night, seen_by, probability, events, runs, seconds)
        staged = self.models.get("stage")
        if resolution == EPOCH_SECONDS or staged is None or not (score.stages >= 0).any():
            return score
        fine = fine_hypnodensity(staged, seen_by["stage"].night, resolution, chunk, self._precision_of(staged), progress)
        return replace(score, fine=fine)

    def _precision_of(self, entry: TaskModel) -> Precision:
        return choose_precision(self.precision, entry.model.encoder)

    def _assemble(
        self,
        night: PreparedRecording,
        seen_by: Mapping[str, Seen],
        probability: Mapping[str, NDArray[np.float64]],
        events: Sequence[Event],
        runs: Sequence[Event],
        seconds: dict[str, NDArray[np.float64]],
    ) -> NightScore:
        density = probability.get("stage", np.full((night.n_epochs, len(TASKS["stage"].classes)), np.nan))
        unscored = np.isnan(density).any(axis=1)
        stages = np.where(unscored, -1, np.nan_to_num(density).argmax(axis=1)).astype(np.int8)
        warnings = stretch_warnings(night, self.channels) + _told_of_backup(seen_by)
        inputs = {task: _inputs(entry, night, seen_by[task]) for task, entry in self.models.items()}
        # Where the models use different channels: what none of them could score.
        nowhere = np.all([np.isnan(p).any(axis=1) for p in probability.values()], axis=0)
        warnings += self._told_of_unscored(night, nowhere)
        warnings += self._told_of_evidence(night, seen_by)
        found = join_overlapping(events)
        warnings += long_event_warnings(found, night.provenance.get("clock"))
        warnings += builtin.statement(entry.address for entry in self.models.values())
        if night.n_epochs < _SHORT_EPOCHS:
            minutes = night.n_epochs * EPOCH_SECONDS / 60
            warnings.append(
                f"only {minutes:g} min long: models see less context than in training, and indices per hour are unreliable"
            )
        warnings += _told_of_reading(night)
        return NightScore(
            record=night.record,
            channels=tuple(dict.fromkeys(name for names in inputs.values() for name in names)),
            models={task: entry.address for task, entry in self.models.items()},
            stages=stages,
            hypnodensity=density,
            probability={task: p[:, 1] for task, p in probability.items() if self.models[task].usage.binary},
            threshold={t: e.usage.threshold for t, e in self.models.items() if e.usage.threshold is not None},
            events=found,
            warnings=tuple(warnings),
            runs=tuple(sorted(runs, key=lambda run: (run.onset, run.type))),
            event_threshold={t: e.usage.detection_threshold for t, e in self.models.items() if e.usage.located},
            inputs=inputs,
            saturation=read_saturation(night.channels["SPO2"], unusable(night.quality["SPO2"]))
            if "SPO2" in night.channels
            else None,
            without_evidence=tuple(task for task in self.models if _lacks_evidence(task, night)),
            seconds=seconds,
        )

    def _told_of_unscored(self, night: PreparedRecording, nowhere: NDArray[np.bool_]) -> list[str]:
        """Of the epochs [E] in which no model scored anything: those without any usable signal, and those with some that no model
        can use.
        """
        lifeless = nowhere & np.all([unusable(flags) for flags in night.quality.values()], axis=0)
        told = [text] if (text := unscored_warning(night, lifeless)) else []
        if starved := int((nowhere & ~lifeless).sum()):
            needed = dict.fromkeys(n for task, e in self.models.items() for n in TASKS[task].evidence or e.model.channels)
            told.append(
                f"{starved} of {night.n_epochs} epochs are unscored, because none of {', '.join(needed)}, which the models need, "
                "is usable in them; they count in no figure"
            )
        return told

    def _told_of_evidence(self, night: PreparedRecording, seen_by: Mapping[str, Seen]) -> list[str]:
        """Which stages and events could not be assessed, or were looked for in channels that do not show them."""
        told = []
        for task, entry in self.models.items():
            names = ", ".join(TASKS[task].evidence)
            shown = seen_by[task].night
            lost = int((~epochs_with_any(shown, entry.model.evidence)).sum())
            if not set(entry.model.channels) & set(shown.channels):
                has = ", ".join(entry.model.channels)
                told.append(f"{task}: not assessed, since the recording has none of the channels of its model ({has})")
            elif _lacks_evidence(task, night):
                told.append(f"{task}: not assessed, since the recording has no usable channel of {names}")
            elif lost:
                told.append(f"{task}: not assessed in {lost} of {night.n_epochs} epochs, which lack {names}")
            elif entry.usage.located and TASKS[task].evidence and not entry.model.evidence:
                told.append(f"{task}: its model uses none of {names}, which the recording has, so its events are less certain")
        return told


def _inputs(entry: TaskModel, night: PreparedRecording, seen: Seen) -> tuple[str, ...]:
    """The channels of the recording that the model of ``entry`` saw, with the other side's EEG where it stood in."""
    taken = (own for name in entry.model.channels for own in (name, BACKUP[name] if name in seen.replaced else name))
    return tuple(dict.fromkeys(name for name in taken if name in night.channels))


def _told_of_backup(seen_by: Mapping[str, Seen]) -> list[str]:
    """Where models saw the EEG of the other side."""
    told: dict[str, list[str]] = {}
    for task, seen in seen_by.items():
        for name, epochs in seen.replaced.items():
            line = f"{BACKUP[name]} stands in for {name} in {epochs} of {seen.night.n_epochs} epochs, as its backup (AASM)"
            told.setdefault(line, []).append(task)
    return [f"{line}, for {', '.join(tasks)}" for line, tasks in told.items()]


def _lacks_evidence(task: str, night: PreparedRecording) -> bool:
    """Whether no epoch of ``night`` has a channel in which events of ``task`` show, whatever its model takes."""
    evidence = TASKS[task].evidence
    return bool(evidence) and not epochs_with_any(night, evidence).any()


def _told_of_reading(night: PreparedRecording) -> list[str]:
    """What a reader must know of how the recording and its human scoring were read."""
    warnings = [f"recording: {text}" for text in night.provenance.get("warnings", ())]
    if reason := night.provenance.get("scoring_refused"):
        return [*warnings, f"not compared with its human scoring, which cannot be used: {reason}"]
    for text in (night.provenance.get("scoring") or {}).get("misplaced", ()):
        warnings.append(f"human scoring: {text}; then the agreement with it means nothing")
    texts = TextCounts()
    texts.add(night.record, night.provenance)
    return warnings + [f"human scoring: {line}" for line in texts.not_understood()]


def score(
    recording: str | Path | Recording | mne.io.BaseRaw,
    model: str | Path | nn.Module | Sequence[str | Path | nn.Module] | None = None,
    cohort: str = "auto",
) -> NightScore:
    """Score one night.

    Example:
        >>> night = score("patient.edf", model="stage")  # the folder of a package; or "models:/sleepfm-stage@champion"
        >>> night.stages.shape, night.hypnodensity.shape  # 30 epochs of 30 s, and the probabilities of five stages
        ((30,), (30, 5))
        >>> night.channels
        ('EEG_C4', 'EOG_L', 'EMG_CHIN', 'ECG')

    Args:
        recording: path of an EDF or BDF file, an opened recording, or an ``mne`` Raw.
        model: registry address, model folder, ``builtin`` or a model that :func:`sleepfm.load` gave, or several of them. By
            default the champion of ``sleepfm-scorer``; where there is none, the champions of ``sleepfm-stage``, ``sleepfm-apnea``
            and ``sleepfm-hypopnea``; where there are none, the built-in models.
        cohort: rules for the recording: a name in ``configs/cohorts``, a YAML file, or a folder of them. ``auto`` recognises the
            cohort by the file's name and labels.

    Raises:
        RecordingError, MontageError, SignalError: the recording cannot be used.
        RegistryError, ModelError: the models cannot.
    """
    check_recording(recording)
    if isinstance(model, Sequence) and not model:
        raise ModelError("model: names no model; give one or several, or leave model out for the champions of the registry")
    # A recording that is not there is told before models that are not.
    with opened_recording(recording) if is_path(recording) else nullcontext(recording) as opened:
        if model is None:
            model = default_models()[0]
        chosen = model if isinstance(model, Sequence) and not isinstance(model, str) else [model]
        models = [found for item in chosen for found in load_task_models(item)]
        night = prepare_night(opened, cohort)
    return Scorer(models).score(night)


def check_recording(recording: object, argument: str = "recording", also: str = "") -> None:
    """Raises :class:`RecordingError` unless the value of ``argument`` is of a kind that :func:`prepare_night` takes; ``also`` is
    what else the argument may be.
    """
    if not (isinstance(recording, Recording) or hasattr(recording, "get_data") or is_path(recording)):
        raise RecordingError(
            f"{argument}: expected {also}the path of an EDF or BDF file, what sleepfm.read_recording gave, or an mne Raw, "
            f"found a {type(recording).__name__}"
        )


def prepare_night(
    recording: str | Path | Recording | mne.io.BaseRaw,
    cohort: str | Cohort = "auto",
    scoring: Path | FoundScoring | None = None,
    called: RecordName | None = None,
) -> PreparedRecording:
    """The recording's canonical channels, harmonised as for training; ``called`` is what it is called among others.

    Raises as :func:`score`.
    """
    rules = load_rules(cohort) if isinstance(cohort, str) else cohort
    check_recording(recording)
    if hasattr(recording, "get_data"):
        recording = recording_from_raw(recording)
    path = recording.path if isinstance(recording, Recording) else location(recording)
    return prepare(recording, rules, root=scorings_root(path), scoring=scoring, called=called)


def scorings_root(path: Path) -> Path | None:
    """The folder below which the scoring of the recording at ``path`` may be, where it is not beside it."""
    # In an NSRR download the scoring lies beside `edfs`.
    return next((above.parent for above in path.absolute().parents if above.name == "edfs"), None)
