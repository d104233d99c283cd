"""The list of mutants that no test can tell from the original, each with its reason."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from sampling import Mutant
from trees import LIST


@lru_cache(1)
def listed(root: Path) -> list[dict[str, Any]]:
    """Entries with ``function``, ``before`` and ``after`` (lines without indentation) and ``reason``; modules may be renamed."""
    return list(yaml.safe_load((root / LIST).read_text()) or [])


def reason_of(root: Path, mutant: Mutant) -> str:
    """Why ``mutant`` is equivalent; empty when it is not listed."""
    wanted = (mutant.function, mutant.before, mutant.after)
    return next((e["reason"] for e in listed(root) if (e["function"], e["before"], e["after"]) == wanted), "")
