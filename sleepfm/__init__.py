"""SleepFM: a foundation model for sleep and the system that trains it at scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sleepfm.version import __version__

if TYPE_CHECKING:
    from sleepfm.inference.scorer import score
    from sleepfm.registry.hub import from_pretrained
    from sleepfm.registry.registry import load
    from sleepfm.signals.recording import read_recording

__all__ = ["__version__", "from_pretrained", "load", "read_recording", "score"]

_HOME = {
    "from_pretrained": "sleepfm.registry.hub",
    "load": "sleepfm.registry.registry",
    "score": "sleepfm.inference.scorer",
    "read_recording": "sleepfm.signals.recording",
}


def __getattr__(name: str) -> Any:
    """Import the public functions on first use, so that reading an EDF does not import torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'sleepfm' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
