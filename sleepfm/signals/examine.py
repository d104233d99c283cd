"""What a folder and a recording hold, told from headers and scorings before a sample is read."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.errors import AnnotationError, MontageError, RecordingError
from sleepfm.signals.cohorts.catalogue import Rules, recognise_cohort
from sleepfm.signals.cohorts.cohort import Cohort
from sleepfm.signals.cohorts.identity import Identity, identify
from sleepfm.signals.cohorts.montage import NO_LABEL, Montage, resolve
from sleepfm.signals.edf.header import EdfHeader
from sleepfm.signals.files import file_size, is_file, is_folder, is_remote, location, refresh
from sleepfm.signals.listing import Names, list_names
from sleepfm.signals.recording import Recording, read_edf_extent, read_edf_header, read_recording
from sleepfm.signals.scorings.edf_plus import from_annotations
from sleepfm.signals.scorings.finder import FoundScoring, find_scoring, passed_over
from sleepfm.signals.scorings.own_words import OwnWords
from sleepfm.signals.scorings.reader import read_scoring
from sleepfm.signals.scorings.reconcile import reconcile
from sleepfm.signals.scorings.scoring import Scoring, ScoringUse

_SUFFIXES = (".edf", ".bdf")
# Annotations without a signal are smaller. Larger files are recordings, whose headers need not be fetched to list a folder.
_LARGEST_ANNOTATIONS = 16 << 20
# Of so many what was learnt is handed on; of further ones it is asked again, since memory must not grow with the cohort.
_MOST_HEADERS = 1000
# Headers lie apart on storage that may be slow to answer.
_THREADS = 16
_AHEAD = 4 * _THREADS

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


@dataclass(frozen=True, slots=True)
class Discovered:
    """What :func:`discover` has learnt of a recording, handed on so that nobody asks for it again.

    Attributes:
        header: None where it was not read.
        seconds: that the recording lasts with its pauses; None where that was not read.
        scoring: None where it was not looked for.
        same_as: another recording that is the very same file; None where there is none.
        size: bytes, where a listing said them; None where the file was not asked.
    """

    header: EdfHeader | None = None
    seconds: float | None = None
    scoring: FoundScoring | None = None
    same_as: Path | None = None
    size: int | None = None

    def check(self, name: str, other: str = "") -> None:
        """Raises :class:`RecordingError` for a file that is another recording too; messages call these ``name`` and ``other``."""
        if self.same_as is not None:
            raise RecordingError(
                f"{name}: is the same file as {other or self.same_as}, by a link, and would count as a second recording, maybe "
                "of a second person; remove one of the two names"
            )


_NOTHING = Discovered()


def discover(
    root: str | Path, cohort: Rules = None, extents: bool = False, unlisted: dict[str, str] | None = None
) -> dict[Path, Discovered]:
    """Recordings (EDF and BDF) at or below ``root``, sorted, each with what was learnt of it on the way.

    :func:`discover_names` with paths, for folders whose recordings one goes through anyway. Arguments and errors as there.
    """
    root = location(root)
    names = discover_names(root, cohort, extents, unlisted)
    return {root / name if name else root: found for name, found in names.items()}


def discover_names(
    root: Path,
    cohort: Rules = None,
    extents: bool = False,
    unlisted: dict[str, str] | None = None,
    exclude: Callable[[str], bool] | None = None,
    progress: Callable[[str, int], object] | None = None,
) -> dict[str, Discovered]:
    """Names of the recordings below ``root``, relative to it, or an empty one where ``root`` is a recording.

    A file of annotations alone is no recording; it is listed only if it scores none of those found, so that
    nothing in the folder goes unaccounted for. Unreadable files are listed: preparing them says why.

    Args:
        extents: where a header is read, read also how long the recording is, while it is open.
        unlisted: takes the folders below ``root`` that cannot be listed, each with the reason, and the others are gone through;
            without it the first is an error.
        exclude: whether a file of this name is no recording; it is not opened.
        progress: gets what is done and of how many files, again and again.

    Raises:
        RecordingError: ``root`` does not exist, holds no EDF or BDF file, or cannot be listed.
    """
    names = _listed(root, unlisted, progress)
    if not names:
        return {"": _NOTHING}
    if exclude is not None:
        names = {name: size for name, size in names.items() if not exclude(name)}
        if not names:
            raise RecordingError(f"{root}: every recording in this folder is excluded")
    known: dict[str, Discovered] = {}
    others: dict[Path, EdfHeader] = {}
    learnt = 0

    def keep(name: str, found: Discovered) -> None:
        nonlocal learnt
        if found != _NOTHING and (name in known or learnt < _MOST_HEADERS):
            learnt += name not in known
            known[name] = found

    def looked_at(name: str) -> Discovered:
        return _look_at_small(root / name, names[name], extents)

    recordings, annotations = [], []
    for number, (name, found) in enumerate(_each(looked_at, names), start=1):
        if found.header is not None and not found.header.ordinary:
            annotations.append(name)
            if len(others) < _MOST_HEADERS:
                others[root / name] = found.header
        else:
            recordings.append(name)
            keep(name, found)
        if progress is not None:
            progress("looked at", number)
    if annotations:
        scorings = set()

        def search(name: str) -> Discovered:
            return _with_scoring(root / name, known.get(name, _NOTHING), root, cohort, extents, others)

        for name, found in _each(search, recordings):
            keep(name, found)
            scorings.add(found.scoring.file if found.scoring else None)
        recordings += [name for name in annotations if root / name not in scorings]
        recordings.sort(key=lambda name: name.split("/"))
    if not is_remote(root):
        for name, other in _repeated(root, recordings).items():
            known[name] = replace(known.get(name, _NOTHING), same_as=root / other)
    return {name: _with_size(known.get(name, _NOTHING), names[name]) for name in recordings}


def _listed(root: Path, unlisted: dict[str, str] | None, progress: Callable[[str, int], object] | None) -> Names:
    """What a listing of ``root`` says; empty where that is a file."""
    failures: list[OSError] = []
    try:
        refresh(root)
        if is_file(root):
            return {}
        if not is_remote(root) and not is_folder(root):
            raise _no_such(root)
        counted = None if progress is None else partial(progress, "listed")
        names = list_names(root, _SUFFIXES, None if unlisted is None else failures.append, counted)
        if failures and not names:
            raise failures[0]
        if not names and not is_folder(root):  # of a store, its listing says whether there is anything
            raise _no_such(root)
    except OSError as error:
        place, why = _not_listed(root, error)
        raise RecordingError(f"{place}: {why}") from error
    if unlisted is not None:
        unlisted.update(_not_listed(root, error) for error in failures)
    if not names:
        raise RecordingError(f"{root}: no recording in this folder (looked for {', '.join(_SUFFIXES)} at any depth)")
    return names


def _no_such(root: Path) -> RecordingError:
    return RecordingError(f"{root}: no such file or folder of recordings")


def _each(function: Callable[[str], Discovered], names: Iterable[str]) -> Iterator[tuple[str, Discovered]]:
    """``function`` of each of ``names`` in order, some at once; few are ahead of what is taken."""
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting = iter(names)
        running = deque((name, pool.submit(function, name)) for name in islice(waiting, _AHEAD))
        while running:
            name, future = running.popleft()
            yield name, future.result()
            running.extend((name, pool.submit(function, name)) for name in islice(waiting, 1))


def _with_size(found: Discovered, size: int | None) -> Discovered:
    return found if size is None else replace(found, size=size)


def examine(
    path: Path | Recording,
    cohort: Rules = None,
    root: Path | None = None,
    scoring: Path | FoundScoring | None = None,
    use: ScoringUse = "if_valid",
) -> Examination:
    """Everything about a recording but its samples: cohort, montage, scoring; no channel is required yet.

    Args:
        path: file, or a recording that is open already.
        cohort: its rules, or None to recognise them, or cohorts to recognise it among.
        root: folder below which the scoring may be.
        scoring: the scoring file, or what looking for it came to; by default it is looked for. Where there is none, the
            recording's own annotations are.
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
    names = [recording.path.name, *([found.name] if found is not None else [])]
    if _any_named(names, cohort.scoring.stages_wrong):
        raise AnnotationError(
            f"{name}: the stages of this scoring are documented to be wrong (cohort {cohort.name}); it is not used"
        )
    if _any_named(names, cohort.scoring.events_lost):
        lost = f"the events of this scoring are documented to be lost (cohort {cohort.name}); they count as not scored"
        scored = replace(scored, events=(), unclear=(), untimed=(), has_events=False, warnings=(*scored.warnings, lost))
    else:
        scored = _without_unreliable(scored, cohort)
    return reconcile(scored, recording.duration, cohort.scoring.longer, name, cohort.scoring.shorter)


