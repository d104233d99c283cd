"""Probes of embeddings give what scikit-learn's give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from sleepfm.stages.probes import logistic_regression, nearest_neighbours, standardise


def embeddings(count: int, width: int) -> tuple[Tensor, Tensor]:
    """Of classes that are unequally frequent and overlap; labels are not consecutive, and one feature is constant."""
    draws = np.random.default_rng(width)
    truth = draws.choice(5, count, p=[0.3, 0.05, 0.4, 0.12, 0.13])
    centres = draws.normal(size=(5, 12))
    rows = (0.5 * centres[truth] + draws.normal(size=(count, 12))) @ draws.normal(size=(12, width)) + 3
    rows += 0.5 * draws.normal(size=rows.shape)
    rows[:, 1] = 0.1
    return torch.tensor(rows, dtype=torch.float32), torch.tensor(2 * truth)


@pytest.mark.parametrize(("count", "width"), [(800, 16), (600, 128)])
def test_probes_predict_what_those_of_scikit_learn_predict(count: int, width: int) -> None:
    rows, truth = embeddings(2 * count, width)
    scaler = StandardScaler().fit(rows[:count].numpy())
    theirs = [scaler.transform(part.numpy()) for part in (rows[:count], rows[count:])]
    with torch.no_grad():
        train, held = standardise(rows[:count], rows[count:])
        linear = logistic_regression(train, truth[:count], held)
        nearest = nearest_neighbours(train, truth[:count], held, 5)
    np.testing.assert_allclose(held.numpy(), theirs[1], atol=1e-4)
    labels = truth[:count].numpy()
    expected = LogisticRegression(C=0.1, max_iter=300).fit(theirs[0], labels).predict(theirs[1])
    assert np.mean(linear.numpy() == expected) >= 0.998
    expected = KNeighborsClassifier(5, metric="cosine").fit(theirs[0], labels).predict(theirs[1])
    assert np.mean(nearest.numpy() == expected) >= 0.998
    assert 0.5 < (linear == truth[count:]).double().mean() < 0.99


def test_few_rows_are_all_neighbours_and_ties_go_to_the_smaller_class() -> None:
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert nearest_neighbours(train, torch.tensor([4, 1]), torch.tensor([[1.0, 0.1], [0.1, 1.0]]), 5).tolist() == [1, 1]
    assert nearest_neighbours(train, torch.tensor([4, 1]), torch.tensor([[1.0, 0.1], [0.1, 1.0]]), 1).tolist() == [4, 1]
