"""What every model does: epochs in, an embedding of each out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sleepfm.errors import ModelError
from sleepfm.models.inputs import FloatArray, stack_channels

if TYPE_CHECKING:
    import mne

    from sleepfm.signals.recording import Recording


class EmbeddingModel(nn.Module):
    """A model that embeds epochs of 30 s: what :func:`sleepfm.load` gives.

    Models that are built on an encoder embed as it does. An encoder has ``channels``, the canonical channels that it can use, and
    ``encode(signals [B, C, 3000], present [B, C], channels) -> [B, D]``.
    """

    if TYPE_CHECKING:

        @property
        def channels(self) -> tuple[str, ...]:
            """Canonical channels that the model can use; any of them are enough."""

    def encode(self, signals: Tensor, present: Tensor, channels: Any = None) -> Tensor:
        """Signals ``[B, C, 3000]`` and presence ``[B, C]`` of ``channels``, all by default, to embeddings ``[B, D]``."""
        raise NotImplementedError

    @torch.no_grad()
    def embed(
        self, signals: Mapping[str, FloatArray] | str | os.PathLike[str] | Recording | mne.io.BaseRaw, cohort: str = "auto"
    ) -> Tensor:
        """One embedding for each epoch, ``[B, D]``, without gradient.

        Args:
            signals: ``{channel: [B, 3000]}``, NumPy arrays or tensors of any float type, of any of the model's channels. These
                are epochs of 30 s at 100 Hz, filtered and robust-scaled as :func:`sleepfm.signals.prepare.prepare` does it. Or a
                recording: the path of an EDF or BDF file, what :func:`sleepfm.read_recording` gave, or an ``mne`` Raw. It is
                prepared in this way, and epochs in which the model can use no channel give nan.
            cohort: rules for a recording, as for :func:`sleepfm.score`.

        Raises:
            ModelError: ``signals`` is neither, or has an unknown channel, another shape, no floats, or values that are not
                finite.
            RecordingError, MontageError, SignalError: the recording cannot be used.
        """
        if isinstance(signals, Mapping):
            return self.encode(*stack_channels(signals, self.channels, next(self.parameters(), None)))
        if isinstance(signals, (Tensor, list, tuple)) or hasattr(signals, "__array__"):
            raise ModelError(
                f"signals: a {type(signals).__name__} without names of channels; give {{channel: [B, 3000]}} with any of "
                f"{', '.join(self.channels)}"
            )
        # By its name: models stand below inference, and only a recording needs it.
        found: Tensor = import_module("sleepfm.inference.recording_embeddings").embed_recording(self, signals, cohort)
        return found
