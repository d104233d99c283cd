"""From a recording on disk to harmonised channels and labels: the one way, for training data and for scoring."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SAMPLES, EPOCH_SECONDS, Stage
from sleepfm.errors import MontageError, RecordingError, SignalError
from sleepfm.signals.annotations import find_scoring, read_scoring, reconcile
from sleepfm.signals.cohort import Band, Cohort, QualityLimits, recognise_cohort
from sleepfm.signals.edf_scoring import from_annotations
from sleepfm.signals.filters import effective_band, preprocess, robust_scale
from sleepfm.signals.identity import Identity, identify
from sleepfm.signals.labels import LABELS, EventRule, event_labels, stage_labels
from sleepfm.signals.montage import NO_LABEL, Derivation, Montage, derive, resolve
from sleepfm.signals.quality import Quality, epoch_quality
from sleepfm.signals.recording import Recording, read_edf_header, read_recording
from sleepfm.signals.scoring_types import Event, Scoring

_SUFFIXES = (".edf", ".bdf")
# Kept in their own unit: a percentage means the same in every recording.
_UNSCALED = ("SPO2",)


@dataclass(frozen=True)
class Examination:
    """What is known of a recording before a sample is read."""

    recording: Recording
    cohort: Cohort
    identity: Identity
    montage: Montage
    scoring: Scoring | None
    n_epochs: int


@dataclass
class PreparedRecording:
    """A recording in canonical form.

    Attributes:
        record: unique name; ``subject`` is the same for all visits of a person.
        channels: canonical name to [n_epochs * 3000] float32 at 100 Hz, median 0 and interquartile range 1
            (SPO2 in %). Samples in gaps are 0 and their epochs have the quality bit GAP. Absent channels are absent.
        median, iqr: what scaling took out, in the canonical unit.
        quality: canonical name to [n_epochs] bits of :class:`sleepfm.signals.quality.Quality`.
        stage: [n_epochs], -1 where unscored or mostly not recorded.
        labels: apnea, hypopnea, desaturation, arousal: [n_epochs] 0 or 1, -1 if events were not scored.
        provenance: every decision made, in JSON types.
    """

    record: str
    subject: str
    visit: str
    cohort: str
    path: Path
    n_epochs: int
    channels: dict[str, NDArray[np.float32]]
    median: dict[str, float]
    iqr: dict[str, float]
    quality: dict[str, NDArray[np.uint8]]
    stage: NDArray[np.int8]
    events: tuple[Event, ...]
    labels: dict[str, NDArray[np.int8]]
    provenance: dict[str, Any] = field(default_factory=dict)


def discover(root: Path, cohort: Cohort | None = None) -> list[Path]:
    """Recordings (EDF and BDF) at or below ``root``, sorted.

    A file of annotations alone is no recording; it is listed only if it scores none of those found, so that
    nothing in the folder goes unaccounted for. Unreadable files are listed: preparing them says why.

    Raises:
        RecordingError: ``root`` does not exist or holds no EDF or BDF file.
    """
    root = Path(root)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise RecordingError(f"{root}: no such file or folder of recordings")
    files = sorted(
        Path(folder) / name
        for folder, _, names in os.walk(root)
        for name in names
        if name.lower().endswith(_SUFFIXES) and not name.startswith(".")
    )
    if not files:
        raise RecordingError(f"{root}: no recording in this folder (looked for {', '.join(_SUFFIXES)} at any depth)")
    annotations = [path for path in files if _annotations_only(path)]
    recordings = [path for path in files if path not in set(annotations)]
    if annotations:
        used = {_scoring_of(path, root, cohort) for path in recordings}
        recordings += [path for path in annotations if path not in used]
    return sorted(recordings)


def examine(path: Path, cohort: Cohort | None = None, root: Path | None = None, scoring: Path | None = None) -> Examination:
    """Everything about a recording but its samples: cohort, montage, scoring; no channel is required yet.

    Args:
        cohort: its rules, or None to recognise them.
        root: folder below which the scoring may be.
        scoring: the scoring file; by default it is looked for, and then in the recording's own annotations.

    Raises:
        RecordingError: unreadable, annotations alone, or shorter than an epoch.
        AnnotationError: a scoring that cannot be read or belongs to another recording.
    """
    recording = read_recording(path)
    if not recording.signals:
        raise RecordingError(
            f"{path}: holds {len(recording.annotations)} annotations and no signal, and scores no recording here; "
            "put it beside its recording"
        )
    cohort = cohort or recognise_cohort(recording)
    return examine_recording(recording, cohort, scoring or find_scoring(path, root, cohort))


def examine_recording(recording: Recording, cohort: Cohort, scoring: Path | None = None) -> Examination:
    """As :func:`examine`, for a recording that is open already."""
    n_epochs = int((recording.duration + 1e-6) // EPOCH_SECONDS)
    if n_epochs < 1:
        raise RecordingError(f"{recording.path}: {recording.duration:g} s long, shorter than one {EPOCH_SECONDS}-s epoch")
    if scoring is not None:
        scored: Scoring | None = read_scoring(scoring, recording.start)
    else:
        scored = from_annotations(recording.annotations, "EDF+ annotations of the recording")
    if scored is not None:
        scored = reconcile(scored, recording.duration, cohort.scoring.longer, str(recording.path))
    return Examination(
        recording=recording,
        cohort=cohort,
        identity=identify(recording.path, cohort),
        montage=resolve(recording, cohort),
        scoring=scored,
        n_epochs=n_epochs,
    )


def require_channels(examination: Examination, require: Sequence[str] = ()) -> None:
    """Refuse a recording whose montage is ambiguous, empty, or lacks a required channel.

    Raises:
        MontageError: naming each channel with its candidates or the reason why it is missing.
    """
    montage, path = examination.montage, examination.recording.path
    if montage.ambiguous:
        raise MontageError(f"{path}: " + "; ".join(f"{name} is ambiguous: {why}" for name, why in montage.ambiguous.items()))
    if not montage.channels:
        signals = examination.recording.signals
        labels = ", ".join([repr(signal.label) for signal in signals[:8]] + ["..."] * (len(signals) > 8))
        reasons = "; ".join(f"{name}: {why}" for name, why in montage.missing.items() if why != NO_LABEL)
        raise MontageError(
            f"{path}: no canonical channel by the rules of cohort {examination.cohort.name!r} among "
            f"{len(signals)} signals ({labels})"
            f"{'; ' + reasons if reasons else ''}; name them in a cohort file"
        )
    lacking = [name for name in require if name not in montage.channels]
    if lacking:
        raise MontageError(f"{path}: " + "; ".join(f"{name} is missing: {montage.missing[name]}" for name in lacking))


def prepare(
    path: Path,
    cohort: Cohort | None = None,
    root: Path | None = None,
    scoring: Path | None = None,
    require: Sequence[str] = (),
    rule: EventRule = "overlap",
) -> PreparedRecording:
    """Read, harmonise, filter, scale and label the recording at ``path``.

    Args:
        cohort, root, scoring: as for :func:`examine`.
        require: canonical channels without which the recording is refused.
        rule: how events label epochs.

    Raises:
        RecordingError, MontageError, AnnotationError, SignalError: the recording cannot be used, and why.
    """
    return prepare_examined(examine(Path(path), cohort, root, scoring), require, rule)


def prepare_examined(examination: Examination, require: Sequence[str] = (), rule: EventRule = "overlap") -> PreparedRecording:
    """The second half of :func:`prepare`: the samples."""
    require_channels(examination, require)
    recording, cohort, n_epochs = examination.recording, examination.cohort, examination.n_epochs
    scoring = examination.scoring
    stage = stage_labels(scoring, n_epochs)
    stage[_mostly_gap(recording, n_epochs)] = Stage.UNSCORED
    prepared = PreparedRecording(
        record=examination.identity.record,
        subject=examination.identity.subject,
        visit=examination.identity.visit,
        cohort=cohort.name,
        path=recording.path,
        n_epochs=n_epochs,
        channels={},
        median={},
        iqr={},
        quality={},
        stage=stage,
        events=scoring.events if scoring else (),
        labels={name: event_labels(scoring, n_epochs, types, rule) for name, types in LABELS.items()},
        provenance=_provenance(examination, rule),
    )
    for channel, derivation in examination.montage.channels.items():
        try:
            _add_channel(prepared, recording, cohort, derivation)
        except SignalError as error:
            prepared.provenance["missing"][channel] = str(error)
    lacking = [name for name in require if name not in prepared.channels]
    if lacking or not prepared.channels:
        reasons = "; ".join(f"{name}: {why}" for name, why in prepared.provenance["missing"].items())
        raise SignalError(f"{recording.path}: no usable signal in {', '.join(lacking) or 'any channel'} ({reasons})")
    return prepared


def _add_channel(prepared: PreparedRecording, recording: Recording, cohort: Cohort, derivation: Derivation) -> None:
    channel, n_epochs = derivation.channel, prepared.n_epochs
    signal, rate = derive(recording, derivation)
    if np.fmin.reduce(signal) == np.fmax.reduce(signal) or np.isnan(np.fmax.reduce(signal)):
        raise SignalError("flat for the whole recording")
    band = cohort.filters.get(channel, Band())
    low, high = effective_band(band, rate)
    quality = epoch_quality(signal, rate, channel, n_epochs, derivation.limits, cohort.quality.get(channel, QualityLimits()))
    samples = preprocess(signal, rate, channel, band)[: n_epochs * EPOCH_SAMPLES]
    del signal
    if channel in _UNSCALED:
        finite = samples[np.isfinite(samples)]
        lower, median, upper = np.percentile(finite, (25.0, 50.0, 75.0))
        prepared.median[channel], prepared.iqr[channel] = float(median), float(upper - lower)
    else:
        samples, prepared.median[channel], prepared.iqr[channel] = robust_scale(samples)
    samples[np.isnan(samples)] = 0.0
    prepared.channels[channel] = samples
    prepared.quality[channel] = quality
    entry = prepared.provenance["channels"][channel] = derivation.describe()
    entry["band"] = [low, high]
    if band.high is not None and high is not None and high < band.high:
        entry["band_cut"] = f"upper edge {band.high:g} Hz is above the Nyquist frequency; {high:g} Hz"
    entry["epochs_flagged"] = {flag.name: int(((quality & flag) > 0).sum()) for flag in Quality if (quality & flag).any()}


def _mostly_gap(recording: Recording, n_epochs: int) -> NDArray[np.bool_]:
    """Epochs [E] of which half or more was not recorded: nobody can have seen their stage."""
    edges = np.arange(n_epochs + 1) * float(EPOCH_SECONDS)
    missing = np.zeros(n_epochs)
    for onset, duration in recording.gaps:
        missing += np.clip(np.minimum(edges[1:], onset + duration) - np.maximum(edges[:-1], onset), 0.0, None)
    return missing >= EPOCH_SECONDS / 2


def _provenance(examination: Examination, rule: EventRule) -> dict[str, Any]:
    recording, scoring = examination.recording, examination.scoring
    return {
        "file": recording.path.name,
        "format": recording.format,
        "duration": recording.duration,
        "clock": recording.start.time().isoformat() if recording.start else None,
        "gaps": [list(gap) for gap in recording.gaps],
        "warnings": list(recording.warnings),
        "cohort": examination.cohort.name,
        "channels": {},
        "missing": dict(examination.montage.missing),
        "event_rule": rule,
        "scoring": {
            "source": scoring.source,
            "has_events": scoring.has_events,
            "ignored": scoring.ignored,
            "warnings": list(scoring.warnings),
        }
        if scoring
        else None,
    }


def _annotations_only(path: Path) -> bool:
    try:
        return not read_edf_header(path).ordinary
    except RecordingError:
        return False


def _scoring_of(path: Path, root: Path, cohort: Cohort | None) -> Path | None:
    try:
        return find_scoring(path, root, cohort or recognise_cohort(read_recording(path)))
    except RecordingError:
        return None
