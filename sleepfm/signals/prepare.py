"""From a recording on disk to harmonised channels and labels: the one way, for training data and for scoring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sleepfm.constants import CHANNELS, EPOCH_SECONDS, Stage
from sleepfm.errors import SignalError
from sleepfm.signals.cohorts.catalogue import Rules
from sleepfm.signals.cohorts.cohort import Band, Cohort, QualityLimits, rules_digest
from sleepfm.signals.cohorts.montage import Derivation, derive
from sleepfm.signals.discover import discover, discover_names
from sleepfm.signals.examine import Examination, examine, require_channels
from sleepfm.signals.filters import effective_band, preprocess, quartiles, robust_scale
from sleepfm.signals.polarity import POLAR, decide_polarity
from sleepfm.signals.quality import Quality, blank_lifeless, epoch_quality, missing_epochs, silent_epochs, unusable
from sleepfm.signals.rates import at_model_rate, recording_rate, stored_rate
from sleepfm.signals.record_names import RecordName
from sleepfm.signals.recording import Recording, opened_recording
from sleepfm.signals.scorings.finder import FoundScoring
from sleepfm.signals.scorings.labels import LABEL_EVENTS, RULE_VERSION, EventRule, event_labels, stage_labels
from sleepfm.signals.scorings.scoring import Event, ScoringUse

__all__ = [
    "PROCESSING_VERSION",
    "PreparedRecording",
    "RecordingDescription",
    "discover",
    "discover_names",
    "prepare",
    "prepare_in_turn",
]

# Raised with every change of filters, quality, polarity, scaling or reading by which a recording becomes other samples or labels.
PROCESSING_VERSION = 4
# Kept in their own unit: a percentage means the same in every recording.
_UNSCALED = ("SPO2",)


@dataclass(kw_only=True)
class RecordingDescription:
    """What is known of a recording in canonical form beside its samples.

    Attributes:
        record: unique name; ``subject`` is the same for all visits of a person.
        median, iqr: what scaling took out, in the canonical unit; of the usable epochs alone.
        quality: canonical name to [n_epochs] bits of :class:`sleepfm.signals.quality.Quality`. Absent channels are absent.
        stage: [n_epochs], -1 where unscored or mostly not recorded.
        events: those that are understood; ``unclear`` respiratory ones that are not, with their text as type.
        labels: apnea, hypopnea, desaturation, arousal: [n_epochs] 0 or 1, -1 if events were not scored or not understood.
        provenance: every decision made, in JSON types.
        scoring_file: what was found to score it, used or not.
    """

    record: str
    subject: str
    visit: str
    cohort: str
    path: Path
    n_epochs: int
    median: dict[str, float]
    iqr: dict[str, float]
    quality: dict[str, NDArray[np.uint8]]
    stage: NDArray[np.int8]
    events: tuple[Event, ...]
    labels: dict[str, NDArray[np.int8]]
    provenance: dict[str, Any] = field(default_factory=dict)
    unclear: tuple[Event, ...] = ()
    scoring_file: Path | None = None


@dataclass(kw_only=True)
class PreparedRecording(RecordingDescription):
    """A recording in canonical form.

    Attributes:
        channels: canonical name to [n_epochs * 3000] float32 at 100 Hz, median 0 and interquartile range 1 (SPO2 in %).
            Samples in gaps and in stretches without signal are 0. Absent channels are absent.
    """

    channels: dict[str, NDArray[np.float32]]


# Name and samples of one channel after the other, at the rate that holds its band (:mod:`sleepfm.signals.rates`).
Channels = Iterator[tuple[str, NDArray[np.float32]]]


def prepare(
    path: str | Path | Recording,
    cohort: Rules = None,
    root: Path | None = None,
    scoring: Path | FoundScoring | None = None,
    require: Sequence[str] = (),
    rule: EventRule = "overlap",
    use: ScoringUse = "if_valid",
    called: RecordName | None = None,
) -> PreparedRecording:
    """Read, harmonise, filter, scale and label one recording.

    Args:
        path: file, or a recording that is open already.
        cohort, root, scoring, use, called: as for :func:`sleepfm.signals.examine.examine`.
        require: canonical channels without which the recording is refused.
        rule: how events label epochs.

    Raises:
        RecordingError, MontageError, AnnotationError, SignalError: the recording cannot be used, and why.
    """
    with nullcontext(path) if isinstance(path, Recording) else opened_recording(path) as recording:
        description, channels = prepare_in_turn(recording, cohort, root, scoring, require, rule, use, called=called)
        made = {name: at_model_rate(samples, recording_rate(description.provenance, name)) for name, samples in channels}
    return PreparedRecording(**vars(description), channels={name: made[name] for name in CHANNELS if name in made})


def prepare_in_turn(
    recording: Recording,
    cohort: Rules = None,
    root: Path | None = None,
    scoring: Path | FoundScoring | None = None,
    require: Sequence[str] = (),
    rule: EventRule = "overlap",
    use: ScoringUse = "if_valid",
    wanted: Collection[str] = CHANNELS,
    called: RecordName | None = None,
) -> tuple[RecordingDescription, Channels]:
    """:func:`prepare` for who keeps something smaller of each channel: not all are in memory as float32 at once.

    The description is whole, and the last reason to refuse the recording is raised, once all channels have passed. Those
    whose polarity is decided together come last.

    Args:
        wanted: canonical channels; of others nothing is given and told. What is given does not depend on it.
    """
    examination = examine(recording, cohort, root, scoring, use, called)
    require_channels(examination, require)
    description = describe(examination, rule)
    return description, _required(examination, description, require, wanted)


def _required(
    examination: Examination, description: RecordingDescription, require: Sequence[str], wanted: Collection[str]
) -> Channels:
    yield from make_channels(examination, description, wanted)
    lacking = [name for name in require if name not in description.quality]
    if lacking or not description.quality:
        reasons = "; ".join(f"{name}: {why}" for name, why in description.provenance["missing"].items())
        raise SignalError(f"{examination.recording.name}: no usable signal in {', '.join(lacking) or 'any channel'} ({reasons})")


def describe(examination: Examination, rule: EventRule = "overlap") -> RecordingDescription:
    """What is known of an examined recording before its channels are made."""
    recording, n_epochs, scored = examination.recording, examination.n_epochs, examination.scoring
    stage = stage_labels(scored, n_epochs)
    stage[_mostly_gap(recording, n_epochs)] = Stage.UNSCORED
    return RecordingDescription(
        record=examination.identity.record,
        subject=examination.identity.subject,
        visit=examination.identity.visit,
        cohort=examination.cohort.name,
        path=recording.path,
        n_epochs=n_epochs,
        median={},
        iqr={},
        quality={},
        stage=stage,
        events=scored.events if scored else (),
        labels={name: event_labels(scored, n_epochs, types, rule) for name, types in LABEL_EVENTS.items()},
        provenance=_provenance(examination, rule),
        unclear=scored.unclear if scored else (),
        scoring_file=examination.scoring_file,
    )


def make_channels(examination: Examination, description: RecordingDescription, wanted: Collection[str] = CHANNELS) -> Channels:
    """The ``wanted`` channels of an examined recording that are not flat, maybe none; each is told in ``description``."""
    polar: dict[str, NDArray[np.float32]] = {}
    # The polarity of each is decided from all that can have one.
    needed = {*wanted, *(POLAR if not set(POLAR).isdisjoint(wanted) else ())}
    for channel, derivation in examination.montage.channels.items():
        if channel not in needed:
            continue
        try:
            if channel in POLAR:
                polar[channel] = _make_channel(description, examination, derivation)
            else:
                # No name here holds the samples while the next channel is made.
                yield channel, _make_channel(description, examination, derivation)
        except SignalError as error:
            description.provenance["missing"][channel] = str(error)
    _turn_upright(description, polar, examination.cohort)
    told = (description.median, description.iqr, description.quality, description.provenance["channels"])
    for channel in tuple(polar):
        if channel in wanted:
            yield channel, polar.pop(channel)
        else:
            del polar[channel]
            for of_channel in told:
                of_channel.pop(channel)
    for channel in CHANNELS:
        if channel not in wanted:
            description.provenance["missing"].pop(channel, None)


def _make_channel(description: RecordingDescription, examination: Examination, derivation: Derivation) -> NDArray[np.float32]:
    """Samples [n_epochs * 30 * rate], at the rate that holds the band.

    Raises:
        SignalError: they say nothing; ``description`` is untouched then.
    """
    channel, n_epochs, cohort = derivation.channel, examination.n_epochs, examination.cohort
    signal, rate = derive(examination.recording, derivation)
    lowest, highest = signal.min(), signal.max()
    if np.isnan(lowest):  # gaps; fmin and fmax pass them by, slowly
        lowest, highest = np.fmin.reduce(signal), np.fmax.reduce(signal)
    if lowest == highest or np.isnan(highest):
        raise SignalError("flat for the whole recording")
    band = cohort.filters.get(channel, Band())
    low, high = effective_band(band, rate)
    limits = cohort.quality.get(channel, QualityLimits())
    quality = epoch_quality(signal, rate, channel, n_epochs, derivation.limits, limits, derivation.step)
    if channel not in _UNSCALED:
        blank_lifeless(signal, rate, quality, derivation.limits, limits, derivation.step)
    target = stored_rate(channel, (low, high))
    size = n_epochs * EPOCH_SECONDS * target
    samples = preprocess(signal, rate, channel, band, target)[:size]
    silent = silent_epochs(samples, limits, derivation.step, target) & ~unusable(quality)
    if silent.any():
        # Seen only now, and the steps at their borders have rung through the filter: once more without them.
        quality[silent] |= np.uint8(Quality.FLAT)
        blank_lifeless(signal, rate, quality, derivation.limits, limits, derivation.step)
        samples = preprocess(signal, rate, channel, band, target)[:size]
    del signal
    if channel not in _UNSCALED:
        quality[missing_epochs(samples, target) & ~unusable(quality)] |= np.uint8(Quality.GAP)
    flagged = {str(flag.name): int(((quality & flag) > 0).sum()) for flag in Quality if (quality & flag).any()}
    if unusable(quality).all():
        found = ", ".join(f"{name} in {count}" for name, count in flagged.items())
        raise SignalError(f"no usable signal in any of its {n_epochs} epochs ({found})")
    if channel in _UNSCALED:
        good = samples.reshape(n_epochs, -1)[~unusable(quality)].reshape(-1)
        lower, median, upper = quartiles(good[np.isfinite(good)])
        iqr = upper - lower
    else:
        samples, median, iqr = robust_scale(samples)
        if iqr < limits.floor:
            raise SignalError(f"too weak: an interquartile range of {iqr:.3g} is below the floor of {limits.floor:g}")
    missing = np.isnan(samples)
    if missing.any():
        samples[missing] = 0.0
    description.median[channel], description.iqr[channel], description.quality[channel] = median, iqr, quality
    entry = description.provenance["channels"][channel] = derivation.describe()
    if digests := examination.recording.sample_digests.get(derivation.active.index):
        entry["sample_digests"] = list(digests)
    entry["band"] = [low, high]
    if band.high is not None and high is not None and high < band.high:
        entry["band_cut"] = f"upper edge {band.high:g} Hz is above the Nyquist frequency; {high:g} Hz"
    entry["epochs_flagged"] = flagged
    entry["epochs_unusable"] = int(unusable(quality).sum())
    return samples


def _turn_upright(description: RecordingDescription, polar: dict[str, NDArray[np.float32]], cohort: Cohort) -> None:
    described = description.provenance["channels"]
    derivation = {channel: described[channel]["derivation"] for channel in polar}
    decided = decide_polarity(polar, description.quality, description.iqr, derivation, cohort)
    for channel, polarity in decided.items():
        described[channel]["polarity"] |= polarity.describe()
        if polarity.inverted:
            np.negative(polar[channel], out=polar[channel])
            description.median[channel] = -description.median[channel]


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
        "subject_read": examination.identity.read,
        "cohort": examination.cohort.name,
        "cohort_rules": rules_digest(examination.cohort),
        "channels": {},
        "missing": dict(examination.montage.missing),
        "event_rule": rule,
        "event_rule_version": RULE_VERSION[rule],
        "scoring_refused": examination.scoring_refused,
        "scoring": {
            "source": scoring.source,
            "has_events": scoring.has_events,
            "unclear": dict(Counter(event.type for event in scoring.unclear)),
            "ignored": scoring.ignored,
            "warnings": list(scoring.warnings),
            **({"misplaced": list(scoring.misplaced)} if scoring.misplaced else {}),
        }
        if scoring
        else None,
    }
