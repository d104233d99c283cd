"""What a folder and a recording hold, told from headers and scorings before a sample is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.errors import AnnotationError, MontageError, RecordingError
from sleepfm.signals.cohorts.catalogue import Rules, recognise_cohort
from sleepfm.signals.cohorts.cohort import UNCLEAR, Cohort
from sleepfm.signals.cohorts.identity import Identity, identify
from sleepfm.signals.cohorts.montage import NO_LABEL, Montage, resolve
from sleepfm.signals.edf.header import EdfHeader
from sleepfm.signals.files import file_size, is_file, is_folder, list_files, location, refresh
from sleepfm.signals.recording import Recording, read_edf_header, read_recording
from sleepfm.signals.scorings.edf_plus import from_annotations
from sleepfm.signals.scorings.finder import find_scoring
from sleepfm.signals.scorings.own_words import OwnWords
from sleepfm.signals.scorings.reader import read_scoring
from sleepfm.signals.scorings.reconcile import reconcile
from sleepfm.signals.scorings.scoring import Scoring, ScoringUse
from sleepfm.signals.scorings.vocabulary import fold

_SUFFIXES = (".edf", ".bdf")
# Annotations without a signal are smaller. Larger files are recordings, whose headers need not be fetched to list a folder.
_LARGEST_ANNOTATIONS = 16 << 20
# So many headers are handed on; those of further small files are read again, since memory must not grow with the cohort.
_MOST_HEADERS = 1000
# Headers lie apart on storage that may be slow to answer.
_THREADS = 16

# Of a path in a message.
_LONGEST_SHOWN = 300


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


def discover(root: str | Path, cohort: Rules = None) -> dict[Path, EdfHeader | None]:
    """Recordings (EDF and BDF) at or below ``root``, sorted, each with its header where that was read on the way.

    A file of annotations alone is no recording; it is listed only if it scores none of those found, so that
    nothing in the folder goes unaccounted for. Unreadable files are listed: preparing them says why.

    Raises:
        RecordingError: ``root`` does not exist or holds no EDF or BDF file.
    """
    root = location(root)
    try:
        refresh(root)
        if is_file(root):
            return {root: None}
        if not is_folder(root):
            raise RecordingError(f"{root}: no such file or folder of recordings")
        files = list_files(root, _SUFFIXES)
    except OSError as error:
        place = str(error.filename or root)
        shown = place if len(place) <= _LONGEST_SHOWN else f"{place[:_LONGEST_SHOWN]}..."
        raise RecordingError(f"{shown}: cannot be listed ({error.strerror or error})") from error
    if not files:
        raise RecordingError(f"{root}: no recording in this folder (looked for {', '.join(_SUFFIXES)} at any depth)")
    headers: dict[Path, EdfHeader] = {}

    def keep(path: Path, header: EdfHeader | None) -> None:
        if header is not None and len(headers) < _MOST_HEADERS:
            headers[path] = header

    recordings, annotations = [], []
    with ThreadPoolExecutor(_THREADS) as pool:
        for path, header in zip(files, pool.map(_header_of_small, files), strict=True):
            if header is not None and not header.ordinary:
                annotations.append(path)
            else:
                recordings.append(path)
                keep(path, header)
        if annotations:
            scorings = set()
            found = pool.map(lambda path: _scoring_of(path, headers.get(path), root, cohort), recordings)
            for path, (header, scoring) in zip(recordings, found, strict=True):
                keep(path, header)
                scorings.add(scoring)
            recordings += [path for path in annotations if path not in scorings]
    return {path: headers.get(path) for path in sorted(recordings)}


def examine(
    path: Path | Recording,
    cohort: Rules = None,
    root: Path | None = None,
    scoring: Path | None = None,
    use: ScoringUse = "if_valid",
) -> Examination:
    """Everything about a recording but its samples: cohort, montage, scoring; no channel is required yet.

    Args:
        path: file, or a recording that is open already.
        cohort: its rules, or None to recognise them, or cohorts to recognise it among.
        root: folder below which the scoring may be.
        scoring: the scoring file; by default it is looked for, and then in the recording's own annotations.
        use: whether the recording is refused with a scoring that cannot be used, or without one (``require``).

    Raises:
        RecordingError: unreadable, annotations alone, or shorter than an epoch.
        AnnotationError: a scoring is required, and there is none, or it cannot be read or belongs to another recording.
    """
    recording = path if isinstance(path, Recording) else read_recording(path)
    name = recording.name
    if not recording.signals:
        raise RecordingError(
            f"{name}: holds {len(recording.annotations)} annotations and no signal, and scores no recording here; "
            "put it beside its recording"
        )
    if recording.duration == 0:
        raise RecordingError(
            f"{name}: its data records have no duration, so that its signals have no sampling rate; export it again"
        )
    n_epochs = int((recording.duration + 1e-6) // EPOCH_SECONDS)
    if n_epochs < 1:
        raise RecordingError(f"{name}: {recording.duration:g} s long, shorter than one {EPOCH_SECONDS}-s epoch")
    cohort = recognise_cohort(name, (signal.label for signal in recording.signals), cohort)
    found, scored, refused = scoring, None, ""
    if use != "ignore":
        try:
            found = scoring or find_scoring(recording.path, root, cohort, recording.header, recording.names_below)
            scored = _read_scoring(recording, cohort, found)
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
        identity=identify(recording.path, cohort),
        montage=resolve(recording, cohort),
        scoring=scored,
        n_epochs=n_epochs,
        scoring_refused=refused,
        scoring_file=found,
    )


def _none_found(cohort: Cohort) -> str:
    patterns = [*cohort.scoring.files, *([cohort.scoring.same_header] if cohort.scoring.same_header else [])]
    return f"no scoring was found (cohort {cohort.name} looks for {', '.join(patterns) or 'none beside the recording'})"


def _read_scoring(recording: Recording, cohort: Cohort, found: Path | None) -> Scoring | None:
    """The scoring in ``found`` or in the recording itself, brought to its length, with what the cohort knows of it.

    Raises:
        AnnotationError, RecordingError: it cannot be used.
    """
    name, own = recording.name, OwnWords.of(cohort.scoring)
    if found is not None:
        scored: Scoring | None = read_scoring(found, recording.start, recording.duration, recording.names_below, own)
    else:
        scored = from_annotations(own.in_annotations(recording.annotations), "annotations of the recording")
    if scored is None:
        return None
    names = [recording.path.name, *([found.name] if found is not None else [])]
    if _any_named(names, cohort.scoring.stages_wrong):
        raise AnnotationError(
            f"{name}: the stages of this scoring are documented to be wrong (cohort {cohort.name}); it is not used"
        )
    if _any_named(names, cohort.scoring.events_lost):
        lost = f"the events of this scoring are documented to be lost (cohort {cohort.name}); they count as not scored"
        scored = replace(scored, events=(), unclear=(), untimed=(), has_events=False, warnings=(*scored.warnings, lost))
    else:
        scored = _without_unreliable(_with_own_events(scored, cohort.scoring.events), cohort)
    return reconcile(scored, recording.duration, cohort.scoring.longer, name, cohort.scoring.shorter)


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
            f"{path}: no canonical channel by the rules of cohort {examination.cohort.name!r} among "
            f"{len(signals)} signals ({labels})"
            f"{'; ' + reasons if reasons else ''}; name them in a cohort file"
        )
    lacking = [name for name in require if name not in montage.channels]
    if lacking:
        raise MontageError(f"{path}: " + "; ".join(f"{name} is missing: {montage.missing[name]}" for name in lacking))


def _any_named(names: Iterable[str], expression: str) -> bool:
    return bool(expression) and any(re.search(expression, name) for name in names)


def _with_own_events(scoring: Scoring, own: Mapping[str, str]) -> Scoring:
    """``scoring`` with the events that only the cohort knows the meaning of, or knows to have none that is certain."""
    meaning = {fold(text): kind for text, kind in own.items()}
    timed = [*scoring.unclear, *(event for event in scoring.others if event.duration > 0)]
    known = [replace(event, type=meaning[fold(event.type)]) for event in timed if fold(event.type) in meaning]
    known = [event for event in known if event.type != UNCLEAR]
    doubtful = [event for event in timed if meaning.get(fold(event.type)) == UNCLEAR]
    unclear = [event for event in scoring.unclear if fold(event.type) not in meaning]
    return replace(
        scoring,
        events=tuple(sorted((*scoring.events, *known), key=lambda event: (event.onset, event.type))),
        has_events=scoring.has_events or bool(known) or bool(doubtful),
        unclear=tuple(sorted((*unclear, *doubtful), key=lambda event: (event.onset, event.type))),
        ignored={text: count for text, count in scoring.ignored.items() if fold(text) not in meaning},
    )


def _without_unreliable(scoring: Scoring, cohort: Cohort) -> Scoring:
    """``scoring`` without the types of events that are documented to be unreliable in its cohort."""
    unreliable = cohort.scoring.unreliable
    if not unreliable:
        return scoring
    told = f"events that are documented to be unreliable (cohort {cohort.name}) count as not scored: {', '.join(unreliable)}"
    events = tuple(event for event in scoring.events if event.type not in unreliable)
    return replace(scoring, events=events, unreliable=unreliable, warnings=(*scoring.warnings, told))


def _header_of_small(path: Path) -> EdfHeader | None:
    """The header of what may hold annotations alone; None where it need not be read or cannot."""
    try:
        return read_edf_header(path) if file_size(path) <= _LARGEST_ANNOTATIONS else None
    except (RecordingError, OSError):
        return None


def _scoring_of(path: Path, header: EdfHeader | None, root: Path, rules: Rules) -> tuple[EdfHeader | None, Path | None]:
    """The header, read where the search needs it, and the scoring of a recording."""
    try:
        if header is None and (not isinstance(rules, Cohort) or rules.scoring.same_header):
            header = read_edf_header(path)
        cohort = recognise_cohort(str(path), (signal.label for signal in header.ordinary) if header else (), rules)
        return header, find_scoring(path, root, cohort, header)
    except (RecordingError, AnnotationError):
        # Examining the recording says why; the others go on.
        return header, None
