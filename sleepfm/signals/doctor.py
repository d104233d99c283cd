"""What is in a folder of recordings, before anything is built: found, mapped, ambiguous, missing, refused and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.errors import SignalError, SleepFMError
from sleepfm.signals.cohorts.cohort import Cohort
from sleepfm.signals.cohorts.identity import check_identity
from sleepfm.signals.examine import Examination, discover, examine, require_channels
from sleepfm.signals.files import is_folder
from sleepfm.signals.prepare import describe, make_channels
from sleepfm.signals.recording import read_recording
from sleepfm.signals.scorings.labels import stage_labels
from sleepfm.signals.scorings.text_counts import TextCounts


@dataclass
class Finding:
    """What the doctor says of one recording; ``refused`` is why it would be quarantined, or empty.

    ``scoring_refused`` is why its scoring would not be used, ``unclear`` and ``ignored`` are texts of the scoring as in
    :class:`sleepfm.signals.scorings.text_counts.TextCounts`.
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
    channels: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    ambiguous: dict[str, str] = field(default_factory=dict)
    gaps: int = 0
    scoring: str = ""
    scored_epochs: int = 0
    events: int = 0
    scoring_refused: str = ""
    unclear: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

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


def examine_folder(root: Path, cohort: Cohort | None) -> Iterator[Finding]:
    """One :class:`Finding` a recording below ``root``, in order.

    Headers, scorings and the samples of all channels are read.

    Raises:
        RecordingError: no such folder, or no recording in it.
        ConfigError: the cohort's identity pattern fits no recording.
    """
    recordings = discover(root, cohort)
    check_identity(recordings, cohort)
    for path, header in recordings.items():
        finding = Finding(str(path))
        try:
            examination = examine(read_recording(path, header), cohort, root if is_folder(root) else None)
            _fill(finding, examination)
            require_channels(examination)
            _read_signals(finding, examination)
        except SleepFMError as error:
            finding.refused = str(error)
        yield finding


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
    finding.channels = {name: derivation.describe() for name, derivation in montage.channels.items()}
    finding.missing, finding.ambiguous = montage.missing, montage.ambiguous
    finding.gaps = len(recording.gaps)
    finding.warnings = list(recording.warnings)
    finding.scoring_refused = examination.scoring_refused
    if scoring is not None:
        finding.scoring = scoring.source
        finding.scored_epochs = int((stage_labels(scoring, examination.n_epochs) >= 0).sum())
        finding.events = len(scoring.events)
        finding.unclear = dict(Counter(event.type for event in scoring.unclear))
        finding.ignored = dict(scoring.ignored)
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
        else:
            finding.missing[name] = f"{finding.channels.pop(name)['signal']!r} is {description.provenance['missing'][name]}"
    if not finding.channels:
        raise SignalError(f"{finding.path}: no usable signal in any channel")
