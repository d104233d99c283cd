"""What a laboratory gets, on a synthetic cohort whose nights have the faults of real ones: every figure beside its bar.

    python benchmarks/laboratory.py [--out runs/laboratory] [--json FILE] [--miniature] [key=value …]

Makes the cohort (48 people), shards, the five networks and SynthSleepNet at tiny size, heads for stages, arousals and breathing
events, the last with and without respiratory channels, and heads from 5 % of the labels on pretrained and on random weights; at
most an hour on two cores (``configs/demo/laboratory.yaml``). The steps are the demo's, and so is what runs them: stopped, it
goes on where it was. Figures are of the people of ``test``, whom nothing has seen; thresholds are chosen on ``val``. They go to
``--json``, by default ``laboratory-DATE.json`` in ``--out``. Status 1: a bar is not reached. ``--miniature`` shows that every
step works, and its figures mean nothing. Figures of 5 % of the labels are means over five draws of people, of whom 5 % is one
here; those of five draws of epochs stand beside them. Features of random weights are badly scaled for a linear head, so that
for pretrained and random weights alike the better of one and of the paper's head, which normalises, counts.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import describe

from sleepfm.config import digest, load_config, to_dict
from sleepfm.constants import CHANNEL_MODALITY
from sleepfm.data.dataset import Dataset
from sleepfm.demo.runner import Journal, Runner, Step
from sleepfm.demo.steps import EVENTS, MODALITIES, DemoConfig, Plan
from sleepfm.evaluation.metrics import plain
from sleepfm.files import write_json
from sleepfm.lock import only_writer

FEW, DRAWS, SEED = 0.05, 5, 1
PAPERS_HEAD, RANDOM_PAPERS_HEAD = "few-labels-papers-head", "few-labels-random-papers-head"
# Overlap at which an event is found.
IOU = 0.2


@dataclass(frozen=True)
class Bar:
    """A figure, what it has to be, and whether it is; undefined ones are not."""

    what: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def holds(self) -> bool:
        if math.isnan(self.value):
            return False
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    def __str__(self) -> str:
        sides = [f">= {self.least:g}"] if self.least is not None else []
        sides += [f"<= {self.most:g}"] if self.most is not None else []
        return f"{self.what:<58}{self.value:>8.3f}  {' and '.join(sides):<18}{'' if self.holds else 'NOT REACHED'}".rstrip()


class Laboratory(Plan):
    """The demo's plan with the heads that it has no need of."""

    def address(self, name: str) -> str:
        """By version: what another of these jobs promotes changes nothing."""
        result = self.result(name)
        return f"models:/{result['name']}/{result['version']}"

    @property
    def n_steps(self) -> int:
        return 2 + len(self.trained) + 2 + 2 * len(EVENTS) + 1 + 4 + 2 * DRAWS

    def arousals(self) -> Step:
        """An event head for arousals on SynthSleepNet, which sees the EEG."""
        overrides = [f"encoder={self.address('pretrain-multimodal')}", self.cached("frames-without"), *self.config.events]
        return self._train("events-arousal", "finetune", "downstream/events-arousal-tiny", overrides)

    def without_breathing(self, task: str) -> Step:
        """An event head for ``task`` on SynthSleepNet, whose channels are none of breathing."""
        from sleepfm.registry.registry import load_package

        encoder = self.address("pretrain-multimodal")
        channels = ", ".join(load_package(encoder).module.channels)
        overrides = [f"encoder={encoder}", f"events.amplitudes=[{channels}]", self.cached("frames-without")]
        return self._train(f"without-{task}", "finetune", f"downstream/events-{task}-tiny", [*overrides, *self.config.events])

    def random_weights(self) -> Step:
        """A SynthSleepNet as the pretrained one, but for its weights."""
        words = ["--random-weights", self.address("pretrain-multimodal"), str(self.random_encoder)]
        return Step("random-weights", [sys.executable, str(Path(__file__).resolve()), *words])

    @property
    def random_encoder(self) -> Path:
        return self.folder / "random-weights"

    def few_labels(self, name: str, encoder: str, draw: str = "people") -> Step:
        """Linear heads for stages on ``encoder`` from few labels and from all."""
        curve = f"curve={{fractions: [{FEW}, 1.0], seeds: {DRAWS}, draw: {draw}}}"
        return self._probe(name, "few-labels-stage-tiny", encoder, curve)

    def papers_head(self, name: str, encoder: str, draw: int) -> Step:
        """The paper's head for stages on ``encoder`` from few labels, those of one ``draw`` of people."""
        few = (f"data.label_fraction={FEW}", f"data.label_seed={draw}")
        return self._probe(f"{name}-{draw}", "probe-stage-tiny", encoder, *few)


