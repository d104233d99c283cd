"""Whose a recording is: record, subject and visit, from its file name by the cohort's rule."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sleepfm.signals.cohorts.cohort import Cohort

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Identity:
    """``record`` names the recording, ``subject`` the person (the same for all visits), ``visit`` the night."""

    record: str
    subject: str
    visit: str


def identify(path: Path, cohort: Cohort) -> Identity:
    """Identity of the recording at ``path``, in characters that are safe in file names and archive members."""
    rule = cohort.identity
    match = re.search(rule.pattern, path.name) if rule.pattern else None
    groups = match.groupdict() if match else {}
    stem = _safe(path.stem)
    return Identity(
        record=stem,
        subject=rule.prefix + _safe(groups.get("subject") or stem),
        visit=_safe(groups.get("visit") or "1"),
    )


def _safe(text: str) -> str:
    return _UNSAFE.sub("-", text).strip("-") or "record"
