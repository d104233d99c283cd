"""What is in a folder of recordings, before anything is built: found, mapped, ambiguous, missing, refused and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sleepfm.errors import SleepFMError
from sleepfm.signals.annotations import align, find_scoring, read_scoring
from sleepfm.signals.cohort import Cohort, recognise_cohort
from sleepfm.signals.montage import Montage, resolve
from sleepfm.signals.prepare import check_usable, discover
from sleepfm.signals.recording import Recording, read_recording


@dataclass
class Finding:
    """What the doctor says of one recording; ``refused`` is why it would be quarantined, or empty."""

    path: str
    refused: str = ""
    cohort: str = ""
    subject: str = ""
    hours: float = 0.0
    signals: list[dict[str, Any]] = field(default_factory=list)
    mapped: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    ambiguous: dict[str, str] = field(default_factory=dict)
    inverted: list[str] = field(default_factory=list)
    gaps: int = 0
    scoring: str = ""
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def examine(root: Path, cohort: Cohort | None) -> Iterator[Finding]:
    """One :class:`Finding` a recording below ``root``, in order; no signal is decoded.

    Raises:
        RecordingError: no such folder, or no recording in it.
    """
    for path in discover(root, cohort):
        finding = Finding(str(path))
        try:
            _examine(finding, path, root, cohort)
        except SleepFMError as error:
            finding.refused = str(error)
        yield finding


def _examine(finding: Finding, path: Path, root: Path, cohort: Cohort | None) -> None:
    recording = read_recording(path)
    cohort = cohort or recognise_cohort(recording)
    finding.cohort, finding.subject = cohort.name, cohort.identify(path)[0]
    finding.hours = recording.duration / 3600
    finding.gaps = len(recording.gaps)
    finding.warnings = list(recording.warnings)
    finding.signals = [{"label": s.label, "unit": s.unit, "rate": s.rate} for s in recording.signals]
    montage = resolve(recording, cohort)
    finding.mapped = {name: derivation.description for name, derivation in montage.channels.items()}
    finding.missing, finding.ambiguous = montage.missing, montage.ambiguous
    finding.inverted = _inverted(recording, montage)
    check_usable(recording, montage)
    scoring = find_scoring(path, root if root.is_dir() else path.parent, cohort)
    if scoring is not None:
        _, remarks = align(read_scoring(scoring), recording, cohort)
        finding.scoring = str(scoring)
        finding.warnings += remarks


def _inverted(recording: Recording, montage: Montage) -> list[str]:
    """Channels whose header runs its physical range downwards, which turns the signal over."""
    used = {name: recording.signals[derivation.signal] for name, derivation in montage.channels.items()}
    return [name for name, signal in used.items() if signal.physical_min > signal.physical_max]