def steps(plan: Laboratory) -> Iterator[Step]:
    """Every command in order; a later one is asked for once those before it are done."""
    yield plan.synth()
    yield plan.build()
    for modality in (*MODALITIES, "RESP"):
        yield plan.pretrain(modality)
    yield plan.multimodal()
    yield plan.probe("stage")
    yield plan.finetune()
    for task in EVENTS:
        yield plan.events(task)
    for task in EVENTS:
        yield plan.without_breathing(task)
    yield plan.arousals()
    yield plan.few_labels("few-labels", plan.address("pretrain-multimodal"))
    yield plan.few_labels("few-labels-epochs", plan.address("pretrain-multimodal"), "epochs")
    yield plan.random_weights()
    yield plan.few_labels("few-labels-random", str(plan.random_encoder))
    for draw in range(DRAWS):
        yield plan.papers_head(PAPERS_HEAD, plan.address("pretrain-multimodal"), draw)
        yield plan.papers_head(RANDOM_PAPERS_HEAD, str(plan.random_encoder), draw)


def random_weights(address: str, folder: Path) -> None:
    """Write a package of the model at ``address`` with weights as they are before any training."""
    import torch

    from sleepfm.models.build import build_model, model_config
    from sleepfm.registry.package import write_package
    from sleepfm.registry.registry import load_package

    if folder.is_dir():
        return  # whole, since it is renamed to this name
    torch.manual_seed(SEED)
    model = build_model(model_config(load_package(address).module))
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
    write_package(unfinished, model, {"model": model_config(model)}, "# Random weights\n\nFor comparison with pretrained ones.\n")
    unfinished.rename(folder)


def kappa(plan: Laboratory, name: str, split: str = "test") -> float:
    """Of the stages of the job ``name``."""
    from sleepfm.stages.run_results import read_results

    _, results = read_results(plan.output(name))
    return float(results[split].metrics["kappa"].value)


def curve(plan: Laboratory, name: str) -> tuple[dict[str, float], dict[str, float]]:
    """The points of the label curve of the job ``name``: over the draws of few labels, and of all."""
    from sleepfm.stages.label_curve import read_curve
    from sleepfm.training.folder import RunFolder

    few, every = read_curve(RunFolder(plan.output(name)).label_curve)["summary"]
    return few, every


def few_labels(plan: Laboratory) -> dict[str, Any]:
    """Kappa of stages on ``test`` from few labels and from all."""
    (few, every), (random, of_all), (epochs, _) = (
        curve(plan, name) for name in ("few-labels", "few-labels-random", "few-labels-epochs")
    )
    with_papers_head = {
        name: [kappa(plan, f"{name}-{draw}") for draw in range(DRAWS)] for name in (PAPERS_HEAD, RANDOM_PAPERS_HEAD)
    }
    papers_head, random_papers_head = (sum(found) / DRAWS for found in with_papers_head.values())
    return {
        "fraction": FEW,
        "all_labels": every["kappa"],
        "pretrained": few["kappa"],
        "pretrained_papers_head": papers_head,
        "random_weights_linear": random["kappa"],
        "random_weights_linear_all_labels": of_all["kappa"],
        "random_weights_papers_head": random_papers_head,
        # Of each encoder with the better of the two heads.
        "over_random_weights": max(few["kappa"], papers_head) - max(random["kappa"], random_papers_head),
        "pretrained_epochs_of_everybody": epochs["kappa"],
        "draws": {"pretrained": few, "random_weights": random, "pretrained_epochs_of_everybody": epochs} | with_papers_head,
    }


def events(plan: Laboratory, job: str) -> dict[str, Any]:
    """Figures of what the event head ``job`` finds on ``test``."""
    from sleepfm.stages.run_results import read_event_results

    return read_event_results(plan.output(job))["test"].to_dict()


def breathing(plan: Laboratory, jobs: Sequence[str], stagers: Sequence[str]) -> dict[str, Any]:
    """Figures of events and of the AHI on ``test``, of the event heads ``jobs`` and the stages of the best of ``stagers``."""
    from sleepfm.stages.whole_nights import ahi_of_jobs

    found: dict[str, Any] = {}
    for task, job in zip(EVENTS, jobs, strict=True):
        found[task] = events(plan, job)
    ahi, missing = ahi_of_jobs([plan.output(name) for name in (*stagers, *jobs)], Dataset.open(plan.shards))
    return found | {"ahi": plain(ahi.to_dict()) if ahi is not None else {"not_assessed": missing}}


