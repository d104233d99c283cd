"""Fit ``scorers.yaml`` to nights that five people scored: ``python -m sleepfm.synthetic.variety.fit_scorers DREEM``.

``DREEM`` is as :mod:`sleepfm.synthetic.fit` has it. Each scorer is compared with the majority of the other four; epochs without
one, or without a stage, are left out. Prints the file's content.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import multivariate_normal

from sleepfm.console import exit_with
from sleepfm.constants import STAGE_NAMES
from sleepfm.errors import UsageError
from sleepfm.synthetic.variety.scorer import distance_to_change

DISTANCES = (1, 2, 3, 5, 11)
# Fewer epochs than these are counted with those of the next nearer bucket.
LEAST_EPOCHS = 200
_QUADRATURE = 64


def scored_nights(folder: Path) -> Iterator[list[NDArray[np.int8]]]:
    """The hypnograms of one night after another, one a scorer, cut to the shortest. Raises :class:`UsageError`."""
    for group in ("dodh", "dodo"):
        scorers = sorted((folder / "scorers" / group).glob("scorer_*"))
        if not scorers:
            raise UsageError(f"{folder}: no scorers/{group}/scorer_*; give the folder of the Dreem hypnograms")
        for name in sorted(path.name for path in scorers[0].glob("*.json")):
            nights = [np.array(json.loads((scorer / name).read_text()), dtype=np.int8) for scorer in scorers]
            length = min(map(len, nights))
            yield [night[:length] for night in nights]


def majority(nights: Sequence[NDArray[np.int8]]) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """The stage [E] that most scorers call, the first of several, and where two at least call it and more than any other."""
    counts = np.stack([(np.stack(nights) == code).sum(axis=0) for code in range(len(STAGE_NAMES))])
    alone = (counts == counts.max(axis=0)).sum(axis=0) == 1
    return counts.argmax(axis=0).astype(np.int8), alone & (counts.max(axis=0) >= 2)


def fit(nights: Iterator[list[NDArray[np.int8]]]) -> dict[str, object]:
    """The content of ``scorers.yaml``."""
    size = len(STAGE_NAMES)
    counts = np.zeros((size, len(DISTANCES), size), dtype=np.int64)
    disagreed: list[float] = []
    runs = np.zeros(2)
    for scorers in nights:
        for number, mine in enumerate(scorers):
            truth, clear = majority([other for place, other in enumerate(scorers) if place != number])
            bucket = np.searchsorted(DISTANCES, distance_to_change(truth), side="right") - 1
            both = clear & (mine >= 0)
            np.add.at(counts, (truth[both], bucket[both], mine[both]), 1)
            wrong = both & (mine != truth)
            disagreed.append(float(wrong.sum() / both.sum()))
            same = both[1:] & both[:-1] & (truth[1:] == truth[:-1])
            runs += (wrong[:-1] & same).sum(), (wrong[:-1] & wrong[1:] & same).sum()
    mean, spread, again = float(np.mean(disagreed)), float(np.std(disagreed)), float(runs[1] / runs[0])
    night = _night(mean, spread)
    return {
        "distances": list(DISTANCES),
        "called": {
            name: [_row(counts[stage], place) for place in range(len(DISTANCES))] for stage, name in enumerate(STAGE_NAMES)
        },
        "night": round(night, 2),
        "memory": round((_correlation(mean, again) - night**2) / (1.0 - night**2), 2),
    }


def _row(counts: NDArray[np.int64], place: int) -> list[float]:
    """Probabilities of the calls in one bucket."""
    used = counts[place].copy()
    while used.sum() < LEAST_EPOCHS and place > 0:
        place -= 1
        used += counts[place]
    return [round(float(value), 3) for value in used / used.sum()]


def _night(mean: float, spread: float) -> float:
    """The part of a standard normal that a night has for itself, so that shares beyond one bound spread over nights like this."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_QUADRATURE)
    bound = ndtri(1.0 - mean)

    def excess(own: float) -> float:
        shares = ndtr((own * nodes - bound) / np.sqrt(1.0 - own * own))
        return float(np.sqrt(np.average((shares - mean) ** 2, weights=weights))) - spread

    return float(brentq(excess, 0.0, 0.99))


def _correlation(mean: float, again: float) -> float:
    """Of two standard normals, so that one is beyond the bound of a share ``mean`` in ``again`` of the cases where the other
    is."""
    bound = ndtri(mean)

    def excess(correlation: float) -> float:
        both = multivariate_normal.cdf([bound, bound], mean=[0.0, 0.0], cov=[[1.0, correlation], [correlation, 1.0]])
        return float(both / mean) - again

    return float(brentq(excess, 0.0, 0.999))


def main(argv: Sequence[str]) -> int:
    """Print the fitted statistics of the folder as YAML."""
    if len(argv) != 1:
        raise UsageError("usage: python -m sleepfm.synthetic.variety.fit_scorers DREEM_DIR")
    print(yaml.safe_dump(fit(scored_nights(Path(argv[0]))), sort_keys=False, default_flow_style=None, width=110))
    return 0


if __name__ == "__main__":
    sys.exit(exit_with(lambda: main(sys.argv[1:])))
