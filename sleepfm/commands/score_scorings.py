"""Scoring files among the recordings of ``sleepfm score``: each is taken for its recording, or refused with advice."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath

from sleepfm.commands.score_inputs import Job, NoJob
from sleepfm.errors import RecordingError
from sleepfm.inference.scorer import scorings_root
from sleepfm.signals.cohorts.catalogue import Rules
from sleepfm.signals.cohorts.proposals import SCORING_ENDINGS
from sleepfm.signals.discover import SUFFIXES, annotations_alone, scoring_beside
from sleepfm.signals.files import is_remote, location, matching_files
from sleepfm.signals.scorings.finder import FoundScoring

# Endings of scorings of other formats than EDF.
_SCORINGS = (*SCORING_ENDINGS, ".xls")


def with_named_scorings(found: Sequence[Job | NoJob], rules: Rules) -> tuple[list[Job | NoJob], list[str]]:
    """``found`` without the scorings in it, and a line for each of them that says whose it is.

    A scoring that the rules give to a recording of the call is that one's. One that they give to a recording beside it, which
    was not named, has this recording scored in its place. Any other is refused.
    """
    scorings = {job.file: _place(job.file) for job in found if isinstance(job, Job) and job.named and _is_scoring(job.file)}
    if not scorings:
        return list(found), []
    named = [job.file for job in found if isinstance(job, Job) and job.file not in scorings]
    owner = _owners(named, rules)
    missing = set(scorings.values()) - owner.keys()
    beside = _owners(_beside(scorings, set(map(_place, (*named, *scorings)))), rules) if missing else {}
    kept: list[Job | NoJob] = []
    told = []
    for job in found:
        if job.file not in scorings:
            kept.append(job)
        elif recording := owner.get(scorings[job.file]):
            told.append(f"{job.file}: taken for the human scoring of {recording}")
        elif recording := beside.get(scorings[job.file]):
            told.append(f"{job.file}: taken for the human scoring of {recording}, which is scored in its place")
            kept.append(Job(recording, FoundScoring(location(job.file))))
        else:
            kept.append(NoJob(job.file, _refusal(job.file)))
    return kept, told


def _place(file: str) -> str:
    """By what a file is the same, however it is named: as a URL, or from the root."""
    return file if is_remote(location(file)) else os.path.abspath(file)


def _is_scoring(file: str) -> bool:
    path = location(file)
    return path.suffix.lower() in _SCORINGS or annotations_alone(path)


def _beside(scorings: Iterable[str], but: set[str]) -> Iterator[str]:
    """Files in the folders of ``scorings`` that may be recordings."""
    for folder in dict.fromkeys(location(file).parent for file in sorted(scorings)):
        try:
            paths = matching_files(folder, "*")
        except OSError:
            continue
        for path in sorted(paths):
            if path.suffix.lower() in SUFFIXES and _place(str(path)) not in but:
                yield str(path)


def _owners(recordings: Iterable[str], rules: Rules) -> dict[str, str]:
    """Scoring to the first of ``recordings`` whose it is by the rules of its cohort."""
    owners: dict[str, str] = {}
    for file in recordings:
        path = location(file)
        scoring = None if annotations_alone(path) else scoring_beside(path, scorings_root(path), rules)
        if scoring is not None:
            owners.setdefault(_place(str(scoring)), file)
    return owners


def _refusal(file: str) -> RecordingError:
    what = "holds annotations and no signal" if PurePath(file).suffix.lower() in SUFFIXES else "is no EDF or BDF file"
    return RecordingError(
        f"{file}: {what}, and by the rules of cohorts it is the scoring of no recording that is named or beside it; if it is the "
        f"scoring of one, score that recording with `--scoring {file}`"
    )