def _read_file(recording: Recording, cohort: Cohort, found: Path, root: Path | None, own: OwnWords, looked_for: bool) -> Scoring:
    """The scoring in ``found``; where that lacks stages or events, it is told which other file is there and not read."""

    def beside() -> str:
        if not looked_for:  # a file that was handed on is not searched for again
            return ""
        others = passed_over(recording.path, root, cohort, found, recording.names_below)
        names = ", ".join(repr(path.name) for path in others)
        return (
            names and f"{names} beside it is not read, since of several patterns one counts; put stages and events into one file"
        )

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
            f"{len(signals)} signals ({labels})"
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


def _repeated(root: Path, names: Sequence[str]) -> dict[str, str]:
    """Those of ``names`` below ``root`` that are a file which another of them is too, by a link, each with that other one.

    The other one is the first that is no symbolic link.
    """
    # Some file systems give several files one number: that alone is no link.
    links = {place for name in names if (place := _place(root / name, linked=True)) is not None}
    found: dict[tuple[int, int], list[str]] = {}
    for name in names if links else ():
        place = _place(root / name)
        if place in links:
            found.setdefault(place, []).append(name)
    repeated: dict[str, str] = {}
    for same in found.values():
        first, *others = sorted(same, key=lambda name: ((root / name).is_symlink(), name.split("/")))
        repeated |= dict.fromkeys(others, first)
    return repeated


