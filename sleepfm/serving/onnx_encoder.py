"""An encoder as an ONNX file, which ONNX Runtime opens without torch and without this project."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sleepfm.constants import EPOCH_SAMPLES, RATE_HZ
from sleepfm.errors import ModelError
from sleepfm.extras import require

SIGNALS, PRESENT, EMBEDDING = "signals", "present", "embedding"
# What the two may differ by, relative to the largest number of an embedding: sums in another order, in fp32.
TOLERANCE = 1e-4
_EPOCHS = 3
# What the exporter says on its own account and nobody here can act on: the beginnings of its warnings, and of a line of its log.
_ITS_WARNINGS = (r"`isinstance\(treespec, LeafSpec\)` is deprecated", r"# The axis name: batch will not be used")
_ITS_LOG, _ITS_LINE = "torch.onnx._internal.exporter._registration", "torchvision is not installed"


class _Encode(nn.Module):
    """``encode`` as a forward pass."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, signals: Tensor, present: Tensor) -> Tensor:
        embedding: Tensor = self.encoder.encode(signals, present)
        return embedding


def write_onnx(encoder: Any, path: Path) -> float:
    """Write ``encoder`` to ``path``; the largest relative difference from it on noise, in which channels are absent.

    Inputs are ``signals`` float [B, C, 3000], 30 s at 100 Hz of every channel, and ``present`` bool [B, C]; the output is
    ``embedding`` float [B, D]. ``channels`` in the file's metadata are the names of the C channels.

    Raises:
        DependencyError: the extra ``onnx`` is not installed.
        ModelError: the encoder cannot be written so, or ONNX Runtime gives other numbers.
    """
    require("onnx", "onnxscript", "onnxruntime")
    module, channels = _Encode(encoder).eval(), tuple(encoder.channels)
    signals, present = _noise(_EPOCHS, len(channels))
    batch = torch.export.Dim("batch", min=1, max=65536)
    try:
        with torch.inference_mode(False), torch.no_grad(), _without_its_noise():
            program = torch.onnx.export(
                module,
                (signals, present),
                dynamo=True,
                input_names=[SIGNALS, PRESENT],
                output_names=[EMBEDDING],
                dynamic_shapes=({0: batch}, {0: batch}),
                verbose=False,
            )
        assert program is not None
        program.model.metadata_props.update(
            channels=json.dumps(list(channels)),
            rate_hz=str(RATE_HZ),
            input="filtered and robust-scaled as sleepfm.signals.prepare does",
        )
        program.save(path, external_data=False)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{path.name}: this encoder cannot be written as ONNX ({reason})") from error
    return _check(module, path, len(channels))


@contextmanager
def _without_its_noise() -> Iterator[None]:
    """Within the block the exporter is silent about its own library; every other warning is shown."""

    def is_of_use(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_ITS_LINE)

    log = logging.getLogger(_ITS_LOG)
    log.addFilter(is_of_use)
    try:
        with warnings.catch_warnings():
            for message in _ITS_WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        log.removeFilter(is_of_use)


def _noise(epochs: int, channels: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    present = torch.ones(epochs, channels, dtype=torch.bool)
    # Every second epoch lacks its last channels, but never all.
    present[1::2, max(1, channels // 2) :] = False
    return torch.randn(epochs, channels, EPOCH_SAMPLES, generator=generator), present


def _check(module: nn.Module, path: Path, channels: int) -> float:
    """The largest relative difference, of another number of epochs than the file was made with."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for epochs in (1, _EPOCHS + 2):
        signals, present = _noise(epochs, channels)
        with torch.inference_mode():
            expected = module(signals, present).numpy()
        try:
            (found,) = session.run([EMBEDDING], {SIGNALS: signals.numpy(), PRESENT: present.numpy()})
        except Exception as error:  # the library's own types, which have no base in common
            raise ModelError(
                f"{path.name}: ONNX Runtime cannot run this encoder ({' '.join(str(error).split())[:300]})"
            ) from error
        worst = max(worst, float(np.abs(found - expected).max() / np.abs(expected).max()))
    if not worst <= TOLERANCE:
        raise ModelError(f"{path.name}: ONNX Runtime's embeddings differ from torch's by {worst:.1e}, relative to the largest")
    return worst
