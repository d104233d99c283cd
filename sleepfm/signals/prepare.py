"""One recording from file to canonical epochs: the only way in, for sharding and for scoring alike."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import APNEA_TYPES, EPOCH_SAMPLES, EPOCH_SECONDS, Stage
from sleepfm.errors import MontageError, RecordingError, SleepFMError
from sleepfm.signals.annotations import Event, Scoring, align, find_scoring, read_scoring
from sleepfm.signals.cohort import Cohort, recognise_cohort
from sleepfm.signals.filters import preprocess, robust_scale
from sleepfm.signals.labels import event_labels, stage_labels
from sleepfm.signals.montage import UNKNOWN_LABEL, Derivation, Montage, derive, resolve
from sleepfm.signals.quality import Quality, epoch_quality
from sleepfm.signals.recording import Recording, read_recording

EVENT_TASKS: dict[str, tuple[str, ...]] = {
    "apnea": APNEA_TYPES,
    "hypopnea": ("hypopnea",),
    "desaturation": ("desaturation",),
    "arousal": ("arousal",),
}


@dataclass
class PreparedRecording:
    """A night in the data contract's form.

    ``channels`` are robust-scaled signals at 100 Hz, ``[n_epochs * 3000]`` (SpO2 stays in %); samples inside gaps are 0
    and their epochs carry :attr:`Quality.GAP`. ``median`` and ``iqr`` are in the channel's unit. ``stage`` and every
    entry of ``labels`` are ``[n_epochs]`` with -1 for unscored. ``provenance`` records every decision about this night.
    """

    record: str
    subject: str
    visit: str
    cohort: str
    path: Path
    n_epochs: int
    stage: NDArray[np.int8]
    labels: dict[str, NDArray[np.int8]]
    events: tuple[Event, ...]
    channels: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    median: dict[str, float] = field(default_factory=dict)
    iqr: dict[str, float] = field(default_factory=dict)
    quality: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


def prepare(
    path: str | Path,
    cohort: Cohort | None = None,
    root: Path | None = None,
    scoring: Path | None = None,
    require: Iterable[str] = (),
) -> PreparedRecording:
    """Read, harmonise, resample, filter, scale and label one recording.

    Args:
        path: EDF or BDF file.
        cohort: its rules; recognised from the recording if not given.
        root: where to look for a scoring file besides the recording's own folder.
        scoring: the scoring file, if it is not to be looked for.
        require: canonical channels without which the recording is refused.

    A recording without scoring is fine: all its labels are unscored.

    Raises:
        RecordingError: unreadable, or shorter than one epoch.
        MontageError: a required channel, or every channel, is missing or ambiguous.
        AnnotationError: its scoring is unreadable or not of this night.
    """
    path = Path(path)
    recording = read_recording(path)
    cohort = cohort or recognise_cohort(recording)
    n_epochs = int(recording.duration // EPOCH_SECONDS)
    if n_epochs == 0:
        raise RecordingError(f"{path}: lasts {recording.duration:g} s, less than one epoch of {EPOCH_SECONDS} s")
    montage = resolve(recording, cohort)
    _check(recording, montage, require)
    scored, remarks = _scoring(recording, cohort, root or path.parent, scoring)
    subject, visit = cohort.identify(path)
    night = PreparedRecording(
        record=record_key(path),
        subject=subject,
        visit=visit,
        cohort=cohort.name,
        path=path,
        n_epochs=n_epochs,
        stage=stage_labels(scored, n_epochs),
        labels={task: event_labels(scored, n_epochs, types, cohort.event_rule) for task, types in EVENT_TASKS.items()},
        events=tuple(e for e in scored.events if e.onset < n_epochs * EPOCH_SECONDS),
        provenance={
            "montage": {name: derivation.description for name, derivation in montage.channels.items()},
            "missing": dict(montage.missing),
            "ambiguous": dict(montage.ambiguous),
            "scoring": scored.source,
            "warnings": [*recording.warnings, *remarks],
            "gaps": len(recording.gaps),
        },
    )
    for derivation in montage.channels.values():
        _add_channel(night, recording, derivation, cohort)
    if not night.channels:
        raise MontageError(f"{path}: every channel found is flat: {', '.join(montage.channels)}")
    gaps = np.logical_or.reduce([(flags & Quality.GAP) > 0 for flags in night.quality.values()])
    night.stage[gaps] = Stage.UNSCORED
    return night


def discover(root: str | Path, cohort: Cohort | None = None) -> list[Path]:
    """All recordings below ``root`` (or ``root`` itself, if it is one), sorted; hypnogram files are none.

    Raises:
        RecordingError: there is no such folder, or no EDF or BDF file in it.
    """
    root = Path(root)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise RecordingError(f"{root}: no such file or folder")
    patterns = cohort.recordings if cohort else Cohort.model_fields["recordings"].default
    found = sorted({path for pattern in patterns for path in root.glob(pattern) if path.is_file()})
    recordings = [path for path in found if not _only_annotations(path)]
    if not recordings:
        raise RecordingError(f"{root}: no EDF or BDF recording in this folder (looked for {', '.join(patterns)})")
    return recordings


def record_key(path: Path) -> str:
    """The recording's name in shards and tables: its file name, with what a tar member name cannot hold replaced."""
    return re.sub(r"[^0-9A-Za-z_-]+", "_", path.stem)


def _only_annotations(path: Path) -> bool:
    """Whether the file holds annotations alone; a damaged one counts as a recording, to be refused with its reason."""
    try:
        return not read_recording(path).signals
    except SleepFMError:
        return False


def _check(recording: Recording, montage: Montage, require: Iterable[str]) -> None:
    faults = montage.missing | montage.ambiguous
    lacking = [
        f"{name}: {faults.get(name, 'the cohort has no rule for it')}"
        for name in require
        if name not in montage.channels
    ]
    if lacking:
        raise MontageError(f"{recording.path}: required channels are not there: {'; '.join(lacking)}")
    if not montage.channels:
        labels = ", ".join(signal.label for signal in recording.signals[:12])
        near = "; ".join(f"{name}: {reason}" for name, reason in faults.items() if reason != UNKNOWN_LABEL)
        raise MontageError(
            f"{recording.path}: no canonical channel among its signals ({labels}){'; ' + near if near else ''}; "
            "if they are sleep signals, name their labels in a cohort file"
        )


def _scoring(recording: Recording, cohort: Cohort, root: Path, path: Path | None) -> tuple[Scoring, list[str]]:
    path = path or find_scoring(recording.path, root, cohort)
    if path is None:
        return Scoring((), (), "", has_events=False), []
    return align(read_scoring(path), recording, cohort)


def _add_channel(night: PreparedRecording, recording: Recording, derivation: Derivation, cohort: Cohort) -> None:
    name = derivation.channel
    raw, rate = derive(recording, derivation)
    flags = epoch_quality(raw, rate, name, night.n_epochs)
    signal = preprocess(raw, rate, cohort.filters.get(name))[: night.n_epochs * EPOCH_SAMPLES]
    signal = np.pad(signal, (0, night.n_epochs * EPOCH_SAMPLES - len(signal)), constant_values=np.nan)
    if name == "SPO2":
        median, iqr = 0.0, 1.0
    else:
        signal, median, iqr = robust_scale(signal)
    if iqr == 0.0:
        night.provenance["missing"][name] = f"{derivation.description!r} is flat all night"
        return
    night.channels[name] = np.nan_to_num(signal, copy=False)
    night.median[name], night.iqr[name] = median, iqr
    night.quality[name] = flags