def _place(path: Path, linked: bool = False) -> tuple[int, int] | None:
    """What tells a file from all others; None where it cannot be read, or is not ``linked`` as it must be."""
    try:
        status = path.stat()
        if linked and status.st_nlink < 2 and not path.is_symlink():
            return None
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _not_listed(root: Path, error: OSError) -> tuple[str, str]:
    """The folder that could not be listed, and the reason."""
    place = str(error.filename or root)
    shown = place if len(place) <= _LONGEST_SHOWN else f"{place[:_LONGEST_SHOWN]}..."
    return shown, f"cannot be listed ({error.strerror or error})"


def _look_at_small(path: Path, size: int | None, extents: bool) -> Discovered:
    """What may hold annotations alone; nothing where it need not be read or cannot."""
    try:
        size = file_size(path) if size is None else size
        return _look_at(path, extents) if size <= _LARGEST_ANNOTATIONS else _NOTHING
    except (RecordingError, OSError):
        return _NOTHING


def _look_at(path: Path, extents: bool) -> Discovered:
    return Discovered(*read_edf_extent(path)) if extents else Discovered(read_edf_header(path))


def _with_scoring(
    path: Path, found: Discovered, root: Path, rules: Rules, extents: bool, others: Mapping[Path, EdfHeader]
) -> Discovered:
    """``found`` with the scoring of the recording, and with its header where the search needs it."""
    try:
        if found.header is None and (not isinstance(rules, Cohort) or rules.scoring.same_header):
            found = _look_at(path, extents)
        header = found.header
        cohort = recognise_cohort(str(path), (signal.label for signal in header.ordinary) if header else (), rules)
        return replace(found, scoring=FoundScoring(find_scoring(path, root, cohort, header, others=others)))
    except (RecordingError, AnnotationError):
        # Examining the recording says why; the others go on.
        return found
