"""What a data set keeps of a recording's own words, by the section ``privacy`` of the configuration."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from shards.build_config import PrivacyConfig
from shards.scored_with import ScoredWith
from sleepfm.signals.prepare import RecordingDescription
from sleepfm.signals.scorings.free_text import events_without_texts, has_digest, provenance_without_texts, without_texts

_NAME_DIGITS = 16
_TIME = re.compile(r"\b\d{1,2}([:.])\d{2}\1\d{2}\b")
# A scoring may be named otherwise than its recording; messages begin with the name of the file that they are about.
_ENDINGS = r"\.(?:edf|bdf|xml|csv|tsv|txt|annot|eannot)\b"
_OTHER_NAME = re.compile(rf"^[^:]*?{_ENDINGS}(?=:)|[^\s:;,()]+{_ENDINGS}", re.IGNORECASE)


def token(path: str, privacy: PrivacyConfig) -> str:
    """What stands for the recording at ``path``, relative to the source, in all that is written."""
    if privacy.names == "keep":
        return path
    return hashlib.sha256(os.fsencode(f"{privacy.salt}\0") + os.fsencode(path)).hexdigest()[:_NAME_DIGITS]


def kept_scoring(scoring: ScoredWith, privacy: PrivacyConfig) -> ScoredWith:
    """A scoring file as it may be written."""
    return scoring._replace(name=token(scoring.name, privacy)) if scoring else None


def kept_message(message: str, path: str, privacy: PrivacyConfig) -> str:
    """A reason or a warning about the recording at ``path`` as it may be written."""
    if privacy.texts == "digest":
        message = without_texts(message, privacy.salt)
    if privacy.clock == "drop":
        message = _TIME.sub("hh:mm:ss", message)
    return _without_names(message, path, privacy) if privacy.names == "digest" else message


def kept_description(night: RecordingDescription, path: str, privacy: PrivacyConfig) -> RecordingDescription:
    """``night`` of the recording at ``path`` as it may be written."""
    provenance: dict[str, Any] = dict(night.provenance)
    if privacy.texts == "digest":
        provenance = provenance_without_texts(provenance, privacy.salt)
        night = replace(night, unclear=events_without_texts(night.unclear, privacy.salt))
    if privacy.clock == "drop":
        provenance["clock"] = None
    if privacy.names == "digest":
        provenance["file"] = token(path, privacy)
        night = replace(night, subject=token(night.subject, privacy))
        if provenance.get("scoring"):
            # It names a format and the file.
            provenance["scoring"] = {**provenance["scoring"], "source": "a file whose name is not kept"}
    for place in (provenance, provenance.get("scoring") or {}):
        for key in ("warnings", "misplaced", "missing", "scoring_refused"):
            if key in place:
                place[key] = _each(place[key], lambda message: kept_message(message, path, privacy))
    return replace(night, provenance=provenance)


def where_texts_are(messages: Iterable[str], source: str, cohort: str = "") -> str:
    """How to read what stands as digests in ``messages``; empty where nothing does.

    Args:
        source: as the command has it, or what stands for it.
        cohort: likewise, empty for the default.
    """
    if not any(map(has_digest, messages)):
        return ""
    command = " ".join(["sleepfm doctor", source, "--headers", *(["--cohort", cohort] if cohort else [])])
    return f"texts that are not standard are digests here (privacy.texts); `{command}` says the same of each recording in clear"


def _each(value: Any, change: Callable[[str], str]) -> Any:
    """``value``, a message or several, with each of them changed."""
    if isinstance(value, dict):
        return {key: change(message) for key, message in value.items()}
    return [change(message) for message in value] if isinstance(value, list) else change(value)


def _without_names(message: str, path: str, privacy: PrivacyConfig) -> str:
    """``message`` with the token in the place of every name of the file at ``path``, and without those of others."""
    names = "|".join(map(re.escape, (path, PurePosixPath(path).name, PurePosixPath(path).stem)))
    return _OTHER_NAME.sub("a file", re.sub(rf"(?<!\w)(?:{names})(?!\w)", token(path, privacy), message))
