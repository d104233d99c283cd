"""Two probes of embeddings, on the device that holds them: logistic regression and k nearest neighbours.

They are those of scikit-learn (``LogisticRegression``, ``KNeighborsClassifier(metric="cosine")``), which know CPUs alone: while
rank 0 probed, every GPU of a job waited.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Similarities with the training rows at a time: 64 MB in fp32.
_TILE = 2**24


def standardise(train: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """Both ``[N, D]`` less the mean of ``train``, over its standard deviation; a feature that is constant is only centred."""
    mean, deviation = train.mean(0), train.std(0, correction=0)
    constant = deviation <= 10 * torch.finfo(train.dtype).eps * mean.abs()
    deviation = deviation.masked_fill(constant | (deviation == 0), 1.0)
    return (train - mean) / deviation, (held - mean) / deviation


def logistic_regression(train: Tensor, truth: Tensor, held: Tensor, penalty: float = 10.0, iterations: int = 300) -> Tensor:
    """Classes ``[M]`` of ``held`` ``[M, D]`` by the linear classifier of ``train`` ``[N, D]`` and its classes ``truth`` ``[N]``.

    It minimises the sum of the cross entropies and ``penalty / 2`` times the squared weights, without the intercepts, by L-BFGS,
    until no derivative of the mean exceeds 1e-4 or after ``iterations``.
    """
    classes, target = truth.unique(return_inverse=True)
    weights = train.new_zeros(len(classes), train.shape[1]).requires_grad_()
    intercepts = train.new_zeros(len(classes)).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [weights, intercepts],
        max_iter=iterations,
        tolerance_grad=1e-4,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        fit = F.cross_entropy(F.linear(train, weights, intercepts), target)
        value = fit + weights.square().sum() * (penalty / 2 / len(train))
        value.backward()
        return value

    optimiser.step(loss)
    return classes[F.linear(held, weights.detach(), intercepts.detach()).argmax(1)]


def nearest_neighbours(train: Tensor, truth: Tensor, held: Tensor, neighbours: int) -> Tensor:
    """Classes ``[M]`` of ``held`` ``[M, D]``: the most frequent one of the ``neighbours`` rows of ``train`` ``[N, D]`` with the
    largest cosine; of those that are equally frequent the smallest.
    """
    classes, target = truth.unique(return_inverse=True)
    train = F.normalize(train, dim=1)
    found = []
    for part in F.normalize(held, dim=1).split(max(1, _TILE // len(train))):
        nearest = target[(part @ train.T).topk(min(neighbours, len(train)), dim=1).indices]
        found.append(classes[F.one_hot(nearest, len(classes)).sum(1).argmax(1)])
    return torch.cat(found)
