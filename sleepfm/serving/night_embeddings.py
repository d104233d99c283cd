"""Embeddings of the epochs of nights, by an encoder that MLflow loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from sleepfm.errors import MontageError
from sleepfm.serving.night_model import NightModel, read_night
from sleepfm.signals.scorings.free_text import without_texts

CHUNK = 64


class NightEmbeddings(NightModel):
    """``embedding`` is [E][D], null in epochs without a usable channel of the model."""

    def load(self, folder: Path) -> Callable[[str, str], dict[str, Any]]:
        from sleepfm.models.device import choose_device
        from sleepfm.models.masked_context import MaskedContext
        from sleepfm.registry.registry import load_package

        module = load_package(folder).module.to(choose_device("auto"))
        encoder: Any = module.encoder if isinstance(module, MaskedContext) else module

        def row(path: str, cohort: str) -> dict[str, Any]:
            facts, found = embedded_night(encoder, path, cohort)
            usable = found.isfinite().all(dim=1).tolist()
            return facts | {"embedding": [epoch if ok else None for epoch, ok in zip(found.tolist(), usable, strict=True)]}

        return row


def embedded_night(encoder: Any, path: str, cohort: str) -> tuple[dict[str, Any], Tensor]:
    """What a row says of the recording at ``path``, and the embeddings [E, D] of its epochs; nan in those without a usable
    channel of ``encoder``.

    Raises:
        MontageError: the recording has none of its channels.
        RecordingError, SignalError, ConfigError: see :func:`sleepfm.serving.night_model.read_night`.
    """
    from sleepfm.inference.embed import embed, prepared_epochs

    night, start = read_night(path, cohort)
    channels = [name for name in encoder.channels if name in night.channels]
    if not channels:
        raise MontageError(f"{night.path}: none of the channels of the model ({', '.join(encoder.channels)})")
    warnings = [without_texts(f"recording: {text}") for text in night.provenance.get("warnings", ())]
    facts = {"record": night.record, "start": start, "channels": channels, "warnings": warnings}
    return facts, embed(encoder, prepared_epochs(night, encoder.channels, CHUNK))
