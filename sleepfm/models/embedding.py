"""What every model does: epochs in, an embedding of each out."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from sleepfm.errors import ModelError
from sleepfm.models.inputs import FloatArray, stack_channels

if TYPE_CHECKING:
    import mne

    from sleepfm.signals.recording import Recording

    Embeddable: TypeAlias = Mapping[str, FloatArray] | str | os.PathLike[str] | Recording | mne.io.BaseRaw


class EmbeddingModel(nn.Module, ABC):
    """A model that embeds epochs of 30 s: what :func:`sleepfm.load` gives."""

    if TYPE_CHECKING:

        @property
        def channels(self) -> tuple[str, ...]:
            """Canonical channels that the model can use; any of them are enough."""

    @abstractmethod
    def embed(self, signals: Embeddable, cohort: str = "auto") -> Tensor:
        """One embedding for each epoch, ``[B, D]``, without gradient.

        Example:
            >>> import sleepfm, torch
            >>> model = sleepfm.load("encoder")
            >>> model.embed("patient.edf").shape  # 30 epochs of 30 s
            torch.Size([30, 128])
            >>> model.embed({"EEG_C4": torch.randn(2, 3000)}).shape
            torch.Size([2, 128])

        Args:
            signals: ``{channel: [B, 3000]}``, NumPy arrays or tensors of any float type, of any of the model's channels. These
                are epochs of 30 s at 100 Hz, filtered and robust-scaled as :func:`sleepfm.signals.prepare.prepare` does it. Or a
                recording: the path of an EDF or BDF file, what :func:`sleepfm.read_recording` gave, or an ``mne`` Raw. It is
                prepared in this way, and epochs in which the model can use no channel give nan.
            cohort: rules for a recording, as for :func:`sleepfm.score`.

        Raises:
            ModelError: ``signals`` has an unknown channel or none, another shape, no floats, or values that are not finite.
            RecordingError, MontageError, SignalError: it is neither, or the recording cannot be used.
        """


class Encoder(EmbeddingModel):
    """A model that makes embeddings of signals itself."""

    @abstractmethod
    def encode(self, signals: Tensor, present: Tensor, channels: Sequence[str] | None = None) -> Tensor:
        """Signals ``[B, C, 3000]`` and presence ``[B, C]`` of ``channels``, all by default, to embeddings ``[B, D]``."""

    @torch.no_grad()
    def embed(self, signals: Embeddable, cohort: str = "auto") -> Tensor:
        """See :meth:`EmbeddingModel.embed`."""
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


class BuiltOnEncoder(EmbeddingModel):
    """A model on an ``encoder``, which embeds as that does."""

    encoder: Any

    def embed(self, signals: Embeddable, cohort: str = "auto") -> Tensor:
        """The encoder's embedding ``[B, D]`` of each epoch, see :meth:`EmbeddingModel.embed`."""
        found: Tensor = self.encoder.embed(signals, cohort)
        return found
