"""A registered model in a folder that opens without a registry: here, by MLflow, in a hub's layout, and its encoder by ONNX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sleepfm.errors import DependencyError, ModelError
from sleepfm.files import make_folder
from sleepfm.output import Origin, whole_folder
from sleepfm.registry.hub import write_hub_files
from sleepfm.registry.mlflow_model import write_mlflow_files
from sleepfm.registry.package import CARD, CONFIG, WEIGHTS, copy_file, is_scorer, verify
from sleepfm.registry.registry import Resolved, load_package, resolve
from sleepfm.registry.scorer_version import parts_of

KIND = "exported model"
ONNX = "encoder.onnx"


def export_model(address: str, folder: Path, store: str | None, onnx: bool, say: Callable[[str], None]) -> Resolved:
    """Write the model at ``address`` to ``folder``; what it is.

    The package's files are copied as they are. A scorer holds the packages of its tasks in folders of their names. With ``onnx``
    the encoder of any other model is written as well, if the libraries are there; ``say`` hears of it.

    Raises:
        RegistryError: nothing registered there, or bytes that have changed.
        StorageError: ``folder`` holds something else, or cannot be written.
        ModelError: the encoder cannot be written as ONNX.
    """
    found = resolve(address, store)
    config = _verified(found)
    source = Origin(KIND, found.tags.get("sha256.config", "") or str(config.get("weights")), found.label)
    with whole_folder(folder, source) as unfinished:
        _copy(found, unfinished)
        write_mlflow_files(unfinished, config)
        if is_scorer(config):
            for task, part in parts_of(config, str(found.path / CONFIG)).items():
                inside = found.path / task
                of_task = resolve(part.address, store) if not inside.is_dir() else Resolved(part.address, inside, part.name)
                verify(of_task.path, part.label, part.digests)
                make_folder(unfinished / task)
                _copy(of_task, unfinished / task)
        else:
            write_hub_files(unfinished, config)
            if onnx:
                say(_write_onnx(found, unfinished / ONNX))
    return found


def _verified(found: Resolved) -> dict[str, Any]:
    return verify(found.path, found.label, found.tags if found.name else None)


def _copy(found: Resolved, folder: Path) -> None:
    """The package's own files, and no others that lie beside them."""
    for name in (WEIGHTS, CONFIG, CARD):
        if (found.path / name).is_file():
            copy_file(found.path / name, folder / name)


def _write_onnx(found: Resolved, path: Path) -> str:
    from sleepfm.models.downstream import Downstream
    from sleepfm.models.masked_context import MaskedContext
    from sleepfm.serving.onnx_encoder import write_onnx

    module = load_package(found).module
    encoder: Any = module.encoder if isinstance(module, (Downstream, MaskedContext)) else module
    try:
        difference = write_onnx(encoder, path)
    except DependencyError as error:
        return f"{ONNX} is left out: {error}"
    except ModelError as error:
        raise ModelError(f"{error}; --no-onnx exports the model without it") from error
    return f"{ONNX}: embeddings within {difference:.1e} of torch's, relative to the largest"
