"""Which scoring a recording was converted with, so that one that comes or changes later is taken at the next build.

A sidecar keeps the name and size of the scoring file of each of its recordings. What earlier versions wrote says of a recording
only whether it had one.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sleepfm.errors import AnnotationError, RecordingError
from sleepfm.signals.cohorts.catalogue import Rules, recognise_cohort
from sleepfm.signals.cohorts.cohort import Cohort
from sleepfm.signals.examine import Discovered
from sleepfm.signals.files import file_size
from sleepfm.signals.recording import read_edf_header
from sleepfm.signals.scorings.finder import find_scoring

# Name and bytes of a scoring file, None for none.
ScoredWith = tuple[str, int] | None
# Folders lie on storage that may be slow to answer.
_THREADS = 16


def scored_with(scoring: Path | None) -> ScoredWith:
    """Name and size of ``scoring``; of what cannot be read the size is 0."""
    if scoring is None:
        return None
    try:
        return scoring.name, file_size(scoring)
    except OSError:
        return scoring.name, 0


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
            kept[path] = (held[0], held[1]) if held else None
        elif provenance.get("scoring") is None and not provenance.get("scoring_refused"):
            kept[path] = None
    for refusal in sidecar["quarantine"]:
        if "scoring" in refusal and refusal["error"] == AnnotationError.__name__:
            held = refusal["scoring"]
            kept[refusal["path"]] = (held[0], held[1]) if held else None
    return kept


def found_scorings(recordings: Mapping[str, tuple[Path, Rules, Discovered]], root: Path) -> dict[str, ScoredWith]:
    """What scores each of ``recordings`` (path, rules and what was learnt, by name) now."""
    with ThreadPoolExecutor(_THREADS) as pool:
        now = pool.map(lambda entry: found_scoring(entry[0], root, *entry[1:]), recordings.values())
        return dict(zip(recordings, now, strict=True))
