"""What is in a folder of recordings, before anything is built: found, mapped, ambiguous, missing, refused and why."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.errors import RecordingError, SignalError, SleepFMError
from sleepfm.processes import process_pool
from sleepfm.signals.cohorts.catalogue import Rules
from sleepfm.signals.cohorts.proposals import unmapped
from sleepfm.signals.discover import Discovered
from sleepfm.signals.examine import Examination, examine, require_channels
from sleepfm.signals.files import is_folder
from sleepfm.signals.prepare import describe, make_channels
from sleepfm.signals.record_names import RecordName, names_below
from sleepfm.signals.recording import opened_recording, read_recording
from sleepfm.signals.scorings.finder import looked_for
from sleepfm.signals.scorings.labels import stage_labels
from sleepfm.signals.scorings.text_counts import TextCounts
from sleepfm.signals.scorings.vocabulary import is_beside_the_point

# A process takes seconds to start, a recording less than one, a header and its scoring milliseconds.
_LEAST_EACH = 4
_HEADERS_AT_ONCE = 32


@dataclass
class Finding:
    """What the doctor says of one recording; ``refused`` is why it would be refused, or empty.

    ``unmapped`` are signals that are part of no channel, with the rule that would map each
    (:mod:`sleepfm.signals.cohorts.proposals`). ``scoring_file`` is the file of the scoring that is used, empty where that is the
    recording's own annotations; ``looked_for`` is where a scoring was looked for and not found,
    ``scoring_refused`` why one would not be used; ``unclear`` and ``ignored`` are texts of the scoring as in
    :class:`sleepfm.signals.scorings.text_counts.TextCounts`, and ``places`` the second at which those that are not understood
    stand first. ``sample_digests`` are of all its channels (:mod:`sleepfm.signals.edf.sample_digests`).
    """

    path: str
    refused: str = ""
    cohort: str = ""
    record: str = ""
    subject: str = ""
    visit: str = ""
    subject_read: bool = True
    hours: float = 0.0
    epochs: int = 0
    signals: list[dict[str, Any]] = field(default_factory=list)
    unmapped: list[dict[str, Any]] = field(default_factory=list)
    channels: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    ambiguous: dict[str, str] = field(default_factory=dict)
    gaps: int = 0
    scoring: str = ""
    scoring_file: str = ""
    looked_for: list[str] = field(default_factory=list)
    scored_epochs: int = 0
    events: int = 0
    scoring_refused: str = ""
    unclear: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)
    places: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    sample_digests: list[str] = field(default_factory=list)

    @property
    def texts(self) -> TextCounts:
        """What its scoring says that is no stage and no event."""
        counts = TextCounts()
        provenance = {"scoring": {"unclear": self.unclear, "ignored": self.ignored}, "scoring_refused": self.scoring_refused}
        counts.add(self.path, provenance)
        return counts

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def sample_of(recordings: Mapping[Path, Discovered], count: int | None) -> dict[Path, Discovered]:
    """``count`` of the recordings, the same ones each time, in order; all without a count."""
    chosen = list(recordings) if count is None else random.Random(0).sample(list(recordings), min(count, len(recordings)))
    return {path: recordings[path] for path in sorted(chosen)}


def examine_recordings(
    recordings: Mapping[Path, Discovered],
    root: Path,
    rules: Rules,
    workers: int = 1,
    signals: bool = True,
    names: Mapping[Path, RecordName] | None = None,
) -> Iterator[Finding]:
    """One :class:`Finding` a recording below ``root``, in order, by ``workers`` processes.

    Headers and scorings are read, and with ``signals`` the samples of all channels. ``names`` are what the recordings are called
    where others are below ``root`` too.

    Raises:
        RecordingError: a process was ended, as the system does where memory is short.
    """
    below = root if is_folder(root) else None
    look = partial(_look, root=below, rules=rules, signals=signals)
    names = names_below(recordings, root) if names is None else names
    called = [names[path] for path in recordings]
    at_once = 1 if signals else _HEADERS_AT_ONCE
    workers = min(workers, len(recordings) // (_LEAST_EACH * at_once))
    if workers < 2:
        yield from map(look, recordings, recordings.values(), called)
        return
    with process_pool(workers) as pool:
        try:
            yield from pool.map(look, recordings, recordings.values(), called, chunksize=at_once)
        except BrokenProcessPool as error:
            raise RecordingError(f"{root}: a process that was reading it was killed, perhaps because memory ran out") from error


def _look(path: Path, found: Discovered, called: RecordName, root: Path | None, rules: Rules, signals: bool) -> Finding:
    finding = Finding(str(path))
    try:
        found.check(str(path))
        # A recording that is opened for its samples may be read whole at once.
        with opened_recording(path, found.header) if signals else nullcontext(read_recording(path, found.header)) as recording:
            examination = examine(recording, rules, root, found.scoring, called=called)
            _fill(finding, examination)
            require_channels(examination)
            if signals:
                _read_signals(finding, examination)
    except SleepFMError as error:
        finding.refused = str(error)
    return finding


def _fill(finding: Finding, examination: Examination) -> None:
    recording, scoring = examination.recording, examination.scoring
    finding.cohort = examination.cohort.name
    finding.record = examination.identity.record
    finding.subject, finding.visit = examination.identity.subject, examination.identity.visit
    finding.subject_read = examination.identity.read
    finding.hours = recording.duration / 3600
    finding.epochs = examination.n_epochs
    finding.signals = [{"label": s.label, "unit": s.unit, "rate": s.rate} for s in recording.signals]
    montage = examination.montage
    left = unmapped(recording, montage, examination.cohort.minimum_rate)
    finding.unmapped = [asdict(signal) for signal in left]
    finding.channels = {name: derivation.describe() for name, derivation in montage.channels.items()}
    finding.missing, finding.ambiguous = montage.missing, montage.ambiguous
    finding.gaps = len(recording.gaps)
    finding.warnings = list(recording.warnings)
    finding.scoring_refused = examination.scoring_refused
    if scoring is None and not examination.scoring_refused:
        finding.looked_for = looked_for(recording.path, examination.cohort)
    if scoring is not None:
        finding.scoring = scoring.source
        finding.scoring_file = str(examination.scoring_file or "")
        finding.scored_epochs = int((stage_labels(scoring, examination.n_epochs) >= 0).sum())
        finding.events = len(scoring.events)
        finding.unclear = dict(Counter(event.type for event in scoring.unclear))
        finding.ignored = dict(scoring.ignored)
        strange = (event for event in (*scoring.unclear, *scoring.others) if not is_beside_the_point(event.type))
        for event in sorted(strange, key=lambda event: event.onset):
            if event.type in finding.unclear or event.type in finding.ignored:
                finding.places.setdefault(event.type, event.onset)
        finding.warnings += scoring.warnings
    if recording.duration % EPOCH_SECONDS > 1.0:
        finding.warnings.append(f"the last {recording.duration % EPOCH_SECONDS:.1f} s are less than an epoch; cut")


def _read_signals(finding: Finding, examination: Examination) -> None:
    """What the signals tell: polarity, epochs that cannot be used, and channels without any that can."""
    description = describe(examination)
    for _ in make_channels(examination, description):
        pass
    for name in list(finding.channels):
        if name in description.quality:
            told = description.provenance["channels"][name]
            finding.channels[name] |= {key: told[key] for key in ("polarity", "epochs_flagged", "epochs_unusable")}
            finding.sample_digests += told.get("sample_digests", [])
        else:
            finding.missing[name] = f"{finding.channels.pop(name)['signal']!r} is {description.provenance['missing'][name]}"
    if not finding.channels:
        raise SignalError(f"{finding.path}: no usable signal in any channel")
