"""What a recording holds, told from its header and scoring before a sample is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import time
from pathlib import Path

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.errors import AnnotationError, MontageError, RecordingError
from sleepfm.signals.cohorts.catalogue import Rules, recognise_cohort
from sleepfm.signals.cohorts.cohort import Cohort
from sleepfm.signals.cohorts.identity import Identity, identify
from sleepfm.signals.cohorts.montage import NO_LABEL, Montage, resolve
from sleepfm.signals.record_names import RecordName
from sleepfm.signals.recording import Recording, read_recording
from sleepfm.signals.scorings.clock import seconds_apart
from sleepfm.signals.scorings.edf_plus import from_annotations
from sleepfm.signals.scorings.finder import FoundScoring, find_scoring, passed_over
from sleepfm.signals.scorings.own_words import OwnWords
from sleepfm.signals.scorings.reader import read_scoring
from sleepfm.signals.scorings.reconcile import reconcile
from sleepfm.signals.scorings.scoring import Scoring, ScoringUse
from sleepfm.wording import counted


@dataclass(frozen=True)
class Examination:
    """What is known of a recording before a sample is read; ``scoring_refused`` is why its scoring is not used, or empty.

    ``scoring_file`` is the file that was found for it, used or not.
    """

    recording: Recording
    cohort: Cohort
    identity: Identity
    montage: Montage
    scoring: Scoring | None
    n_epochs: int
    scoring_refused: str = ""
    scoring_file: Path | None = None


def examine(
    path: Path | Recording,
    cohort: Rules = None,
    root: Path | None = None,
    scoring: Path | FoundScoring | None = None,
    use: ScoringUse = "if_valid",
    called: RecordName | None = None,
) -> Examination:
    """Everything about a recording but its samples: cohort, montage, scoring; no channel is required yet.

    Args:
        path: file, or a recording that is open already.
        cohort: its rules, or None to recognise them, or cohorts to recognise it among.
        root: folder below which the scoring may be.
        scoring: the scoring file, or what looking for it came to; by default it is looked for. Where there is none, the
            recording's own annotations are.
        use: whether the recording is refused with a scoring that cannot be used, or without one (``require``).
        called: what it is called among those of its folder; by default its file name is all that is known.

    Raises:
        RecordingError: unreadable, annotations alone, or shorter than an epoch.
        AnnotationError: a scoring is required, and there is none, or it cannot be read or belongs to another recording.
    """
    recording = path if isinstance(path, Recording) else read_recording(path)
    name = recording.name
    if not recording.signals:
        raise RecordingError(
            f"{name}: holds {len(recording.annotations)} annotations and no signal, and belongs to no recording in this "
            "folder; put it beside its recording"
        )
    if recording.duration == 0:
        raise RecordingError(f"{name}: its data records have no duration, so the sampling rates are unknown; export it again")
    n_epochs = int((recording.duration + 1e-6) // EPOCH_SECONDS)
    if n_epochs < 1:
        raise RecordingError(f"{name}: {recording.duration:g} s long, shorter than one {EPOCH_SECONDS}-s epoch")
    cohort = recognise_cohort(name, (signal.label for signal in recording.signals), cohort)
    found, scored, refused = None if isinstance(scoring, FoundScoring) else scoring, None, ""
    if use != "ignore":
        try:
            if isinstance(scoring, FoundScoring):
                found = scoring.file
            elif found is None:
                found = find_scoring(recording.path, root, cohort, recording.header, recording.names_below)
            scored = _read_scoring(recording, cohort, found, root, looked_for=scoring is None)
            if scored is None and use == "require":
                raise AnnotationError(f"{name}: {_none_found(cohort)}, and a scoring is required")
        except (AnnotationError, RecordingError) as error:
            # A damaged EDF+ hypnogram is a recording that cannot be read.
            if use == "require":
                raise
            refused = str(error)
    return Examination(
        recording=recording,
        cohort=cohort,
        identity=identify(recording.path, cohort, called),
        montage=resolve(recording, cohort),
        scoring=scored,
        n_epochs=n_epochs,
        scoring_refused=refused,
        scoring_file=found,
    )


def _none_found(cohort: Cohort) -> str:
    patterns = [*cohort.scoring.files, *([cohort.scoring.same_header] if cohort.scoring.same_header else [])]
    return f"no scoring was found (cohort {cohort.name} looks for {', '.join(patterns) or 'none beside the recording'})"


def _read_scoring(
    recording: Recording, cohort: Cohort, found: Path | None, root: Path | None, looked_for: bool
) -> Scoring | None:
    """The scoring in ``found`` or in the recording itself, brought to its length, with what the cohort knows of it.

    Raises:
        AnnotationError, RecordingError: it cannot be used.
    """
    name, own = recording.name, OwnWords.of(cohort.scoring)
    if found is not None:
        scored: Scoring | None = _read_file(recording, cohort, found, root, own, looked_for)
    else:
        texts = own.in_annotations(recording.annotations)
        scored = from_annotations(texts, "annotations of the recording", words=own.events)
    if scored is None:
        return None
    scored = _with_clock(scored, recording)
    names = [recording.path.name, *([found.name] if found is not None else [])]
    if _any_named(names, cohort.scoring.stages_wrong):
        raise AnnotationError(
            f"{name}: the stages of this scoring are known to be wrong (documentation of cohort {cohort.name}); it is not used"
        )
    if _any_named(names, cohort.scoring.events_lost):
        lost = f"the events of this scoring are documented to be lost (cohort {cohort.name}); they count as not scored"
        scored = replace(scored, events=(), unclear=(), untimed=(), has_events=False, warnings=(*scored.warnings, lost))
    else:
        scored = _without_unreliable(scored, cohort)
    return reconcile(scored, recording.duration, cohort.scoring.longer, name, cohort.scoring.shorter)


def _with_clock(scored: Scoring, recording: Recording) -> Scoring:
    """``scored``, with a warning where it says that its recording started more than an epoch from when this one did."""
    start = recording.start
    if scored.clock is None or start is None or start.time() == time():
        return scored
    apart = seconds_apart(scored.clock, start)
    if abs(apart) <= EPOCH_SECONDS:
        return scored
    return scored.with_misplaced(
        f"it says that its recording started {abs(apart) / 60:.1f} min {'after' if apart > 0 else 'before'} this one "
        "did; its times are taken as they are, and it may be of another night"
    )


def _read_file(recording: Recording, cohort: Cohort, found: Path, root: Path | None, own: OwnWords, looked_for: bool) -> Scoring:
    """The scoring in ``found``; where that lacks stages or events, it is told which other file is there and not read."""

    def beside() -> str:
        if not looked_for:  # a file that was handed on is not searched for again
            return ""
        others = passed_over(recording.path, root, cohort, found, recording.names_below)
        names = ", ".join(repr(path.name) for path in others)
        return names and f"{names} beside it is not read, since only the first matching pattern counts; put both into one file"

    try:
        scored = read_scoring(found, recording.start, recording.duration, recording.names_below, own)
    except AnnotationError as error:
        told = beside()
        raise (type(error)(f"{error}; {told}") if told else error) from error
    if not scored.has_events and (told := beside()):
        return replace(scored, warnings=(*scored.warnings, f"{found.name!r} has no events; {told}"))
    return scored


def require_channels(examination: Examination, require: Sequence[str] = ()) -> None:
    """Refuse a recording whose montage is ambiguous, empty, or lacks a required channel.

    Raises:
        MontageError: naming each channel with its candidates or the reason why it is missing.
    """
    montage, path = examination.montage, examination.recording.name
    if montage.ambiguous:
        raise MontageError(f"{path}: " + "; ".join(f"{name} is ambiguous: {why}" for name, why in montage.ambiguous.items()))
    if not montage.channels:
        signals = examination.recording.signals
        labels = ", ".join([repr(signal.label) for signal in signals[:8]] + ["..."] * (len(signals) > 8))
        reasons = "; ".join(f"{name}: {why}" for name, why in montage.missing.items() if why != NO_LABEL)
        raise MontageError(
            f"{path}: no canonical channel by the rules of cohort {examination.cohort.name} among "
            f"{counted(len(signals), 'signal')} ({labels})"
            f"{'; ' + reasons if reasons else ''}; name them in a cohort file"
        )
    lacking = [name for name in require if name not in montage.channels]
    if lacking:
        raise MontageError(f"{path}: " + "; ".join(f"{name} is missing: {montage.missing[name]}" for name in lacking))


def _any_named(names: Iterable[str], expression: str) -> bool:
    return bool(expression) and any(re.search(expression, name) for name in names)


def _without_unreliable(scoring: Scoring, cohort: Cohort) -> Scoring:
    """``scoring`` without the types of events that are documented to be unreliable in its cohort."""
    unreliable = cohort.scoring.unreliable
    if not unreliable:
        return scoring
    told = f"events that are documented to be unreliable (cohort {cohort.name}) count as not scored: {', '.join(unreliable)}"
    events = tuple(event for event in scoring.events if event.type not in unreliable)
    return replace(scoring, events=events, unreliable=unreliable, warnings=(*scoring.warnings, told))
