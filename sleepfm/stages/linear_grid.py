"""Linear heads for many pairs of learning rate and weight decay, trained together in one pass over the same embeddings.

As in the linear probe of DINOv2 (Oquab et al. 2023, arXiv 2304.07193, appendix B.3): all heads see the same batches, their logits
come of one matrix product, and the best on ``val`` is taken. Each learns as if it were alone: they share no parameter, their
losses add up, and the norm of the gradient is not clipped, which would couple them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sleepfm.evaluation.prediction_figures import validation_figures
from sleepfm.evaluation.predictions import Predictions
from sleepfm.stages.embedded_epochs import EmbeddedEpochs
from sleepfm.tasks import Task
from sleepfm.training.run_config import TrainConfig
from sleepfm.training.schedule import learning_rate

# Embeddings that are classified at a time.
_CHUNK = 2**16


@dataclass(frozen=True)
class Tried:
    """A pair and what its head reached on ``val``; nan where the figure is undefined."""

    lr: float
    weight_decay: float
    figure: float

    def to_plain(self) -> dict[str, float | None]:
        """Plain JSON types."""
        return {"lr": self.lr, "weight_decay": self.weight_decay, "val": None if math.isnan(self.figure) else self.figure}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Tried:
        """Inverse of :meth:`to_plain`."""
        return cls(values["lr"], values["weight_decay"], math.nan if values["val"] is None else values["val"])


def train_heads(
    stream: Any,
    task: str,
    pairs: Sequence[tuple[float, float]],
    start: nn.Linear,
    train: TrainConfig,
    steps: int,
    class_weights: Tensor,
    device: torch.device,
    goes_on: Callable[[], None] = lambda: None,
) -> list[nn.Linear]:
    """A head for each of ``pairs`` after ``steps`` steps, on ``device``, in fp32.

    Args:
        stream: gives batches of embeddings [B, 1, D] with labels of ``task`` [B, 1].
        start: the weights that every head begins with.
        train: batch, schedule (of which each head's rate is scaled) and moments of AdamW; rates and decays are the pairs'.
        class_weights: of the cross-entropy, [K].
        goes_on: called after every step.
    """
    heads = [nn.Linear(start.in_features, start.out_features, device=device) for _ in pairs]
    groups: list[dict[str, Any]] = []
    for head, (rate, decay) in zip(heads, pairs, strict=True):
        head.load_state_dict(start.state_dict())
        groups.append({"params": [head.weight], "weight_decay": decay, "scale": rate / train.lr})
        groups.append({"params": [head.bias], "weight_decay": 0.0, "scale": rate / train.lr})
    optimiser = torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, fused=True)
    weights = class_weights.to(device)
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for step in range(steps):
            batch = stream.batch(step * train.global_batch, train.global_batch)
            embedding, target = batch.signals[:, 0].to(device), batch.labels[task][:, 0].to(device)
            logits = F.linear(embedding, torch.cat([h.weight for h in heads]), torch.cat([h.bias for h in heads]))
            # [B * G] rows, of which each head's mean is over B.
            each = F.cross_entropy(
                logits.unflatten(1, (len(heads), -1)).flatten(0, 1), target.repeat_interleave(len(heads)), reduction="none"
            )
            loss = (each * weights[target].repeat_interleave(len(heads))).sum() / len(target)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(train, step, steps) * group["scale"]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            goes_on()
    return heads


@torch.no_grad()
def predictions_of(head: nn.Linear, epochs: EmbeddedEpochs) -> Predictions:
    """What ``head`` says of ``epochs``, beside their labels."""
    device = head.weight.device
    with torch.autocast(device.type, enabled=False):
        parts = [head(part.to(device)).softmax(-1).cpu() for part in epochs.embedding.split(_CHUNK)]
    names, people = np.array(epochs.names, dtype=object), np.array(epochs.people, dtype=object)
    night = epochs.night.numpy()
    probability = torch.cat(parts).double().numpy()
    return Predictions(names[night], people[night], epochs.epoch.numpy(), epochs.label.numpy(), probability)


def figures_of(
    task: Task, metric: str, pairs: Sequence[tuple[float, float]], heads: Sequence[nn.Linear], val: EmbeddedEpochs
) -> list[Tried]:
    """``metric`` (``val/...``) of every head."""
    found = []
    for (rate, decay), head in zip(pairs, heads, strict=True):
        found.append(Tried(rate, decay, validation_figures(task, predictions_of(head, val))[metric]))
    return found


def best_of(tried: Sequence[Tried]) -> int:
    """The number of the best; of equal ones, and where no figure is defined, the first."""
    return max(
        range(len(tried)), key=lambda number: (-math.inf if math.isnan(tried[number].figure) else tried[number].figure, -number)
    )
