"""Something can be learnt from the synthetic cohort, and not everything: plain trees on hand-made features of EEG, EOG, EMG and
ECG find stages, apneas and hypopneas of unseen subjects.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sleepfm.synthetic.night import draw_night

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import difficulty


@pytest.mark.slow
def test_unseen_subjects_are_scored_well_but_not_perfectly():
    nights = [draw_night(1, number, 240) for number in range(24)]
    found_in = [difficulty.features(night) for night in nights]
    found = difficulty.judged(nights, found_in, ("EEG", "EOG", "EMG", "ECG"), cut=16)
    assert 0.70 < found["stage"]["kappa"] < 0.92
    for task, least in (("apnea", 0.85), ("hypopnea", 0.75)):
        assert least < found[task]["auroc"] < 0.98
