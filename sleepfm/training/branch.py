"""Starting where another run is: at one of its checkpoints (``branch_from``), or with its weights alone (``init_from``)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sleepfm.errors import CheckpointError, ModelError, RegistryError
from sleepfm.files import write_atomic
from sleepfm.registry.package import WEIGHTS, verify
from sleepfm.registry.registry import Resolved
from sleepfm.training.folder import RunFolder
from sleepfm.training.state import checkpoint, sealed
from sleepfm.training.tracking.trace import whole_rows
from sleepfm.training.tracking.tracker import known_run_id

_NAMED = 8


def origin(branch_from: str) -> dict[str, Any]:
    """What the record of a branch says of ``branch_from``, which is ``RUN@STEP``.

    Raises:
        CheckpointError: no run, or no whole list of files of a checkpoint of that step.
        StorageError: ``run.json`` there is not a run's.
    """
    run, step = parse(branch_from)
    if not run.is_run():
        raise CheckpointError(
            f"{branch_from}: {run.root} is not the folder of a run; branch_from= needs the train.output of a run"
        )
    there = checkpoint.steps(run.checkpoints)
    if step not in there:
        held = f"there are those of step {', '.join(map(str, reversed(there)))}" if there else "there is none"
        raise CheckpointError(f"{branch_from}: no checkpoint of step {step} in {run.checkpoints}; {held}")
    checkpoint.read_mark(checkpoint.folder_of(run.checkpoints, step))
    return {"run": str(run.root.resolve()), "step": step, "run_id": known_run_id(run)}


def take(branch_from: str, folder: RunFolder) -> None:
    """Give ``folder``, where nothing has been trained yet, the checkpoint and the trace up to it; the other run is left as it is.

    Raises:
        CheckpointError: the checkpoint is not there, or not any more.
    """
    run, step = parse(branch_from)
    origin(branch_from)
    # What is missing there, the run that goes on says.
    rows = [row for row in whole_rows(run.trace)[0] if row["step"] <= step]
    write_atomic(folder.trace, "".join(json.dumps(row) + "\n" for row in rows))
    checkpoint.take_over(run.checkpoints, folder.checkpoints, step)


def parse(branch_from: str) -> tuple[RunFolder, int]:
    """The folder and the step of ``RUN@STEP``."""
    run, _, step = branch_from.rpartition("@")
    return RunFolder(run), int(step)


@dataclass(frozen=True)
class Loaded:
    """What :func:`initialise` did, by names of tensors."""

    path: Path
    loaded: int
    untouched: list[str]
    unused: list[str]

    def describe(self, address: str) -> str:
        text = f"init_from={address}: {self.loaded} of {self.loaded + len(self.untouched)} tensors taken from {self.path}"
        for words, names in (("not in it, as initialised", self.untouched), ("in it, not used", self.unused)):
            if names:
                more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                text += f"; {words}: {', '.join(names[:_NAMED])}{more}"
        return text


def weights_of(address: str, pull: Callable[[str], Resolved]) -> tuple[Path, str]:
    """The file of weights that ``init_from`` leads to, and what it is for good: of a run's folder, else of what ``pull`` finds.

    Raises:
        RegistryError: bytes of a package that have changed, or no package.
        CheckpointError: a run that has not been validated yet, or whose best weights are damaged.
    """
    run = RunFolder(address)
    if not run.is_run():
        found = pull(address)
        verify(found.path, found.label, found.tags if found.name else None)
        return found.path / WEIGHTS, found.permanent
    # Without it, or while it is written, the best weights so far are the same.
    if run.package.is_dir():
        verify(run.package, str(run.package))
        return run.package / WEIGHTS, str(run.root.resolve())
    if not run.best.exists():
        raise CheckpointError(
            f"{run.root}: has no weights yet, because nothing has been validated; use branch_from={run.root}@STEP with a "
            "checkpoint"
        )
    sealed.check(run.best)
    return run.best, str(run.root.resolve())


def initialise(module: nn.Module, path: Path) -> Loaded:
    """Load into ``module`` what the safetensors file ``path`` has for it; the rest of it stays as it is.

    Raises:
        ModelError: a tensor of another shape, or none that fits.
        RegistryError: the file cannot be read.
    """
    own = module.state_dict()
    try:
        theirs = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RegistryError(f"{path}: cannot be read as weights ({error})") from error
    common = [name for name in own if name in theirs]
    other = [
        f"{name} ({list(theirs[name].shape)} there, {list(own[name].shape)} here)"
        for name in common
        if theirs[name].shape != own[name].shape
    ]
    if other:
        more = f" and {len(other) - _NAMED} more" if len(other) > _NAMED else ""
        raise ModelError(
            f"{path}: other shapes than this model's: {', '.join(other[:_NAMED])}{more}; use the same sizes for both"
        )
    if not common:
        raise ModelError(
            f"{path}: has no tensor of this model, such as {next(iter(own), 'any')}; init_from= needs a model of the same kind"
        )
    module.load_state_dict({name: theirs[name] for name in common}, strict=False)
    unused = [name for name in theirs if name not in own]
    return Loaded(path, len(common), [name for name in own if name not in theirs], unused)
