"""A checkpoint on another number of processes or at another ZeRO stage, through DeepSpeed's universal layout.

``ds_to_universal`` turns a checkpoint into ``zero/PARAMETER/{fp32,exp_avg,exp_avg_sq}.pt``. Between stages that is not enough for
DeepSpeed 0.19 to go on with the same losses; what is missing is added here, each with its reason:

* the count of steps stands with each parameter, and is read from one place (:func:`_complete`);
* ZeRO 0 neither writes nor reads the layout (:func:`_from_plain`, :func:`_into_plain`);
* a rank that holds no part of a parameter group breaks the loader of ZeRO 1 and 2 (:func:`_load_partitions`);
* the settings of the first parameter group are taken for all;
* buffers are not restored.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sleepfm.errors import CheckpointError
from sleepfm.files import write_json, writing
from sleepfm.models.reference.torch_archive import read_archive
from sleepfm.training.ranks.distributed import World, on_main
from sleepfm.training.state.checkpoint import MARK, Saved, check_step, read_as_data

_MOMENTS = ("exp_avg", "exp_avg_sq")
_STATE = Path("zero", "optimizer_state.pt")
_MODEL_FILE = "mp_rank_00_model_states.pt"


def convert(saved: Saved, world: World, groups: Sequence[dict[str, Any]], module: nn.Module) -> Path:
    """``saved`` in the universal layout, completed so that every ZeRO stage can load it. Every rank calls this.

    Converted once, beside the checkpoint, by DeepSpeed's own tool in a process of its own. ``groups`` are the optimiser's
    parameter groups of ``module``.

    Raises:
        CheckpointError: the tool refuses the checkpoint, or it is of ZeRO 3, which is not read any more.
        StorageError: there is no room for it.
    """
    if saved.zero > 2:
        raise CheckpointError(
            f"{saved.folder}: written by ZeRO {saved.zero}, which this version does not read; finish the run with the version "
            "that began it, or start over with --resume never"
        )
    target = saved.folder.parent / f".universal-{saved.folder.name}"
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    ordered = [names[id(parameter)] for group in groups for parameter in group["params"]]

    def work() -> str:
        if not (target / MARK).exists():
            shutil.rmtree(target, ignore_errors=True)
            with writing(target):
                if saved.zero == 0:
                    _from_plain(saved.folder, target, ordered)
                else:
                    _convert(saved.folder, target)
                    _complete(target, ordered)
            write_json(target / MARK, {"step": saved.step})
        return str(target)

    return Path(on_main(world, work))


def _convert(source: Path, target: Path) -> None:
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(source), "--output_folder", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise CheckpointError(f"{source}: cannot convert to a universal checkpoint ({lines[-1]})")


def _complete(target: Path, ordered: Sequence[str]) -> None:
    """Give the layout what the loaders of all stages ask for."""
    _write_state(target, {name: read_archive(target / "zero" / name / "step.pt") for name in ordered})


def _from_plain(source: Path, target: Path, ordered: Sequence[str]) -> None:
    """The universal layout of a checkpoint without ZeRO."""
    shutil.copytree(source, target)
    state = read_archive(target / _MODEL_FILE)
    moments = state["optimizer"]["state"]
    steps = {}
    for number, name in enumerate(ordered):
        folder = target / "zero" / name
        folder.mkdir(parents=True)
        weight = state["module"][name]
        _write(folder / "fp32.pt", {"param": weight})
        # A parameter that never had a gradient has no moments yet.
        own = moments.get(number, {})
        for kind in _MOMENTS:
            _write(folder / f"{kind}.pt", {"param": own.get(kind, torch.zeros_like(weight))})
        if own:
            steps[name] = own["step"]
    _write_state(target, steps)


def _write_state(target: Path, steps: dict[str, Any]) -> None:
    """What the loaders look for beside the parameters: the count of steps, and settings of groups, which stay as they are."""
    from deepspeed import __version__

    counts = {float(step) for step in steps.values()}
    if len(counts) > 1:
        raise CheckpointError(
            f"{target}: parameters have different numbers of updates ({sorted(counts)}); move this checkpoint away"
        )
    step = torch.tensor(counts.pop() if counts else 0.0)
    state = {"state": {0: {"step": step}}, "param_groups": [{}]}
    _write(target / _STATE, {"ds_version": __version__, "param_groups": [], "optimizer_state_dict": state})


def load(engine: Any, saved: Saved, folder: Path, zero: int) -> None:
    """Restore ``engine``, which runs ZeRO stage ``zero``, from ``folder``, the universal form of ``saved``.

    Raises:
        CheckpointError: DeepSpeed found nothing to load, or another step than ``saved``'s.
    """
    if zero == 0:
        state = _into_plain(engine, folder)
    else:
        engine.optimizer.load_hp_checkpoint_state_from_checkpoint_dir = types.MethodType(_load_partitions, engine.optimizer)
        settings = [
            {key: value for key, value in group.items() if key != "params"} for group in engine.optimizer.optimizer.param_groups
        ]
        read_as_data(engine)
        path, state = engine.load_checkpoint(str(folder.parent), tag=folder.name)
        check_step(folder, path, state, saved)
        for group, own in zip(engine.optimizer.optimizer.param_groups, settings, strict=True):
            group.update(own)
        for moments in engine.optimizer.optimizer.state.values():
            if torch.is_tensor(moments.get("step")):
                moments["step"] = moments["step"].clone()
        state = read_archive(folder / _MODEL_FILE)
    buffers = dict(engine.module.named_buffers())
    with torch.no_grad():
        for name, value in state["module"].items():
            if name in buffers:
                buffers[name].copy_(value)


def _load_partitions(optimizer: Any, groups: str, folder: str) -> None:
    """In the place of a method of ZeRO 1 and 2 that expects every rank to hold a part of every group, which one with few
    parameters does not give it.
    """
    from deepspeed.utils.tensor_fragment import map_to_flat_opt_states

    step = read_archive(Path(folder) / _STATE)["optimizer_state_dict"]["state"][0]["step"]
    base = optimizer.optimizer
    for group, members in zip(base.param_groups, getattr(optimizer, groups), strict=True):
        for parameter in members:
            if parameter._hp_mapping is not None:
                parameter.load_hp_checkpoint_state(os.path.join(folder, "zero", optimizer.param_names[parameter]), 0, 1)
        (flat,) = group["params"]
        map_to_flat_opt_states(flat, members, base.state, _MOMENTS)
        base.state[flat]["step"] = step


def _into_plain(engine: Any, folder: Path) -> dict[str, Any]:
    """Weights and optimiser of an engine without ZeRO; the rest of the checkpoint is returned."""
    step = read_archive(folder / _STATE)["optimizer_state_dict"]["state"][0]["step"]
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            own = {kind: read_archive(folder / "zero" / name / f"{kind}.pt")["param"] for kind in ("fp32", *_MOMENTS)}
            with torch.no_grad():
                parameter.copy_(own.pop("fp32"))
            moments = {kind: value.to(parameter.device) for kind, value in own.items()}
            engine.optimizer.state[parameter] = {"step": step.clone(), **moments}
    state: dict[str, Any] = read_archive(folder / _MODEL_FILE)
    engine.global_steps, engine.skipped_steps = state["global_steps"], state["skipped_steps"]
    return state


def _write(path: Path, value: dict[str, Any] | dict[str, Tensor]) -> None:
    torch.save(value, path)
