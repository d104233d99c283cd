"""A learning curve: what linear heads on frozen embeddings reach on ``test`` from a share of the labels, over several draws.

Each point is what the probe with that ``data.label_fraction`` and ``data.label_seed`` would choose: pair of learning rate and
weight decay, and the threshold of two classes, by the labels of ``val`` that were drawn in proportion.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sleepfm.errors import TrainingError
from sleepfm.evaluation import agreement
from sleepfm.evaluation.intervals import metric_of, subject_counts
from sleepfm.evaluation.metrics import plain
from sleepfm.evaluation.predictions import Predictions
from sleepfm.files import read_json, write_json
from sleepfm.stages.downstream_config import CurveConfig, EvaluateConfig, LabelledData
from sleepfm.tasks import Task
from sleepfm.training.ranks.shared_work import SharedWork


@dataclass(frozen=True)
class Point:
    """What one draw gave.

    Attributes:
        missing: classes without a label among those drawn of ``label``.
        confusion: [S, K, K], of every person of ``test``: rows are truth.
    """

    data: LabelledData
    people: int
    epochs: int
    val_people: int
    val_epochs: int
    missing: tuple[str, ...]
    lr: float
    weight_decay: float
    confusion: NDArray[np.float64]


def draws(data: LabelledData, curve: CurveConfig) -> list[LabelledData]:
    """The labels of every point, by fraction and seed; all labels are drawn in one way only."""
    found = []
    for fraction in sorted(set(curve.fractions)):
        for seed in range(curve.seeds if fraction < 1 else 1):
            asked = {"label_fraction": fraction, "label_seed": seed, "label_draw": curve.draw}
            found.append(LabelledData.model_validate(data.model_dump() | asked))
    return found


def confusion_by_person(task: Task, predictions: Predictions, threshold: float) -> NDArray[np.float64]:
    """Confusion matrices [S, K, K] of the scored epochs of ``predictions``, by person in the order of their keys."""
    scored = predictions.scored & (predictions.truth >= 0)
    truth, probability = predictions.truth[scored], predictions.probability[scored]
    named = (probability[:, 1] >= threshold).astype(int) if task.kind == "binary" else probability.argmax(1)
    people, index = np.unique(predictions.subject[scored].astype(str), return_inverse=True)
    size = len(task.classes)
    flat = (index * size + truth) * size + named
    return np.bincount(flat, minlength=len(people) * size**2).reshape(-1, size, size).astype(float)


def measure_curve(wanted: Sequence[LabelledData], work: SharedWork, point: Callable[[LabelledData], Point]) -> list[Point]:
    """What ``point`` gives for each of ``wanted``, which the ranks divide; on rank 0. Every rank calls this."""

    def own(share: range) -> Iterable[tuple[Tensor, ...]]:
        for number in share:
            found = point(wanted[number])
            facts = {
                name: getattr(found, name)
                for name in ("people", "epochs", "val_people", "val_epochs", "missing", "lr", "weight_decay")
            }
            text = np.frombuffer(json.dumps(facts).encode(), np.uint8).copy()
            yield torch.from_numpy(text), torch.from_numpy(found.confusion)

    # A head costs the same number of steps whatever it learns from, where steps are stated.
    found = work.each("points of the learning curve", [1] * len(wanted), own)
    points = []
    for data, (text, confusion) in zip(wanted, found, strict=work.world.is_main):
        facts = json.loads(text.numpy().tobytes())
        points.append(Point(data, **(facts | {"missing": tuple(facts["missing"])}), confusion=confusion.numpy()))
    return points


def write_curve(path: Path, task: Task, curve: CurveConfig, points: Sequence[Point], evaluate: EvaluateConfig) -> None:
    """Write ``points`` and, of each fraction, the mean over its seeds, with 95 % intervals over people of ``test``.

    Of a mean the interval is over people alone, drawn alike for all seeds; ``lowest`` and ``highest`` say how far seeds differ.
    """
    rows: list[dict[str, Any]] = []
    resampled: dict[float, list[NDArray[np.float64]]] = {}
    people = len(points[0].confusion)
    counts = subject_counts(people, evaluate.resamples, evaluate.seed)
    for point in points:
        confusion = np.tensordot(counts, point.confusion, axes=1)
        kappas = agreement.kappa(confusion)
        resampled.setdefault(point.data.label_fraction, []).append(kappas)
        kappa = metric_of(kappas, people, undefined="the head names one class only")
        f1 = metric_of(agreement.macro_f1(confusion), people)
        rows.append(
            {
                "fraction": point.data.label_fraction,
                "seed": point.data.label_seed,
                "people": point.people,
                "epochs": point.epochs,
                "val_people": point.val_people,
                "val_epochs": point.val_epochs,
                "classes_without_label": list(point.missing),
                "lr": point.lr,
                "weight_decay": point.weight_decay,
                "kappa": kappa.value,
                "kappa_low": kappa.ci_low,
                "kappa_high": kappa.ci_high,
                "macro_f1": f1.value,
                "macro_f1_low": f1.ci_low,
                "macro_f1_high": f1.ci_high,
                "note": kappa.note,
            }
        )
    summary = []
    for fraction, columns in resampled.items():
        mean = metric_of(np.mean(columns, axis=0), people, undefined="undefined for a seed")
        values = [float(column[0]) for column in columns]
        summary.append(
            {
                "fraction": fraction,
                "seeds": len(columns),
                "kappa": mean.value,
                "kappa_low": mean.ci_low,
                "kappa_high": mean.ci_high,
                "lowest": min(values) if not any(map(math.isnan, values)) else math.nan,
                "highest": max(values) if not any(map(math.isnan, values)) else math.nan,
                "note": mean.note,
            }
        )
    content = {"task": task.name, "split": "test", "test_people": people, "draw": curve.draw, "points": rows, "summary": summary}
    write_json(path, plain(content))


def read_curve(path: Path) -> dict[str, Any]:
    """What :func:`write_curve` wrote: ``points`` is a list of rows with ``fraction``, ``seed`` and ``kappa``.

    Raises:
        TrainingError: it cannot be read, or is not what a probe writes.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path}: cannot be read ({error}); it is damaged: measure the curve again") from error
    if not isinstance(content, dict) or not {"task", "points", "summary"} <= content.keys():
        raise TrainingError(f"{path}: is not a learning curve; run a probe with a `curve` section")
    return dict(content)
