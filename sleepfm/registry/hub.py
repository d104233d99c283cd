"""The layout in which models lie on hubs: ``model.safetensors``, ``config.json`` and a card called ``README.md``.

``config.json`` says what the package's ``config.yaml`` does of model, weights and use, and leaves out what is of the machine that
trained it: paths, addresses and settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from sleepfm.errors import RegistryError
from sleepfm.files import sha256_file, write_atomic, write_json
from sleepfm.registry.package import CARD, CONFIG, WEIGHTS, build_module
from sleepfm.signals.files import is_path
from sleepfm.version import __version__

if TYPE_CHECKING:
    from sleepfm.models.embedding import EmbeddingModel

HUB_CONFIG, HUB_CARD = "config.json", "README.md"
_KEPT = ("model", "weights", "usage", "channels")
_KEPT_OF_TRAINING = ("stage", "steps", "step", "metrics", "dataset_digest", "parents")
_FRONT = {"library_name": "sleepfm", "license": "apache-2.0", "tags": ["sleep", "polysomnography", "eeg", "sleep-staging"]}


def write_hub_files(folder: Path, config: Mapping[str, Any]) -> None:
    """Write ``config.json`` and ``README.md`` beside the package in ``folder``, whose ``config.yaml`` is ``config``.

    Raises:
        StorageError: they cannot be written.
    """
    content: dict[str, Any] = {"library_name": "sleepfm", "sleepfm": __version__, "model_type": config["model"]["kind"]}
    content |= {key: config[key] for key in _KEPT if key in config}
    training = config.get("training") or {}
    if training:
        content["training"] = {key: training[key] for key in _KEPT_OF_TRAINING if key in training}
    write_json(folder / HUB_CONFIG, content)
    card = (folder / CARD).read_text(encoding="utf-8")
    write_atomic(folder / HUB_CARD, f"---\n{yaml.safe_dump(_FRONT, sort_keys=False)}---\n{card}")


def from_pretrained(folder: str | Path) -> EmbeddingModel:
    """The model in eval mode of a folder in a hub's layout, with its weights' digest checked; nothing is unpickled.

    It is what :func:`sleepfm.load` gives for the package: a downstream one carries its ``usage``.

    Example:
        >>> model = from_pretrained("downloaded")
        >>> model.embed("patient.edf").shape  # 30 epochs of 30 s
        torch.Size([30, 128])

    Raises:
        RegistryError: no such folder, not in this layout, or weights that have changed.
        ModelError: weights or a usage that do not fit the model.
        ConfigError: a model of a kind, or with keys, that this version does not know.
    """
    from sleepfm.models.build import build_model

    if not is_path(folder):
        raise RegistryError(f"folder: expected the path of a folder in the layout of a hub, found a {type(folder).__name__}")
    place = Path(folder)
    if not place.is_dir():
        raise RegistryError(
            f"{folder}: no such folder; of a model on a hub download {WEIGHTS} and {HUB_CONFIG} first (hf download NAME "
            "--local-dir DIR), and name that folder"
        )
    content = _read(place)
    if not (place / WEIGHTS).is_file():
        raise RegistryError(f"{place / WEIGHTS}: missing; the model is incomplete")
    stated, found = str(content["weights"]["sha256"]), sha256_file(place / WEIGHTS)
    if found != stated:
        raise RegistryError(
            f"{place / WEIGHTS}: SHA-256 is {found[:12]}, but {HUB_CONFIG} states {stated[:12]}; the file has changed: fetch it "
            "again"
        )
    module = build_module(place, {key: content[key] for key in _KEPT if key in content}, build_model, HUB_CONFIG)
    return cast("EmbeddingModel", module)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / HUB_CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RegistryError(
            f"{folder}: no {HUB_CONFIG} ({error.strerror}), so it is not a model in the layout of a hub; sleepfm.load opens a "
            "package "
            f"({CONFIG})"
        ) from error
    except ValueError as error:
        raise RegistryError(f"{path}: not valid JSON; the file is damaged") from error
    known = isinstance(content, dict) and isinstance(content.get("model"), dict) and isinstance(content.get("weights"), dict)
    if not known or "sha256" not in content["weights"]:
        raise RegistryError(f"{path}: no keys 'model' and 'weights.sha256'; not a model of sleepfm")
    return dict(content)
