"""Writes what each rank of a job holds when its gradients are there, as ``memory-RANK.json``; for ``test_zero_memory.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from toy import ToyRunConfig, ToyStage

from sleepfm.training import job
from sleepfm.training.engine import _Run
from sleepfm.training.tracking.sizing import Size


def held_bytes(run: _Run) -> dict[str, int]:
    """Bytes of storages by what they are for, each once."""
    module, optimiser = run.engine.module, run.engine.optimizer
    # ZeRO wraps an optimiser whose parameters are this rank's parts of the master copy.
    base = getattr(optimiser, "optimizer", optimiser)
    master = [tensor for group in base.param_groups for tensor in group["params"]]
    parts: dict[str, list[Any]] = {
        "parameters": [*module.parameters()],
        "gradients": [parameter.grad for parameter in [*module.parameters(), *master]],
        "master copy": master,
        "moments": [state[name] for state in base.state.values() for name in ("exp_avg", "exp_avg_sq")],
        "average": [*run.ema._average.values()] if run.ema else [],
    }
    parts["gradients"] += [part for group in getattr(optimiser, "averaged_gradients", {}).values() for part in group or []]
    seen: set[int] = set()
    found = dict.fromkeys(parts, 0)
    for name, tensors in parts.items():
        for storage in (tensor.untyped_storage() for tensor in tensors if isinstance(tensor, torch.Tensor)):
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                found[name] += storage.nbytes()
    return found


def counting(inner: Any) -> Any:
    """``_Run._step`` that counts before the update of the second step."""

    def step(run: _Run, *arguments: Any) -> Any:
        if run.step == 1:
            update = run.engine.optimizer.step

            def counted(*given: Any, **options: Any) -> Any:
                size, ema = Size.of(run.module), run.config.train.ema > 0
                row = held_bytes(run) | {"stated": size.bytes_per_rank(run.zero, run.world.size, ema)}
                Path(f"memory-{run.world.rank}.json").write_text(
                    json.dumps(row | {"trained": size.trainable, "total": size.total})
                )
                return update(*given, **options)

            run.engine.optimizer.step = counted
        return inner(run, *arguments)

    return step


if __name__ == "__main__":
    _Run._step = counting(_Run._step)  # type: ignore[method-assign]
    job.run(ToyRunConfig, ToyStage, lambda config: ToyStage.dataset_digest, "memory")
