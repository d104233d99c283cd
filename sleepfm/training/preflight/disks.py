"""Faults of disks: room for what a job writes, on each node, in its output and beside it.

Beside ``train.output`` a node keeps what passed through a frozen encoder (``cache``), the packages of registered models and the
shards of a data set behind a URL (``SLEEPFM_CACHE``), and temporary files (``TMPDIR``). Where the size of these is not known
beforehand, the folder must be writable and not full.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleepfm.config import validate
from sleepfm.data.cache import FOLDER_VARIABLE, cache_folder
from sleepfm.data.remote import is_url
from sleepfm.errors import EmptySplitError, SleepFMError, StorageError
from sleepfm.models.build import KINDS
from sleepfm.models.neuronet import NeuroNetConfig
from sleepfm.models.synthsleepnet import SynthSleepNetConfig
from sleepfm.registry.package import read_config
from sleepfm.registry.package_cache import DIGITS, FOLDER
from sleepfm.registry.registry import Entry, fetch_config, look_up
from sleepfm.training.preflight.faults import Fault
from sleepfm.training.run_config import RunConfig

# Free space below which a disk counts as full.
_LEAST = 100_000_000
_FLOAT = 4
# The beginning of the digest of an encoder, and of a data set, in names of folders (see ``sleepfm.stages.embedding_cache``).
_DIGITS = 16


@dataclass(frozen=True)
class Place:
    """A folder that a job writes to.

    Attributes:
        name: of the folder, with what states it.
        what: is written there, in words.
        needed: bytes that must be free for it; None where that is not known.
        advice: what to do instead of making room.
    """

    name: str
    folder: Path
    what: str
    needed: int | None
    advice: str


def room(place: Place) -> list[Fault]:
    """The file system of ``place`` can be written to, and holds what is needed. A folder that is not there yet will be on that of
    the nearest folder above it.
    """
    if place.needed == 0:
        return []
    folder = place.folder.absolute()
    while not folder.exists():
        folder = folder.parent
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StorageError(f"{folder}: cannot be read ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        return [Fault(f"{place.name}: cannot write {place.what} ({folder} is not writable for this user); {place.advice}", False)]
    needed = _LEAST if place.needed is None else place.needed
    if needed <= free:
        return []
    least = "at least " if place.needed is None else ""
    return [
        Fault(
            f"{place.name}: {place.what} take {least}{math.ceil(needed / 1e7) / 100:.2f} GB, but only {free // 1e7 / 100:.2f} GB "
            f"are free; make room, {place.advice}",
            False,
        )
    ]


def room_for_output(output: Path, needed: int) -> list[Fault]:
    """``output`` has room for ``needed`` bytes; what the run has there already is part of them."""
    advice = "lower train.keep, or give another train.output"
    missing = max(0, needed - _bytes_in(output))
    return room(Place(f"train.output={output}", output, "checkpoints and packages", missing, advice))


@dataclass(frozen=True)
class Expected:
    """What is written on every node that has none of it yet, in bytes.

    Attributes:
        packages: of registered models, by the digest of their weights; None where the size is not known.
        embeddings: in ``cache``, by how the names of their folders begin; None where that is not known.
    """

    packages: Mapping[str, int | None]
    embeddings: Mapping[str, int] | None


def expected(config: RunConfig, started_from: Mapping[str, str], store: str) -> Expected:
    """What rank 0 finds out of it, without fetching any weights; what is missing for that is another's fault to say.

    Args:
        config: of the job.
        started_from: the versions that a run which goes on started from, by address.
        store: the registry.
    """
    entries: dict[str, Entry] = {}
    for key, address in config.parents().items():
        with suppress(SleepFMError):
            entries[key] = look_up(started_from.get(address, address), store)
    packages = {}
    for entry in entries.values():
        # What lies in a folder is read there.
        if entry.name and not entry.source.startswith(("/", "file:")):
            size = entry.tags.get("parameters", "")
            packages[entry.tags.get("sha256", "")] = _FLOAT * int(size) if size.isdigit() else None
    embeddings = None
    if "encoder" in entries and getattr(config, "cache", None):
        with suppress(SleepFMError):
            embeddings = _embeddings(config, entries["encoder"])
    return Expected(packages, embeddings)


def faults_of_disks(config: RunConfig, wanted: Expected) -> list[Fault]:
    """Folders of this node, beside ``train.output``, that do not have room for what is ``wanted`` there."""
    found: list[Fault] = []
    for places in (_temporary, lambda: _cached(config, wanted), lambda: _fetched(config, wanted)):
        try:
            for place in places():
                found += room(place)
        except StorageError as error:
            found.append(Fault.of(error))
    return found


def _temporary() -> list[Place]:
    try:
        folder = tempfile.gettempdir()
    except OSError as error:
        raise StorageError(f"environment variable TMPDIR: {error.strerror}; set it to a folder with free space") from error
    return [Place(_named("TMPDIR", folder), Path(folder), "temporary files", None, "or set TMPDIR to another folder")]


def _cached(config: RunConfig, wanted: Expected) -> list[Place]:
    cache = getattr(config, "cache", None)
    if not cache or not getattr(config, "encoder", ""):
        return []
    needed: int | None = None
    if wanted.embeddings is not None:
        # Of the same encoder and data set, by whatever code: too much is taken for held rather than too little.
        held = {prefix: sum(map(_bytes_in, Path(cache).glob(f"{prefix}*"))) for prefix in wanted.embeddings}
        needed = sum(max(0, size - held[prefix]) for prefix, size in wanted.embeddings.items())
    what = "embeddings" if getattr(config, "events", None) is None else "frames of the encoder"
    return [Place(f"cache={cache}", Path(cache), what, needed, "or give another cache")]


def _fetched(config: RunConfig, wanted: Expected) -> list[Place]:
    folder, advice = cache_folder(), f"or set {FOLDER_VARIABLE} to another folder"
    name = _named(FOLDER_VARIABLE, str(folder))
    places = []
    absent = [size for digest, size in wanted.packages.items() if not _is_package_held(folder, digest)]
    if absent:
        known = [size for size in absent if size is not None]
        needed = sum(known) if len(known) == len(absent) else None
        places.append(Place(name, folder / FOLDER, "models of the registry", needed, advice))
    data = getattr(config, "data", None)
    if data is not None and any(is_url(plan.path) for plan in data.plans()):
        places.append(Place(name, folder, "shards", None, advice))
    return places


def _named(variable: str, folder: str) -> str:
    """``folder`` with the variable that states it; without, where it is the default one."""
    return f"environment variable {variable}={folder}" if os.environ.get(variable) == folder else folder


def _is_package_held(folder: Path, digest: str) -> bool:
    return any((folder / FOLDER).glob(f"{digest[:DIGITS]}-*")) if digest else False


def _bytes_in(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    except OSError as error:
        raise StorageError(f"{folder}: cannot be read ({error.strerror})") from error


def _embeddings(config: Any, encoder: Entry) -> dict[str, int] | None:
    """Bytes that ``cache`` takes when all splits that the job reads are there, by the beginning of the name of each data set's
    folder; None for a job of which that is not known.
    """
    shares = _shares(config.data)
    content = fetch_config(encoder) if encoder.name else read_config(Path(encoder.source))
    plan = _encoder_of(content["model"], encoder.uri)
    if not shares or plan is None:
        return None
    width = plan.encoder.dim
    events = getattr(config, "events", None)
    if events is not None:
        frames = plan.frames if isinstance(plan, NeuroNetConfig) else plan.encoder_config(plan.modalities[0]).frames
        width = frames * (width + 2 * len(events.amplitudes))
    found = {}
    for source in config.data.open().sources:
        epochs = 0.0
        for split, share in shares.items():
            with suppress(EmptySplitError):
                rows = source.dataset.select(split, plan.channels)
                epochs += share * int(source.dataset.n_epochs[rows].sum())
        prefix = f"{content['weights']['sha256'][:_DIGITS]}-{source.dataset.digest[:_DIGITS]}-"
        found[prefix] = round(epochs) * width * _FLOAT
    return found


def _shares(data: Any) -> dict[str, float]:
    """How much of each split is embedded; nothing where the recordings are chosen otherwise."""
    if hasattr(data, "split"):
        return {data.split: 1.0, "val": 1.0}
    if hasattr(data, "label_draw"):
        # Of people who are drawn, their recordings; a share of the epochs takes some of every recording.
        drawn = data.label_fraction if data.label_draw == "people" else 1.0
        return {"label": drawn, "val": drawn, "test": 1.0}
    return {}


def _encoder_of(model: dict[str, Any], origin: str) -> NeuroNetConfig | SynthSleepNetConfig | None:
    """The configuration of the encoder in a model, which may be a pretrained context around it."""
    kind = KINDS.get(model.get("kind", ""))
    if kind is not None and kind.on_encoder:
        return _encoder_of(model["encoder"], origin)
    if kind is None:
        return None
    plan = validate(kind.config, model, origin)
    return plan if isinstance(plan, NeuroNetConfig | SynthSleepNetConfig) else None
