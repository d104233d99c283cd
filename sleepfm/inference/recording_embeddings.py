"""The embeddings of a recording, for who has a model and a recording in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sleepfm.errors import MontageError
from sleepfm.inference.embed import embed, prepared_epochs
from sleepfm.inference.scorer import check_recording, prepare_night
from sleepfm.signals.recording import Recording
from sleepfm.signals.scorings.finder import FoundScoring

if TYPE_CHECKING:
    import mne

_CHUNK = 64


def embed_recording(encoder: Any, recording: str | Path | Recording | mne.io.BaseRaw, cohort: str = "auto") -> Tensor:
    """Embeddings [E, D] of the epochs of ``recording``, which is the ``signals`` of a model's ``embed``; nan in those without a
    usable channel of ``encoder``.

    Args:
        encoder: as for :func:`sleepfm.inference.embed.embed`.
        recording, cohort: as for :func:`sleepfm.inference.scorer.score`.

    Raises:
        RecordingError, MontageError, SignalError: the recording cannot be used, or has none of the encoder's channels.
    """
    check_recording(recording, "signals", "{channel: [B, 3000]}, ")
    night = prepare_night(recording, cohort, FoundScoring(None))
    if not set(encoder.channels) & set(night.channels):
        raise MontageError(f"{night.path}: none of the channels of the model ({', '.join(encoder.channels)})")
    # A copy: what is made in inference mode can be no input of what learns.
    return embed(encoder, prepared_epochs(night, encoder.channels, _CHUNK)).clone()
