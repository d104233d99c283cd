"""The registered models and what a user would pick instead, on the same synthetic nights with faults.

    python benchmarks/side_by_side.py [--python OTHER] [--models ADDRESS …] [--nights N] [--hours H] [--seed S] [--json F]
    [--work DIR]

OTHER is an interpreter with YASA and psgscoring (see ``realism.py``); without it the models stand alone. The models are the
champions unless named. The truth is what was drawn. Stages: accuracy, kappa and macro-F1; apneas and hypopneas: F1 at overlaps
of 20 and 50 %; AHI by night: mean error, bias, ICC(2,1), severity class; all with intervals over people. Psgscoring is given
the drawn stages and arousals, so that its AHI is per hour of the drawn sleep; the models have their own. Models that do not
tell events to the second have no AHI: ``not assessed``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from numpy.typing import NDArray
from realism import ask_outside, make_nights

from sleepfm.evaluation.breathing import KINDS
from sleepfm.evaluation.event_figures import ComparedNight, event_metrics
from sleepfm.evaluation.events import ahi, event_family, join_overlapping
from sleepfm.evaluation.intervals import Metric
from sleepfm.evaluation.metrics import Evaluation, evaluate, plain
from sleepfm.evaluation.paired import paired_agreement
from sleepfm.inference.scorer import Scorer, prepare_night
from sleepfm.signals.scorings.scoring import Event
from sleepfm.tasks import TASKS

STAGE_FIGURES = ("accuracy", "kappa", "macro_f1", "majority_accuracy")
Stages = NDArray[np.integer]


def judged_stages(truth: Sequence[Stages], called: Sequence[Stages]) -> Evaluation:
    """What ``called`` is worth: stages [E] by night, each a person of its own; epochs that it leaves unscored do not count."""
    lengths = [min(len(a), len(b)) for a, b in zip(truth, called, strict=True)]
    people = np.repeat(np.arange(len(lengths)), lengths)
    theirs, mine = (np.concatenate([n[:size] for n, size in zip(some, lengths, strict=True)]) for some in (truth, called))
    scored = np.where(mine >= 0, theirs, -1)
    return evaluate(TASKS["stage"], scored, np.eye(5)[np.maximum(mine, 0)], people)


def stage_figures(truth: Sequence[Stages], called: Sequence[Stages]) -> dict[str, Any]:
    """Figures of stages as of :func:`judged_stages`."""
    found = judged_stages(truth, called).metrics
    return {name: asdict(found[name]) for name in STAGE_FIGURES}


def event_figures(
    truth: Sequence[tuple[Stages, Sequence[Event]]], called: Sequence[tuple[Stages, Sequence[Event]]]
) -> dict[str, Any]:
    """Figures of events by kind, and of the AHI; both sides are stages [E] and events by night."""
    everything: dict[str, Any] = {}
    for kind in KINDS:
        nights = [
            ComparedNight(str(n), str(n), _of(kind, mine), _of(kind, theirs), np.ones(len(stages), bool))
            for n, ((stages, theirs), (_, mine)) in enumerate(zip(truth, called, strict=True))
        ]
        found: dict[str, Metric] = event_metrics(nights)
        everything[kind] = {name: asdict(metric) for name, metric in found.items()}
    indices = [[ahi(join_overlapping(events), stages > 0) for stages, events in side] for side in (truth, called)]
    agreement = paired_agreement("ahi", *indices, [str(n) for n in range(len(truth))], unit="1/h", is_ahi=True)
    return everything | {"ahi": agreement.to_dict()}


def _of(kind: str, events: Sequence[Event]) -> tuple[Event, ...]:
    return tuple(event for event in events if event_family(event.type) == kind)


def outside(python: str, work: Path, truth: Sequence[tuple[Stages, Sequence[Event]]]) -> dict[str, Any]:
    """YASA's and psgscoring's figures. Ends the program where ``python`` does not have them."""
    answer = ask_outside(python, work)
    nights = [answer["nights"][name] for name in sorted(answer["nights"])]
    events = [[Event(onset, length, _type_of(kind)) for kind, onset, length in night["events"]] for night in nights]
    return {
        "versions": answer["versions"],
        "yasa": stage_figures([stages for stages, _ in truth], [np.array(night["stages"]) for night in nights]),
        "psgscoring": event_figures(truth, [(stages, found) for (stages, _), found in zip(truth, events, strict=True)]),
    }


def _type_of(kind: str) -> str:
    return "hypopnea" if "hypopnea" in kind else "apnea"


def models(addresses: Sequence[str] | None, work: Path, truth: Sequence[tuple[Stages, Sequence[Event]]]) -> dict[str, Any]:
    """Figures of the registered models, or of packages."""
    scorer = Scorer.load(addresses or None)
    scores = [scorer.score(prepare_night(path.resolve(), "shhs1")) for path in sorted(work.glob("*.edf"))]
    found: dict[str, Any] = {"models": {task: entry.address for task, entry in scorer.models.items()}}
    if "stage" in scorer.models:
        found["stages"] = stage_figures([stages for stages, _ in truth], [score.stages for score in scores])
    if set(KINDS) <= scores[0].event_threshold.keys():
        found["events"] = event_figures(truth, [(score.stages, score.events) for score in scores])
    else:
        found["events"] = "not assessed: no model tells both apneas and hypopneas to the second"
    return found


def tell(result: dict[str, Any], file: Path | None) -> None:
    """Print figures, and write them to ``file`` where one is named."""
    text = json.dumps(plain(result), indent=2)
    print(text)
    if file:
        file.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Print the figures, and write them to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", metavar="OTHER", help="interpreter with yasa and psgscoring")
    parser.add_argument("--models", nargs="+", metavar="ADDRESS", help="instead of the champions")
    parser.add_argument("--nights", type=int, default=12)
    parser.add_argument("--hours", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=1000, help="of nights that no model has seen")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the figures there")
    parser.add_argument("--work", type=Path, metavar="DIR", default=None)
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="side-by-side-"))
    work.mkdir(parents=True, exist_ok=True)
    drawn = make_nights(work, arguments.nights, arguments.hours, arguments.seed, clean=False)
    truth = [(stages, [Event(e.onset, e.duration, e.kind) for e in events]) for stages, events in drawn]
    result: dict[str, Any] = {
        "machine": describe(),
        "recipe": {"nights": arguments.nights, "hours": arguments.hours, "seed": arguments.seed, "cohort": "shhs1"},
        "ours": models(arguments.models, work, truth),
    }
    if arguments.python:
        result |= outside(arguments.python, work, truth)
    tell(result, arguments.json)


if __name__ == "__main__":
    main()
