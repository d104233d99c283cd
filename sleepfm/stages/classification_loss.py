"""The supervised loss of the downstream tasks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sleepfm.training.stage import StepLoss


def class_weights(labels: Tensor, n_classes: int, weighting: str) -> Tensor:
    """Weight [K] of each class: 1, or the inverse of its frequency among the scored ``labels`` (``inverse``) or of the
    frequency's root (``inverse-root``), with mean 1 over epochs.

    A class that does not occur keeps weight 1: nothing is learnt about it either way.
    """
    weights = torch.ones(n_classes)
    if weighting != "none":
        counts = torch.bincount(labels[labels >= 0].flatten(), minlength=n_classes)
        held = counts > 0
        weights[held] = counts[held] ** (-0.5 if weighting == "inverse-root" else -1.0)
        weights[held] *= counts.sum() / (weights * counts).sum()
    return weights


def classification_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> StepLoss:
    """Weighted cross-entropy of ``logits`` [B, L, K] against ``labels`` [B, L], -1 left out; ``weights`` [K] on their device.

    The sum is divided by B * L whatever was scored, so that the mean over ranks is the mean over the whole
    batch.
    """
    flat, target = logits.float().flatten(0, -2), labels.flatten()
    scored = target >= 0
    each = F.cross_entropy(flat, target.clamp(min=0), reduction="none") * weights[target.clamp(min=0)]
    each = each * scored
    loss = each.mean()
    correct = ((flat.argmax(dim=-1) == target) & scored).float().mean()
    return StepLoss(loss, {"accuracy": correct}, each.detach().unflatten(0, (len(labels), -1)).mean(1))
