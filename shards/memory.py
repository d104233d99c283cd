"""What a task may need: told from the headers of its recordings, so that no node takes more tasks than it can hold.

Recordings are converted one after the other, so a task needs what its largest one does: every channel quantised to
int16, at most at 100 Hz, and for the one at hand its samples, its result and their intermediates as float32. The figures are
upper bounds for what ``benchmarks/shards.py`` measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from shards.build_config import BuildConfig, chosen_cohort
from sleepfm.constants import CHANNELS, RATE_HZ
from sleepfm.errors import RecordingError
from sleepfm.signals.cohorts.catalogue import Rules, all_cohorts
from sleepfm.signals.cohorts.cohort import Cohort, normalise_label
from sleepfm.signals.cohorts.label_grammar import read_label, without_running_numbers
from sleepfm.signals.discover import Discovered
from sleepfm.signals.edf.header import EdfHeader
from sleepfm.signals.recording import read_edf_extent

# A Ray worker with its libraries.
BASE_BYTES = 200 * 2**20
# Arrays of the length of the channel at hand, before and after resampling, that are alive at once.
_COPIES = 4
# Memory is asked for in steps: few sizes let Ray reuse its decisions.
_STEP_BYTES = 64 * 2**20
# Headers lie apart on storage that may be slow to answer.
_THREADS = 8


# A recording's header, and the seconds that it lasts.
Extent = tuple[EdfHeader, float]


def measure(
    source: Path, paths: Sequence[str], known: Mapping[str, Discovered], config: BuildConfig
) -> tuple[int, dict[str, Discovered]]:
    """What a task for the recordings ``paths``, relative to ``source``, asks of its node, in bytes, and what is known of them."""
    extents = read_extents(source, paths, known)
    found = {path: known[path] for path in paths if path in known}
    found |= {path: replace(known.get(path, Discovered()), header=header) for path, (header, _) in extents.items()}
    return task_memory(extents.values(), wanted_labels(chosen_cohort(config))), found


def read_extents(source: Path, paths: Iterable[str], known: Mapping[str, Discovered] = MappingProxyType({})) -> dict[str, Extent]:
    """The extents of the recordings ``paths``, relative to ``source``; those that cannot be read are left out.

    Args:
        known: what was learnt of recordings before, by these paths.
    """

    def extent(path: str) -> Extent | None:
        found = known.get(path, Discovered())
        if found.header is not None and found.seconds is not None:
            return found.header, found.seconds
        try:
            return read_edf_extent(source / path, found.header)
        except RecordingError:
            return None  # it will be refused, with this reason

    names = tuple(paths)
    with ThreadPoolExecutor(_THREADS) as pool:
        return {name: found for name, found in zip(names, pool.map(extent, names), strict=True) if found is not None}


def task_memory(extents: Iterable[Extent], labels: frozenset[str]) -> int:
    """Bytes that converting recordings of these extents, one after the other, may take.

    Args:
        labels: labels of the signals that may be read (:func:`wanted_labels`).
    """
    needed = max((recording_memory(header, seconds, labels) for header, seconds in extents), default=0)
    return BASE_BYTES + -(-needed // _STEP_BYTES) * _STEP_BYTES


def wanted_labels(cohort: Rules) -> frozenset[str]:
    """Labels that the rules of ``cohort`` name, normalised, or as what they say ("C3-M2"); None stands for all cohorts."""
    cohorts = [cohort] if isinstance(cohort, Cohort) else (cohort or all_cohorts()).all()
    return frozenset(
        str(read_label(label)) if rule.electrodes else normalise_label(label)
        for each in cohorts
        for rules in each.channels.values()
        for rule in rules
        for labels in (rule.signal, rule.electrodes, *rule.reference)
        for label in labels
    )


def recording_memory(header: EdfHeader, seconds: float, labels: frozenset[str]) -> int:
    """Bytes beside the worker's own that converting a recording with this header, ``seconds`` long, may take."""
    plain = without_running_numbers([signal.label for signal in header.ordinary])
    named = [
        signal
        for signal, label in zip(header.ordinary, plain, strict=True)
        if not labels.isdisjoint((normalise_label(signal.label), normalise_label(label), str(read_label(label))))
    ]
    samples = max((signal.samples for signal in named or header.ordinary), default=0)
    longest = samples * seconds / float(header.record_seconds) if header.record_seconds else 0.0
    quantised = len(CHANNELS) * seconds * RATE_HZ * 2
    return int(quantised + _COPIES * 4 * (longest + seconds * RATE_HZ))
