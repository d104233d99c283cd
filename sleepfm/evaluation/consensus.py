"""One hypnogram from several scorers', and how each scorer and a model agree with it (Guillot et al. 2020, IEEE TNSRE 28:1955).

The stage of an epoch is the one most scorers gave; of a tie, the one of the scorer who agrees best with the others in that
night. A scorer is judged by the consensus of the others, a model by that of all but the scorer who agrees least, so that both
are judged by one scorer fewer than there are. An epoch counts by the share of the votes that its consensus has. Epochs that a
scorer left unscored are no vote of his; where half of the scorers or fewer scored, there is no consensus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sleepfm.constants import STAGE_NAMES
from sleepfm.errors import ModelError
from sleepfm.evaluation import agreement
from sleepfm.evaluation.intervals import Metric, metric_of, subject_counts

K = len(STAGE_NAMES)


@dataclass(frozen=True)
class Consensus:
    """Stages [E], -1 without a consensus, and the share of the votes [E] that each has."""

    stages: NDArray[np.int64]
    share: NDArray[np.float64]


def soft_agreement(scoring: ArrayLike, others: ArrayLike) -> float:
    """How well ``scoring`` [E] agrees with ``others`` [S, E]: the votes of its stage over those of the commonest stage, mean
    over epochs that it and any of them scored; nan without one.
    """
    own, votes = np.asarray(scoring), _votes(np.asarray(others))
    there = (own >= 0) & (votes.sum(axis=1) > 0)
    if not there.any():
        return float("nan")
    rows = np.flatnonzero(there)
    return float((votes[rows, own[rows]] / votes[rows].max(axis=1)).mean())


def ranked(scorings: ArrayLike) -> list[int]:
    """Rows of ``scorings`` [S, E] by how well each agrees with the others, the best first."""
    table = _checked(scorings)
    found = [soft_agreement(table[row], np.delete(table, row, axis=0)) for row in range(len(table))]
    return sorted(range(len(table)), key=lambda row: (-np.nan_to_num(found[row], nan=-1.0), row))


def consensus_of(scorings: ArrayLike) -> Consensus:
    """The consensus of ``scorings`` [S, E], the most reliable scorer first; stages 0 to 4, -1 unscored.

    Raises:
        ModelError: no scoring, or stages out of range.
    """
    table = _checked(scorings)
    votes = _votes(table)
    most, voters = votes.max(axis=1), votes.sum(axis=1)
    stages = votes.argmax(axis=1)
    tied = (votes == most[:, None]).sum(axis=1) > 1
    # The first in rank whose stage is among the tied ones.
    for row in np.flatnonzero(tied):
        stages[row] = next(s for s in table[:, row] if s >= 0 and votes[row, s] == most[row]) if voters[row] else -1
    stages = np.where(2 * voters > len(table), stages, -1)
    share = np.divide(most, voters, out=np.zeros(len(most)), where=stages >= 0)
    return Consensus(stages, share)


def scorer_agreement(
    nights: Sequence[Mapping[str, ArrayLike]],
    subject: Sequence[str],
    models: Mapping[str, Sequence[ArrayLike]] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Metric]]:
    """``accuracy``, ``kappa`` and ``macro_f1`` of every scorer and model against the consensus, with intervals over people.

    Args:
        nights: of each night the hypnogram [E] of every scorer by name, the same scorers throughout.
        subject: person of each night.
        models: hypnograms of each night, in the same order, by model.

    Raises:
        ModelError: fewer than three scorers, other scorers in some night, or hypnograms of other lengths.
    """
    scorers = list(nights[0]) if nights else []
    if len(scorers) < 3:
        raise ModelError(f"{len(scorers)} scorers: a consensus that judges each of them needs at least three")
    names, index = np.unique(np.asarray(subject, dtype=str), return_inverse=True)
    who = [*scorers, *(models or {})]
    tables = {name: np.zeros((len(names), K, K)) for name in who}
    for number, night in enumerate(nights):
        if set(night) != set(scorers):
            raise ModelError(f"night {number + 1}: scored by {', '.join(night)}, the first by {', '.join(scorers)}")
        table = _checked([night[name] for name in scorers])
        rank = ranked(table)
        for row, name in enumerate(scorers):
            judge = consensus_of(table[[other for other in rank if other != row]])
            tables[name][index[number]] += _weighted(judge, table[row])
        best = consensus_of(table[rank[:-1]])
        for name, hypnograms in (models or {}).items():
            tables[name][index[number]] += _weighted(best, _checked([hypnograms[number]], table.shape[1])[0])
    counts = subject_counts(len(names), n_boot, seed)
    found = {}
    for name in who:
        confusion = np.tensordot(counts, tables[name], axes=1)
        figures = {"accuracy": agreement.accuracy, "kappa": agreement.kappa, "macro_f1": agreement.macro_f1}
        found[name] = {key: metric_of(figure(confusion), len(names)) for key, figure in figures.items()}
    return found


def _weighted(judge: Consensus, stages: NDArray[np.int64]) -> NDArray[np.float64]:
    """Confusion [K, K] of ``stages`` [E] with a consensus (rows), each epoch by its share of the votes."""
    there = (judge.stages >= 0) & (stages >= 0)
    cells = judge.stages[there] * K + stages[there]
    return np.bincount(cells, judge.share[there], minlength=K * K).reshape(K, K).astype(float)


def _votes(table: NDArray[np.int64]) -> NDArray[np.int64]:
    """Votes [E, K] for each stage of ``table`` [S, E]."""
    return np.stack([(table == stage).sum(axis=0) for stage in range(K)], axis=1)


def _checked(scorings: ArrayLike | Sequence[ArrayLike], length: int | None = None) -> NDArray[np.int64]:
    rows = [np.asarray(row) for row in scorings]  # type: ignore[union-attr]
    lengths = {row.shape for row in rows} | ({(length,)} if length is not None else set())
    if len(lengths) != 1:
        raise ModelError(f"hypnograms of a night have other lengths: {', '.join(map(str, sorted(lengths))) or 'none is there'}")
    table = np.stack(rows).astype(np.int64)
    if table.size and not -1 <= table.min() <= table.max() < K:
        raise ModelError(f"stages from -1 to {K - 1} expected, found {table.min()} to {table.max()}")
    return table
