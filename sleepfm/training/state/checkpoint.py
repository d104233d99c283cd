"""Checkpoints on disk: which are whole, which one a run goes on from, and how they are published, replaced and removed.

``checkpoints/step-00000120/`` in a run's folder holds what :mod:`sleepfm.training.state.writer` wrote and ``complete.json``:
step, number of processes, ZeRO stage, digest of the model's parameters, size and SHA-256 of every file, a SHA-256 of all that.
``checkpoints/latest`` names the newest, for DeepSpeed's own tools. A folder that starts with a dot is unfinished and is never
read; ``damaged-step-...`` is what was found damaged, and stays until somebody removes it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sleepfm.config import digest
from sleepfm.errors import CheckpointError
from sleepfm.files import (
    make_folder,
    read_json,
    set_aside,
    sha256_file,
    sync_file,
    sync_folder,
    write_atomic,
    write_json,
    writing,
)
from sleepfm.output import not_matching, remove_empty, remove_matching
from sleepfm.registry.package import link_or_copy
from sleepfm.training.ranks.distributed import World, broadcast_json, gather_json, on_main

MARK = "complete.json"
LATEST = "latest"
_STEP = re.compile(r"step-([0-9]{8})")
_DAMAGED = re.compile(r"damaged-step-([0-9]{8})(?:-[0-9]+)?")
# Hidden folders that only this package makes.
_UNFINISHED = re.compile(r"\.step-[0-9]{8}\.tmp|\.universal-step-[0-9]{8}")
# DeepSpeed puts two scripts beside the checkpoints that it saves.
_OWN_FILES = rf"{LATEST}|\.{LATEST}\.[0-9a-f]{{12}}\.tmp|zero_to_(?:fp32|torch)\.py"


@dataclass(frozen=True)
class Written:
    """A file of a checkpoint as it was written."""

    bytes: int
    sha256: str

    @staticmethod
    def of(path: Path) -> Written:
        """Raises :class:`OSError`."""
        return Written(path.stat().st_size, sha256_file(path))


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint."""

    folder: Path
    step: int
    processes: int
    zero: int
    model: str = ""
    """Digest of the parameters' names and shapes; empty for one of an earlier version."""

    def fits(self, processes: int, zero: int) -> bool:
        """Whether ``processes`` at ZeRO stage ``zero`` load it as it is; without ZeRO every rank holds everything."""
        return zero == self.zero and (zero == 0 or processes == self.processes)


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` stands."""
    return root / f"step-{step:08d}"


def unfinished_of(root: Path, step: int) -> Path:
    """Where it is written."""
    return root / f".step-{step:08d}.tmp"


def model_digest(module: nn.Module) -> str:
    """SHA-256 over names, shapes and roles of the parameters, by which a checkpoint of another model is refused."""
    return digest([[name, list(p.shape), p.requires_grad] for name, p in module.named_parameters()])


def steps(root: Path) -> list[int]:
    """Steps of the published checkpoints in ``root``, the newest first; whether they are whole, :func:`choose` finds out."""
    names = (_STEP.fullmatch(path.name) for path in (root.iterdir() if root.is_dir() else ()) if _is_folder(path))
    return sorted((int(name[1]) for name in names if name), reverse=True)


def choose(root: Path, world: World) -> Saved | None:
    """The newest checkpoint in ``root`` that every rank finds whole, or None where there is none at all. Every rank calls this.

    Rank 0 says which one is tried; each rank sees to it that every file is there, and reads its share of them. One that is not
    whole is named, with the file and what is wrong, and set aside as ``damaged-step-...``; the one before is taken.

    Raises:
        CheckpointError: there are some, and none is whole.
        StorageError: a damaged one cannot be set aside.
    """
    damaged: dict[Path, str] = {}
    chosen: Saved | None = None
    for step in broadcast_json(world, steps(root) if world.is_main else None):
        folder = folder_of(root, step)
        mark, fault = broadcast_json(world, _mark_or_fault(folder) if world.is_main else None)
        faults = [fault] if fault else gather_json(world, _fault(folder, mark, world))
        if not any(faults):
            chosen = Saved(folder, mark["step"], mark["processes"], mark["zero"], mark.get("model", ""))
            break
        rank, reason = next((rank, reason) for rank, reason in enumerate(faults) if reason)
        damaged[folder] = reason if rank == 0 else f"{reason}, as rank {rank} finds"
    if damaged and chosen is None:
        found = "; ".join(damaged.values())
        raise CheckpointError(f"{root}: no complete checkpoint ({found}); restore one, or start over with --resume never")
    if chosen is not None and damaged:
        step = chosen.step
        on_main(world, lambda: _set_all_aside(damaged, step))
    return chosen


def _set_all_aside(damaged: Mapping[Path, str], step: int) -> None:
    for folder, reason in damaged.items():
        aside = set_aside(folder)
        print(
            f"warning: {folder}: damaged checkpoint ({reason}); set aside as {aside.name}, continuing from step {step}",
            file=sys.stderr,
            flush=True,
        )


def _mark_or_fault(folder: Path) -> tuple[dict[str, Any], str]:
    try:
        return read_mark(folder), ""
    except CheckpointError as error:
        return {}, str(error)


def read_mark(folder: Path) -> dict[str, Any]:
    """The mark of the checkpoint in ``folder``.

    Raises:
        CheckpointError: it is missing or not as it was written, or is another step's.
    """
    path = folder / MARK
    try:
        mark = read_json(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is damaged, no valid JSON") from error
    if mark is None:
        raise CheckpointError(f"{path}: missing")
    name = _STEP.fullmatch(folder.name) or _DAMAGED.fullmatch(folder.name)
    if not isinstance(mark, dict) or not isinstance(mark.get("files"), dict) or name is None or mark.get("step") != int(name[1]):
        raise CheckpointError(f"{path}: is not the list of files of {folder.name}")
    # Earlier versions wrote sizes alone.
    if any(isinstance(stated, dict) for stated in mark["files"].values()) and mark.get("sha256") != _seal(mark):
        raise CheckpointError(f"{path}: is damaged, its SHA-256 differs")
    return mark


def _seal(mark: Mapping[str, Any]) -> str:
    return digest({key: value for key, value in mark.items() if key != "sha256"})


def _fault(folder: Path, mark: Mapping[str, Any], world: World) -> str:
    """The first file that is not as ``mark`` says; empty if all are. Contents are read by one rank a file."""
    for number, (name, stated) in enumerate(sorted(mark["files"].items())):
        path = folder / name
        size, sha256 = (stated["bytes"], stated["sha256"]) if isinstance(stated, dict) else (stated, "")
        try:
            found = path.stat().st_size
            if found != size:
                return f"{path}: {size} bytes written, {found} found"
            if sha256 and number % world.size == world.rank and sha256_file(path) != sha256:
                return f"{path}: its bytes have changed, the SHA-256 differs"
        except FileNotFoundError:
            return f"{path}: missing"
        except OSError as error:
            return f"{path}: cannot be read ({error.strerror or error})"
    return ""


def publish(root: Path, step: int, files: Mapping[str, Written], facts: Mapping[str, Any]) -> None:
    """Give the finished checkpoint of ``step`` its name. What stands there already is set aside.

    Raises:
        OSError: it cannot be written; the checkpoints before this one are untouched.
    """
    unfinished, folder = unfinished_of(root, step), folder_of(root, step)
    mark: dict[str, Any] = {"step": step, **facts, "files": {name: vars(written) for name, written in files.items()}}
    write_json(unfinished / MARK, mark | {"sha256": _seal(mark)})
    sync_folder(unfinished)
    if os.path.lexists(folder):
        set_aside(folder)
    unfinished.rename(folder)
    sync_folder(root)
    write_atomic(root / LATEST, folder.name + "\n")


def take_over(source: Path, root: Path, step: int) -> None:
    """Make the checkpoint of ``step`` in ``source``, another run's, one in ``root``: its files get a second name, or are copied.

    Raises:
        CheckpointError: it is not there, or not any more.
        StorageError: it cannot be written.
    """
    folder, unfinished = folder_of(source, step), unfinished_of(root, step)
    names = [*read_mark(folder)["files"], MARK]
    with writing(unfinished):
        remove_unfinished(root)
        unfinished.mkdir(parents=True)
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: missing; use another checkpoint of that run")
        make_folder((unfinished / name).parent)
        link_or_copy(folder / name, unfinished / name)
    with writing(unfinished):
        for name in names:
            sync_file(unfinished / name)
        unfinished.rename(folder_of(root, step))
        sync_folder(root)
    write_atomic(root / LATEST, folder.name + "\n")


def prune(root: Path, keep: int) -> None:
    """Remove all checkpoints but the newest ``keep``."""
    for old, listed in sorted(_known(root, _STEP).items())[:-keep]:
        _remove(old, listed)


def strangers(root: Path) -> list[Path]:
    """Files in the folder ``root`` of checkpoints that no run has written."""
    known = [rf"{folder.name}/(?:{_any_of(files)})" for folder, files in _known(root, _STEP, _DAMAGED).items()]
    return not_matching(root, "|".join([_OWN_FILES, rf"(?:{_UNFINISHED.pattern})/.*", *known]))


def remove_all(root: Path) -> None:
    """Remove every checkpoint in ``root``, and ``root`` if that was all."""
    remove_matching(root, _OWN_FILES)
    remove_unfinished(root)
    for folder, files in _known(root, _STEP, _DAMAGED).items():
        _remove(folder, files)
    remove_empty(root)


def _known(root: Path, *patterns: re.Pattern[str]) -> dict[Path, list[str]]:
    """The checkpoints in ``root`` with the files that their marks list; copies under other names are none."""
    found = {}
    for folder in root.iterdir() if root.is_dir() else ():
        if not _is_folder(folder) or not any(pattern.fullmatch(folder.name) for pattern in patterns):
            continue
        mark, fault = _mark_or_fault(folder)
        if not fault:
            found[folder] = [MARK, *mark["files"]]
    return found


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove(folder: Path, files: list[str]) -> None:
    """Remove ``files`` of ``folder``, and the folder if that was all."""
    # The mark last: what a kill leaves is then still known, and removed the next time.
    remove_matching(folder, _any_of([file for file in files if file != MARK]))
    remove_matching(folder, re.escape(MARK))


def _any_of(files: Iterable[str]) -> str:
    return "|".join(map(re.escape, files))


def remove_unfinished(root: Path) -> None:
    """Remove what saves and conversions that were killed have left."""
    for path in root.iterdir() if root.is_dir() else ():
        if _UNFINISHED.fullmatch(path.name) and _is_folder(path):
            shutil.rmtree(path)


def load(engine: Any, saved: Saved) -> None:
    """Restore ``engine``, which has the number of processes and the ZeRO stage of ``saved``.

    Settings of the optimiser's parameter groups stay those that it was made with.

    Raises:
        CheckpointError: DeepSpeed found nothing to load, or another step than the folder's name says.
    """
    read_as_data(engine)
    kept = [{key: value for key, value in group.items() if key != "params"} for group in engine.optimizer.param_groups]
    path, state = engine.load_checkpoint(str(saved.folder.parent), tag=saved.folder.name)
    check_step(saved.folder, path, state, saved)
    for group, settings in zip(engine.optimizer.param_groups, kept, strict=True):
        group.update(settings)


def read_as_data(engine: Any) -> None:
    """Have ``engine`` read checkpoints by :func:`read_file`; DeepSpeed itself unpickles them."""
    engine.checkpoint_engine.load = read_file


def read_file(path: str | Path, map_location: Any = None) -> Any:
    """A file of a checkpoint, without running what it may ask for."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
        return torch.load(path, map_location=map_location, weights_only=True)


def check_step(folder: Path, path: str | None, state: dict[str, Any] | None, saved: Saved) -> None:
    """What ``load_checkpoint`` returned for ``folder`` is ``saved``. Raises :class:`CheckpointError`."""
    if path is None or state is None or state.get("step") != saved.step:
        raise CheckpointError(f"{folder}: DeepSpeed could not load it; start with --resume never")
