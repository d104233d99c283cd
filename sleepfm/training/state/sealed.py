"""Weights of a run in a file that says by itself whether it is as it was written.

Its safetensors header holds, beside what else is said of the weights, ``sha256``: over that, and over all tensors. So the file
and its digest are whole or absent together, and a second name or a copy of the file is checked as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sleepfm.config import digest
from sleepfm.errors import CheckpointError
from sleepfm.registry.package import in_fp32, save_tensors
from sleepfm.training.state.weights import tensors_digest

SEAL = "sha256"
# What headers of earlier versions hold, which had no digest.
_FORMER = frozenset({"format", "step", "segment", "figures"})


def save(path: Path, state: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write ``state`` to ``path`` atomically: floating-point tensors in fp32, with ``facts`` in the header.

    Raises:
        StorageError: it cannot be written; what was at ``path`` is still there.
    """
    tensors = in_fp32(state)
    header = {"format": "pt", **facts}
    save_tensors(path, tensors, header | {SEAL: _seal(header, _digest(sorted(tensors.items())))})


def read_header(path: Path) -> dict[str, str]:
    """What the header of ``path`` says; its tensors are not read.

    Raises:
        CheckpointError: there is no such file, or it is no safetensors file, or not one whole.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {_reason(path, error)}") from error


def check(path: Path) -> dict[str, str]:
    """Read all of ``path`` and return its header. A file of an earlier version, without a digest, is only read.

    Raises:
        CheckpointError: it is missing, cannot be read, or is not as it was written.
    """
    header = read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            found = _digest((name, file.get_tensor(name)) for name in sorted(file.keys()))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {_reason(path, error)}") from error
    facts = {key: value for key, value in header.items() if key != SEAL}
    whole = header[SEAL] == _seal(facts, found) if SEAL in header else facts.keys() <= _FORMER
    if not whole:
        raise CheckpointError(f"{path}: its bytes have changed, the SHA-256 differs")
    return header


def _digest(named: Iterable[tuple[str, Tensor]]) -> str:
    return tensors_digest((f"{name} {tensor.dtype} {list(tensor.shape)}", tensor) for name, tensor in named)


def _seal(header: Mapping[str, str], tensors: str) -> str:
    return digest({"header": dict(header), "tensors": tensors})


def _reason(path: Path, error: Exception) -> str:
    if not os.path.lexists(path):
        return "missing"
    return f"cannot be read as weights ({str(error) or repr(error)})"
