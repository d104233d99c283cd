"""Splits by subject: all visits of a person together, whoever else is in the folder."""

from __future__ import annotations

import hashlib

from shards.build_config import SplitConfig
from sleepfm.constants import SPLITS


def split_of(subject: str, config: SplitConfig) -> str:
    """The split of a subject, from its key alone: no order and no other subject plays a part."""
    value = hashlib.sha256(f"{config.salt}:{subject}".encode()).digest()
    place = int.from_bytes(value[:8], "big") / 2**64
    upper = 0.0
    for name in SPLITS:
        upper += getattr(config, name)
        if place < upper:
            return name
    # Rounding of the sum can leave the last edge a hair below 1.
    return next(name for name in reversed(SPLITS) if getattr(config, name) > 0)