def by_modalities(plan: Laboratory, stager: str) -> dict[str, float]:
    """Kappa of the stages of ``stager`` on ``test`` with all its modalities, and with each alone."""
    from sleepfm.inference.subsets import modality_subsets
    from sleepfm.inference.task_model import TaskModel

    entry = TaskModel.load(plan.address(stager))
    known = tuple(dict.fromkeys(CHANNEL_MODALITY[name] for name in entry.model.channels))
    found = modality_subsets(entry, Dataset.open(plan.shards), "test", [known, *((name,) for name in known)])
    return {" ".join(result.modalities): result.evaluation.metrics["kappa"].value for result in found}


def bars(figures: dict[str, Any]) -> list[Bar]:
    """Every figure that has a bar."""
    found = figures["breathing"]
    events = {task: found[task]["metrics"] for task in EVENTS}
    ahi, few, subsets = found["ahi"], figures["few_labels"], figures["kappa_by_modalities"]
    every, *single = subsets.values()
    return [
        Bar("kappa of stages", figures["kappa"], least=0.80),
        Bar(f"F1 of apneas, at an overlap of {IOU:.0%}", _value(events["apnea"], f"f1_iou_{IOU:g}"), least=0.85),
        Bar(f"F1 of hypopneas, at an overlap of {IOU:.0%}", _value(events["hypopnea"], f"f1_iou_{IOU:g}"), least=0.70),
        Bar("error of an apnea's onset, s", _value(events["apnea"], "onset_error_s"), most=3.0),
        Bar("error of a hypopnea's onset, s", _value(events["hypopnea"], "onset_error_s"), most=3.0),
        Bar("ICC of the AHI", _value(ahi, "icc"), least=0.95),
        Bar("bias of the AHI, 1/h", _value(ahi, "bias"), least=-1.5, most=1.5),
        Bar("severity class right", _value(ahi.get("severity") or {}, "accuracy"), least=0.90),
        Bar(f"kappa that {FEW:.0%} of the labels lose", few["all_labels"] - few["pretrained"], most=0.10),
        Bar(f"kappa over random weights, {FEW:.0%} of the labels", few["over_random_weights"], least=0.10),
        Bar("kappa of all modalities over the best single one", every - max(single), least=0.001),
    ]


def _value(figures: dict[str, Any], name: str) -> float:
    value = figures.get(name, {}).get("value")
    return math.nan if value is None else float(value)


def measure(plan: Laboratory) -> dict[str, Any]:
    """All figures, once every step is done."""
    stagers = ("probe-stage", "finetune-stage")
    best = max(stagers, key=lambda name: kappa(plan, name, "val"))
    return {
        "kappa": kappa(plan, best),
        "stager": best,
        "breathing": breathing(plan, [f"events-{task}" for task in EVENTS], stagers),
        "breathing_without_respiratory_channels": breathing(plan, [f"without-{task}" for task in EVENTS], stagers),
        "arousals": events(plan, "events-arousal"),
        "few_labels": few_labels(plan),
        "kappa_by_modalities": by_modalities(plan, best),
    }


def run(arguments: argparse.Namespace) -> int:
    """Every step, the figures, and the file of them."""
    name = "laboratory-miniature" if arguments.miniature else "laboratory"
    config = load_config(DemoConfig, f"demo/{name}.yaml", arguments.overrides)
    out = arguments.out.absolute()
    # Models of its own: those of a user's store are neither compared with these nor moved by them.
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{out / 'mlflow.db'}"
    plan = Laboratory(config, out, SEED, None)
    journal = Journal.open(out, digest({"config": to_dict(config), "seed": SEED}))
    with only_writer(out):
        runner = Runner(out, journal, lambda: plan.n_steps)
        for step in steps(plan):
            runner.run(step)
        figures = measure(plan)
    found = bars(figures)
    for bar in found:
        print(bar)
    file = arguments.json or out / f"laboratory-{datetime.date.today().isoformat()}.json"
    content = {
        "config": to_dict(config),
        "bars": [plain(asdict(bar)) | {"holds": bar.holds} for bar in found],
        "figures": plain(figures),
        "step_seconds": {name: done.seconds for name, done in journal.steps.items()},
        "machine": describe(),
    }
    write_json(file, content)
    print(f"{sum(content['step_seconds'].values()) / 60:.0f} minutes of steps -> {file}")
    return 0 if arguments.miniature or all(bar.holds for bar in found) else 1


def main() -> int:
    """Parse and run."""
    if sys.argv[1:2] == ["--random-weights"]:
        random_weights(sys.argv[2], Path(sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/laboratory"), help="folder for everything that is made")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--miniature", action="store_true", help="every step, in minutes; its figures mean nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="on top of configs/demo/laboratory.yaml")
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
