"""The consensus of several scorers, on the openly licensed hypnograms of five scorers and on tables made by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score

from sleepfm.errors import ModelError
from sleepfm.evaluation.consensus import consensus_of, ranked, scorer_agreement, soft_agreement

SCORERS = Path(__file__).parents[3] / "shared" / "data" / "dreem-dod-hypnograms" / "scorers"


def slow_consensus(scorings):
    """Epoch by epoch, by a counter of votes; the most reliable scorer comes first."""
    stages, shares = [], []
    for column in zip(*scorings, strict=True):
        votes = Counter(stage for stage in column if stage >= 0)
        if 2 * sum(votes.values()) <= len(column):
            stages.append(-1)
            shares.append(0.0)
            continue
        most = max(votes.values())
        stages.append(next(stage for stage in column if votes.get(stage, 0) == most and stage >= 0))
        shares.append(most / sum(votes.values()))
    return stages, shares


def test_a_tie_goes_to_the_most_reliable_and_missing_votes_are_no_votes():
    found = consensus_of([[0, 1, 2, -1, -1, 3], [0, 2, 2, 4, -1, 3], [1, 2, 3, 4, -1, -1], [1, 1, 4, -1, 2, -1]])
    assert found.stages.tolist() == [0, 1, 2, -1, -1, -1]
    assert found.share.tolist() == [0.5, 0.5, 0.5, 0.0, 0.0, 0.0]
    # The stage of the first scorer is not among those that tie: the next one decides.
    assert consensus_of([[4], [1], [2], [2], [1]]).stages.tolist() == [1]


@pytest.mark.parametrize("seed", range(4))
def test_consensus_equals_the_slow_count(seed):
    rng = np.random.default_rng(seed)
    table = rng.integers(-1, 5, (seed + 2, 300))
    found = consensus_of(table)
    stages, shares = slow_consensus(table.tolist())
    assert found.stages.tolist() == stages and found.share.tolist() == pytest.approx(shares)


def test_soft_agreement_by_hand():
    others = [[0, 1, 2, -1], [0, 2, 2, -1], [1, 2, 2, -1]]
    assert soft_agreement([0, 1, 3, 2], others) == pytest.approx((1 + 0.5 + 0) / 3)
    assert np.isnan(soft_agreement([-1, -1, -1, 2], others))
    assert ranked([[0, 0, 0, 0], [0, 0, 0, 1], [2, 2, 2, 2]]) == [0, 1, 2]


def test_other_lengths_and_unknown_stages_are_refused():
    with pytest.raises(ModelError, match="other lengths"):
        consensus_of([[0, 1], [0]])
    with pytest.raises(ModelError, match="from -1 to 4 expected, found 0 to 5"):
        consensus_of([[0, 5]])
    with pytest.raises(ModelError, match="at least three"):
        scorer_agreement([{"a": [0], "b": [1]}], ["p"])
    with pytest.raises(ModelError, match="night 2: scored by a, b, d"):
        scorer_agreement([{"a": [0], "b": [1], "c": [1]}, {"a": [0], "b": [1], "d": [1]}], ["p", "q"])


@pytest.mark.skipif(not SCORERS.is_dir(), reason="the hypnograms of the Dreem Open Datasets are not here")
def test_five_scorers_of_healthy_sleepers_agree_as_an_independent_count_says():
    folders = sorted((SCORERS / "dodh").iterdir())
    records = sorted(path.name for path in folders[0].glob("*.json"))
    nights = [{folder.name: json.loads((folder / name).read_text()) for folder in folders} for name in records]
    majority = [consensus_of([night[folder.name] for folder in folders]).stages for night in nights]
    got = scorer_agreement(nights, records, {"majority": majority}, n_boot=200)
    assert len(nights) == 25 and list(got) == [*(folder.name for folder in folders), "majority"]
    for folder in folders:
        truth, called, weight = [], [], []
        for night in nights:
            names = [f.name for f in folders]
            order = ranked([night[name] for name in names])
            judges = [names[row] for row in order if names[row] != folder.name]
            stages, shares = slow_consensus([night[name] for name in judges])
            for stage, share, own in zip(stages, shares, night[folder.name], strict=True):
                if stage >= 0 and own >= 0:
                    truth.append(stage)
                    called.append(own)
                    weight.append(share)
        found = got[folder.name]
        assert found["accuracy"].value == pytest.approx(accuracy_score(truth, called, sample_weight=weight))
        assert found["kappa"].value == pytest.approx(cohen_kappa_score(truth, called, sample_weight=weight))
        assert found["macro_f1"].value == pytest.approx(f1_score(truth, called, average="macro", sample_weight=weight))
        assert found["kappa"].ci_low < found["kappa"].value < found["kappa"].ci_high and found["kappa"].note == ""
    # People agree well, not perfectly; and no single one as well as all of them together.
    kappas = [got[folder.name]["kappa"].value for folder in folders]
    assert min(kappas) > 0.7 and max(kappas) < 0.95 and got["majority"]["kappa"].value > max(kappas)
