"""A job that trains a Mamba context, run by ``test_mamba_training.py`` under the real engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sleepfm.data.batch import Batch
from sleepfm.models.context import ContextConfig, build_context
from sleepfm.models.mamba import Mamba2
from sleepfm.training.job import Context, run
from sleepfm.training.ranks.shared_work import ALONE, SharedWork
from sleepfm.training.run_config import RunConfig
from sleepfm.training.stage import Export, StepLoss

DIM = 32


class SequenceStream:
    """Sequences whose last epoch asks for the first one's sign."""

    def __len__(self) -> int:
        return 64

    def batch(self, start: int, count: int) -> Batch:
        rows = [torch.randn(70, DIM, generator=torch.Generator().manual_seed(i)) for i in range(start, start + count)]
        ones, item = torch.ones(count, 1, dtype=torch.bool), torch.arange(start, start + count)
        return Batch(torch.stack(rows), ones, ones, {}, item, [""] * count, torch.zeros(count, dtype=torch.long))


def build(config: dict[str, Any]) -> nn.Module:
    return build_context(ContextConfig(kind="mamba", headdim=16, bidirectional=True), DIM)


class ContextStage:
    name = "context"
    epochs_per_item = 70
    dataset_digest = "0" * 64
    parents: tuple[str, ...] = ()

    def __init__(self, config: RunConfig, context: Context) -> None:
        torch.manual_seed(0)
        self.module = build({})
        self.stream = SequenceStream()
        # Types in the forward pass of a training step.
        self.used: dict[str, set[str]] = {"rates": set(), "products": set()}
        for part in self.module.modules():
            if isinstance(part, Mamba2):
                part.register_forward_hook(self._note)
        self.before = {name: value.clone() for name, value in self.module.state_dict().items()}

    def loss(self, model: Callable[..., Any], batch: Batch, seed: int) -> StepLoss:
        return StepLoss(self._error(model(batch.signals), batch.signals))

    def validate(self, module: nn.Module, work: SharedWork) -> dict[str, float]:
        signals = self.stream.batch(1000, 16).signals
        return {"val/error": self._error(module(signals), signals).item()}

    def export(self, module: nn.Module, folder: Path, work: SharedWork = ALONE, final: bool = True) -> Export:
        state = module.state_dict()
        facts = {
            "used": {key: sorted(kinds) for key, kinds in self.used.items()},
            "dtypes": {name: str(value.dtype) for name, value in state.items()},
            "moved": {name: bool((value != self.before[name]).any()) for name, value in state.items()},
        }
        Path("facts.json").write_text(json.dumps(facts))
        return Export({"model": {"kind": "context"}}, "# context\n", builder="context_job:build")

    def _note(self, part: nn.Module, arguments: Any, output: Tensor) -> None:
        assert isinstance(part, Mamba2)
        # A step runs under autocast; what counts the arithmetic beforehand does not.
        if part.training and torch.is_autocast_enabled("cpu"):
            self.used["rates"] |= {str(value.dtype) for value in (part.A_log, part.D, part.dt_bias)}
            self.used["products"].add(str(output.dtype))

    def _error(self, output: Tensor, signals: Tensor) -> Tensor:
        return (output.float().mean(1) - signals[:, 0]).square().mean()


if __name__ == "__main__":
    run(RunConfig, ContextStage, lambda config: ContextStage.dataset_digest, "context")
