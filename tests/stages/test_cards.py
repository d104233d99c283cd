"""What a model card of a downstream task says."""

from __future__ import annotations

import numpy as np

from sleepfm.evaluation.metrics import evaluate
from sleepfm.stages.model_cards import downstream_card
from sleepfm.tasks import TASKS


def figures(called: list[int], subjects: str):
    """Of four epochs, the first two with an apnea."""
    return evaluate(TASKS["apnea"], [1, 1, 0, 0], np.eye(2)[called], list(subjects), n_boot=50)


def rows(card: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in cells}


def test_a_card_holds_the_facts_and_the_figures_of_both_splits_side_by_side():
    validation, test = figures([1, 0, 0, 0], "aaaa"), figures([1, 1, 0, 0], "aabb")
    found = rows(downstream_card("Apnea", {"task": "apnea", "size": 7}, validation, test))
    assert found["task"] == ["apnea"] and found["size"] == ["7"]
    assert found["accuracy"] == ["0.750", "1.000 (1.000–1.000)"]
    assert found["sensitivity"] == ["0.500", found["sensitivity"][1]] and found["sensitivity"][1].startswith("1.000")


def test_a_card_without_test_says_so_and_what_is_undefined_has_its_reason():
    none = evaluate(TASKS["apnea"], [0, 0], np.eye(2)[[0, 1]], ["a", "b"], n_boot=50)
    card = downstream_card("Apnea", {}, none, None)
    assert card.startswith("# Apnea\n") and "{} 1.000, {} 0.000.".format(*TASKS["apnea"].classes) in card
    assert rows(card)["auroc"] == [f"undefined ({TASKS['apnea'].classes[1]} absent in truth)", "–"]
    assert {row[1] for row in rows(card).values() if len(row) == 2 and row[0] != "val"} == {"–"}
