"""A job in which steps are not finite on one rank alone; writes what every rank holds after each step as ``held-RANK.json``.

For ``test_skipped_steps.py``: ``skip_job.py CONFIG key=value ...``. ``toy.nan_at`` are items with a loss that is not finite; the
gradient of ``GRADIENT_AT`` (an item, from the environment) is not, while its loss is.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from toy import ToyRunConfig, ToyStage

from sleepfm.data.batch import Batch
from sleepfm.training import job
from sleepfm.training.engine import _Run
from sleepfm.training.stage import StepLoss
from sleepfm.training.state.weights import named_running_statistics


class _NoGradient(torch.autograd.Function):
    """The same number, whose gradient is not finite."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * torch.inf


def held(run: _Run) -> dict[str, str]:
    """Digests of what a step changes."""
    base = run.engine.basic_optimizer
    parts: dict[str, dict[str, torch.Tensor]] = {
        "weights": dict(run.module.named_parameters()),
        "statistics": named_running_statistics(run.module),
        "average": run.ema._average if run.ema else {},
        "master copy": {str(n): p for n, p in enumerate(p for group in base.param_groups for p in group["params"])},
    }
    for name in ("exp_avg", "exp_avg_sq", "step"):
        parts[name] = {str(n): state[name] for n, state in enumerate(base.state.values())}
    found = {}
    for name, tensors in parts.items():
        digest = hashlib.sha256()
        for key, value in tensors.items():
            digest.update(key.encode() + value.detach().numpy().tobytes())
        found[name] = digest.hexdigest()
    return found


class Stage(ToyStage):
    """A toy with such gradients."""

    def loss(self, model: Any, batch: Batch, seed: int) -> StepLoss:
        loss = super().loss(model, batch, seed)
        if int(os.environ["GRADIENT_AT"]) in batch.item:
            return StepLoss(_NoGradient.apply(loss.loss), loss.parts)  # type: ignore[no-untyped-call]
        return loss


def main() -> None:
    rows: list[dict[str, str]] = []
    step: Any = _Run._step

    def noted(run: _Run, *arguments: Any) -> None:
        step(run, *arguments)
        rows.append(held(run))
        Path(f"held-{run.world.rank}.json").write_text(json.dumps(rows))

    _Run._step = noted  # type: ignore[assignment, method-assign]
    job.run(ToyRunConfig, Stage, lambda config: ToyStage.dataset_digest, "skips")


if __name__ == "__main__":
    main()
