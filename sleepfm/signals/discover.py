"""Which recordings a folder holds, and what is learnt of them on the way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from sleepfm.errors import AnnotationError, RecordingError
from sleepfm.signals.cohorts.catalogue import Rules, recognise_cohort
from sleepfm.signals.cohorts.cohort import Cohort
from sleepfm.signals.edf.header import EdfHeader
from sleepfm.signals.files import file_size, is_file, is_folder, is_remote, location, refresh
from sleepfm.signals.listing import Names, list_names
from sleepfm.signals.recording import read_edf_extent, read_edf_header
from sleepfm.signals.scorings.finder import FoundScoring, find_scoring

# Endings of recordings, and of EDF+ annotations.
SUFFIXES = (".edf", ".bdf")
# Annotations without a signal are smaller. Larger files are recordings, whose headers need not be fetched to list a folder.
_LARGEST_ANNOTATIONS = 16 << 20
# Of so many what was learnt is handed on; of further ones it is asked again, since memory must not grow with the cohort.
_MOST_HEADERS = 1000
# Headers lie apart on storage that may be slow to answer.
_THREADS = 16
_AHEAD = 4 * _THREADS

# Of a path in a message.
_LONGEST_SHOWN = 300


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
                f"{name}: is the same file as {other or self.same_as}, through a link; it would count as a second recording, "
                "perhaps of another person; remove one of the two names"
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


def annotations_alone(path: Path) -> bool:
    """Whether ``path`` is an EDF+ or BDF+ file without any signal; a file that cannot be read is none."""
    if path.suffix.lower() not in SUFFIXES:
        return False
    header = _look_at_small(path, None, False).header
    return header is not None and not header.ordinary


def scoring_beside(path: Path, root: Path | None, cohort: Rules = None) -> Path | None:
    """The scoring of the recording ``path`` as :func:`discover` finds it; None also where the recording cannot be read."""
    found = _with_scoring(path, _NOTHING, root, cohort, False, {})
    return found.scoring.file if found.scoring else None


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
        names = list_names(root, SUFFIXES, None if unlisted is None else failures.append, counted)
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
        raise RecordingError(f"{root}: no recording in this folder (looked for {', '.join(SUFFIXES)} at any depth)")
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
    path: Path, found: Discovered, root: Path | None, rules: Rules, extents: bool, others: Mapping[Path, EdfHeader]
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
