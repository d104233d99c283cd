"""Checkpoints: DeepSpeed's own files, published under their final name only when every byte is on disk.

``OUTPUT/checkpoints/step-00000120/`` holds what :meth:`DeepSpeedEngine.save_checkpoint` wrote and
``complete.json`` (step, number of processes, ZeRO stage, size of every file); ``OUTPUT/checkpoints/latest``
names the newest. A folder that starts with a dot is unfinished and is never read.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from sleepfm.errors import CheckpointError
from sleepfm.training.distributed import World, on_main
from sleepfm.training.files import read_json, sync_file, sync_folder, write_atomic, write_json

_MARK = "complete.json"


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint."""

    folder: Path
    step: int
    processes: int
    zero: int


def newest(output: Path) -> Saved | None:
    """The newest whole checkpoint below ``output``, or None.

    Raises:
        CheckpointError: a published checkpoint whose files are missing or of another size.
    """
    root = output / "checkpoints"
    try:
        name = (root / "latest").read_text().strip()
    except FileNotFoundError:
        return None
    folder = root / name
    mark = read_json(folder / _MARK)
    if mark is None:
        raise CheckpointError(f"{root / 'latest'} names {name!r}, which is not there; start with --resume never")
    for file, size in mark["files"].items():
        path = folder / file
        if not path.is_file() or path.stat().st_size != size:
            found = path.stat().st_size if path.is_file() else "nothing"
            raise CheckpointError(f"{path}: {size} bytes expected, {found} found; restore it, or start with --resume never")
    return Saved(folder, mark["step"], mark["processes"], mark["zero"])


def save(engine: Any, world: World, output: Path, step: int, zero: int, keep: int) -> Path:
    """Save ``engine`` at ``step`` and drop all but the newest ``keep`` checkpoints. Every rank calls this.

    Raises:
        CheckpointError: the files could not be written; the checkpoints before this one are untouched.
    """
    root = output / "checkpoints"
    name = f"step-{step:08d}"
    temporary = root / f".{name}.tmp"
    if (root / name / _MARK).exists():
        # Reached before, by the run that this one resumes: same step, same content.
        if world.is_main:
            write_atomic(root / "latest", name + "\n")
        return root / name
    if world.is_main:
        root.mkdir(parents=True, exist_ok=True)
        for leftover in (*root.glob(".step-*.tmp"), *root.glob(".universal-*")):
            shutil.rmtree(leftover)
    try:
        engine.save_checkpoint(str(root), tag=temporary.name, client_state={"step": step}, save_latest=False)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        for file in files[world.rank :: world.size]:
            sync_file(file)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{temporary}: cannot save step {step} ({reason}); earlier checkpoints remain") from error
    if world.size > 1:
        dist.barrier()
    if world.is_main:
        sizes = {str(path.relative_to(temporary)): path.stat().st_size for path in files}
        write_json(temporary / _MARK, {"step": step, "processes": world.size, "zero": zero, "files": sizes})
        os.rename(temporary, root / name)
        sync_folder(root)
        write_atomic(root / "latest", name + "\n")
        for old in sorted(root.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    if world.size > 1:
        dist.barrier()
    return root / name


def universal(saved: Saved, world: World) -> Path:
    """``saved`` in DeepSpeed's universal layout, which loads at any number of processes and any ZeRO
    stage >= 1.

    Converted once, beside the checkpoint, by DeepSpeed's own tool in a process of its own.

    Raises:
        CheckpointError: a checkpoint without ZeRO, or one that the tool refuses.
    """
    if saved.zero == 0:
        raise CheckpointError(f"{saved.folder}: saved with deepspeed.zero=0; continue it with deepspeed.zero=0")
    root = saved.folder.parent
    target = root / f".universal-{saved.folder.name}"

    def convert() -> str:
        if (target / _MARK).exists():
            return str(target)
        shutil.rmtree(target, ignore_errors=True)
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        command += ["--input_folder", str(saved.folder), "--output_folder", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise CheckpointError(f"{saved.folder}: cannot convert to a universal checkpoint ({lines[-1]})")
        write_json(target / _MARK, {"step": saved.step})
        return str(target)

    return Path(on_main(world, convert))


def load(engine: Any, saved: Saved, folder: Path) -> None:
    """Restore ``engine`` from ``folder`` (``saved`` itself or its universal form).

    Raises:
        CheckpointError: DeepSpeed found nothing to load, or another step than the folder's name says.
    """
    path, state = engine.load_checkpoint(str(folder.parent), tag=folder.name)
    if path is None or state.get("step") != saved.step:
        raise CheckpointError(f"{folder}: DeepSpeed could not load it; start with --resume never")
