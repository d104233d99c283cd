"""A package: the folder that holds one trained model.

``model.safetensors`` (fp32), ``config.yaml`` (``model`` is what :func:`sleepfm.models.build_model` takes,
``weights.sha256`` is the digest of the weights) and ``MODEL_CARD.md``. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sleepfm.errors import ModelError, RegistryError, StorageError
from sleepfm.files import atomic_path, make_folder, sha256_file, write_atomic, writing

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
CARD = "MODEL_CARD.md"
# Of a package without weights, which names others (:mod:`sleepfm.registry.scorer_version`).
SCORER_KIND = "scorer"


def write_package(
    folder: str | Path,
    weights: nn.Module | Path,
    config: Mapping[str, Any],
    card: str,
    tags: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Write a package into ``folder`` and return ``tags`` with the digests a registry keeps.

    ``weights`` is a module, whose floating-point tensors are stored in fp32, or a file that :func:`save_weights` wrote, which is
    copied: bytes that change in one of the two are still whole in the other. ``config`` holds at least ``model``.

    Raises:
        StorageError: it cannot be written, or a file of one of these names is there already.
    """
    folder = Path(folder)
    make_folder(folder)
    for name in (WEIGHTS, CONFIG, CARD):
        if os.path.lexists(folder / name):
            raise StorageError(f"{folder / name}: exists and is not replaced; write the package to another folder")
    if isinstance(weights, Path):
        copy_file(weights, folder / WEIGHTS)
    else:
        save_weights(folder / WEIGHTS, weights.state_dict())
    digest = sha256_file(folder / WEIGHTS)
    content = dict(config) | {"weights": {"sha256": digest, "bytes": (folder / WEIGHTS).stat().st_size}}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_atomic(folder / CONFIG, text)
    write_atomic(folder / CARD, card)
    return dict(tags or {}) | {"sha256": digest, "sha256.config": sha256_file(folder / CONFIG)}


def link_or_copy(source: Path, target: Path) -> None:
    """Give the file ``source`` a second name, or a copy on file systems without hard links; ``target`` is not there yet."""
    try:
        os.link(source, target)
    except FileExistsError as error:
        raise StorageError(f"{target}: exists and is not replaced") from error
    except OSError:
        copy_file(source, target)


def copy_file(source: Path, target: Path) -> None:
    """Write the bytes of ``source`` to ``target``, which is not there yet. Raises :class:`StorageError`."""
    with writing(target), source.open("rb") as original, target.open("xb") as copy:
        shutil.copyfileobj(original, copy)


def save_weights(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write ``state`` to ``path`` atomically: floating-point tensors in fp32, tied ones once a name.

    Raises:
        StorageError: it cannot be written; what was at ``path`` is still there.
    """
    save_tensors(path, in_fp32(state), {"format": "pt", **(metadata or {})})


def in_fp32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors on the CPU, each with memory of its own, those of floating point in fp32."""
    import torch

    tensors = {}
    for name, value in state.items():
        kind = torch.float32 if value.is_floating_point() else value.dtype
        tensors[name] = value.detach().to("cpu", kind, copy=True).contiguous()
    return tensors


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write ``tensors`` to ``path`` atomically, as they are.

    Raises:
        StorageError: it cannot be written; what was at ``path`` is still there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    make_folder(path.parent)
    with atomic_path(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=dict(metadata))
        except SafetensorError as error:
            # The library's own type for what the system answered.
            raise OSError(str(error)) from error


def read_config(folder: Path) -> dict[str, Any]:
    """A package's ``config.yaml``.

    Raises:
        RegistryError: the folder is not a package.
    """
    try:
        content = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise RegistryError(f"{folder}: not a model folder, no {CONFIG} ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RegistryError(f"{folder / CONFIG}: not valid YAML; the package is damaged") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise RegistryError(f"{folder / CONFIG}: no section 'model'; not a model folder")
    if "sha256" not in content.get("weights", {}) and not is_scorer(content):
        raise RegistryError(f"{folder / CONFIG}: no keys 'model' and 'weights.sha256'; not a model folder")
    return content


def is_scorer(config: Mapping[str, Any]) -> bool:
    """Whether this is the ``config.yaml`` of a scorer, which names packages and has no weights."""
    return bool(config["model"].get("kind") == SCORER_KIND)


def verify(folder: Path, label: str, registered: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Check every digest of the package in ``folder`` and return its configuration.

    ``registered`` is the tags of its registered version; without it the package must be consistent in itself.

    Raises:
        RegistryError: naming the file whose bytes have changed.
    """
    config = read_config(folder)
    expected = {} if is_scorer(config) else {WEIGHTS: config["weights"]["sha256"]}
    if registered is not None:
        expected = {CONFIG: registered.get("sha256.config", "")} | dict.fromkeys(expected, registered.get("sha256", ""))
    for file, digest in expected.items():
        path = folder / file
        if not path.is_file():
            raise RegistryError(f"{path}: missing; the package of {label} is incomplete")
        found = sha256_file(path)
        if found != digest:
            raise RegistryError(
                f"{path}: SHA-256 is {found[:12]}, but {label} states {digest[:12] or 'none'}; "
                "the file has changed: restore it or train again"
            )
    return config


def build_module(
    folder: Path,
    config: Mapping[str, Any],
    builder: Callable[[dict[str, Any]], nn.Module],
    file: str = CONFIG,
    mapped: bool = False,
) -> nn.Module:
    """The module in eval mode of the package in ``folder``, whose ``config``, from ``file`` there, was verified; a downstream one
    says how it is used.

    With ``mapped`` no initial values are drawn, and the weights are those of the file as it is mapped into memory: nothing is
    copied. The file must not be written to while the module is in use.

    Raises:
        ModelError: weights or a usage that do not fit the model.
    """
    from sleepfm.models.downstream import Downstream
    from sleepfm.models.undrawn import Undrawn
    from sleepfm.models.usage import Usage

    with Undrawn() if mapped else nullcontext():
        module = builder(config["model"]).eval()
    load_weights(module, folder / WEIGHTS, mapped)
    if isinstance(module, Downstream):
        module.usage = Usage.from_package(config, module.config, str(folder / file))
    return module


def load_weights(module: nn.Module, path: Path, mapped: bool = False) -> dict[str, str]:
    """Load ``path`` into ``module`` strictly and return the file's metadata; ``mapped`` as in :func:`build_module`.

    Raises:
        ModelError: names or shapes do not fit the module.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    try:
        module.load_state_dict(state, assign=mapped)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{path}: does not fit its configuration ({reason})") from error
    return metadata
