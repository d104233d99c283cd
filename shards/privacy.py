"""What a data set keeps of a recording's own words, by the section ``privacy`` of the configuration."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from shards.build_config import PrivacyConfig
from sleepfm.signals.prepare import RecordingDescription
from sleepfm.signals.scorings.free_text import events_without_texts, provenance_without_texts, without_texts

_NAME_DIGITS = 16


def token(path: str, privacy: PrivacyConfig) -> str:
    """What stands for the recording at ``path``, relative to the source, in all that is written."""
    if privacy.names == "keep":
        return path
    return hashlib.sha256(os.fsencode(f"{privacy.salt}\0") + os.fsencode(path)).hexdigest()[:_NAME_DIGITS]


def kept_message(message: str, path: str, privacy: PrivacyConfig) -> str:
    """A reason or a warning about the recording at ``path`` as it may be written."""
    if privacy.texts == "digest":
        message = without_texts(message, privacy.salt)
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
        provenance = _without_names({**provenance, "file": token(path, privacy)}, path, privacy)
        if provenance.get("scoring"):
            # The name of a format and that of the file.
            provenance["scoring"]["source"] = "a file whose name is not kept"
        night = replace(night, subject=token(night.subject, privacy))
    return replace(night, provenance=provenance)


def _without_names(value: Any, path: str, privacy: PrivacyConfig) -> Any:
    """``value`` (plain JSON types) with the token in the place of every name of the file at ``path``."""
    if isinstance(value, dict):
        return {key: _without_names(item, path, privacy) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_names(item, path, privacy) for item in value]
    if isinstance(value, str):
        for name in (path, PurePosixPath(path).name, PurePosixPath(path).stem):
            value = value.replace(name, token(path, privacy))
    return value
