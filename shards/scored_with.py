"""Which scoring a recording was converted with, so that one that comes or changes later is taken at the next build.

A sidecar keeps the name, size and SHA-256 of the scoring file of each of its recordings: a scoring is small, and one in which a
stage was corrected may be as large as before. What earlier versions wrote lacks the SHA-256, or says of a recording only whether
it had one.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from sleepfm.errors import AnnotationError, RecordingError
from sleepfm.signals.cohorts.catalogue import Rules, recognise_cohort
from sleepfm.signals.cohorts.cohort import Cohort
from sleepfm.signals.discover import Discovered
from sleepfm.signals.files import size_and_sha256
from sleepfm.signals.recording import read_edf_header
from sleepfm.signals.scorings.finder import find_scoring


class ScoringFile(NamedTuple):
    """A scoring file: ``size`` in bytes, and hexadecimal ``sha256``, which is empty where it is not known."""

    name: str
    size: int
    sha256: str = ""


# None for no scoring.
ScoredWith = ScoringFile | None
# Folders lie on storage that may be slow to answer.
_THREADS = 16


def scored_with(scoring: Path | None) -> ScoredWith:
    """What tells ``scoring`` from another; of what cannot be read the size is 0."""
    if scoring is None:
        return None
    try:
        return ScoringFile(scoring.name, *size_and_sha256(scoring))
    except OSError:
        return ScoringFile(scoring.name, 0)


def is_another(now: ScoredWith, before: ScoredWith, certain: bool) -> bool:
    """Whether a recording has another scoring ``now``; one that is gone is none.

    Args:
        certain: what is not known of the one ``before`` counts as different.
    """
    if now is None or before is None:
        return now is not None
    if not before.sha256 and not certain:
        return now[:2] != before[:2]
    return now != before


def found_scoring(path: Path, root: Path, rules: Rules, known: Discovered) -> ScoredWith:
    """What scores the recording at ``path``, of which ``known`` was learnt, now; None also where the search fails, as examining
    it says.
    """
    try:
        if known.scoring is not None:
            return scored_with(known.scoring.file)
        if isinstance(rules, Cohort):
            return scored_with(find_scoring(path, root, rules, known.header))
        header = known.header or read_edf_header(path)
        cohort = recognise_cohort(path.name, (signal.label for signal in header.ordinary), rules)
        return scored_with(find_scoring(path, root, cohort, header))
    except (AnnotationError, RecordingError):
        return None


def kept_of(sidecar: Mapping[str, Any]) -> dict[str, ScoredWith]:
    """What the recordings of ``sidecar`` were converted or refused with, of those of which it says it."""
    kept: dict[str, ScoredWith] = {}
    for record in sidecar["records"]:
        path, provenance = record["source"], record["provenance"]
        if "scored_with" in sidecar:
            held = sidecar["scored_with"].get(path)
            kept[path] = ScoringFile(*held) if held else None
        elif provenance.get("scoring") is None and not provenance.get("scoring_refused"):
            kept[path] = None
    for refusal in sidecar["quarantine"]:
        if "scoring" in refusal and refusal["error"] == AnnotationError.__name__:
            held = refusal["scoring"]
            kept[refusal["path"]] = ScoringFile(*held) if held else None
    return kept


def found_scorings(recordings: Mapping[str, tuple[Path, Rules, Discovered]], root: Path) -> dict[str, ScoredWith]:
    """What scores each of ``recordings`` (path, rules and what was learnt, by name) now."""
    with ThreadPoolExecutor(_THREADS) as pool:
        now = pool.map(lambda entry: found_scoring(entry[0], root, *entry[1:]), recordings.values())
        return dict(zip(recordings, now, strict=True))
