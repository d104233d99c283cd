"""What dead time costs the rest of a night: stages, AHI and scale with a recorder left running, electrodes off, rails.

``python benchmarks/dead_time.py OUT.json`` makes four synthetic nights, trains the context and heads of a tiny scorer on three of
them (over an encoder of random weights, so that it takes minutes), and scores the fourth with every kind of dead stretch at every
place. For each it tells the share of the other epochs whose stage stays, kappa against the human scoring, and the AHI per hour of
good sleep. Dead time around the night is compared with the night alone. Dead time in its place is compared with the night alone
(``clean``) and with one of which the same stretch was never recorded, a gap: signal that is lost changes what is left, its scale
and the context of its neighbours. Bar: 99 % of the stages, and the AHI within 5 %, of the night alone or with the gap.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from dead_stretches import surrounded, with_dead

from sleepfm.config import read_yaml
from sleepfm.constants import EPOCH_SECONDS
from sleepfm.inference.embed import embed, prepared_epochs
from sleepfm.inference.night_score import NightScore
from sleepfm.inference.scorer import Scorer, prepare_night
from sleepfm.inference.task_model import TaskModel
from sleepfm.models.build import build_model, model_config
from sleepfm.models.context import ContextConfig
from sleepfm.models.downstream import Downstream, DownstreamConfig, TuneConfig
from sleepfm.models.heads import HeadConfig
from sleepfm.models.usage import Usage
from sleepfm.paths import config_root
from sleepfm.signals.prepare import PreparedRecording
from sleepfm.signals.recording import Recording, read_recording
from sleepfm.synthetic.cohort import write_cohort
from sleepfm.tasks import TASKS

KINDS = ("zeros", "open input", "mains", "rail")
LENGTH, STEPS = 20, 120


def trained_scorer(nights: list[PreparedRecording]) -> Scorer:
    """A scorer whose context and heads are trained on ``nights``."""
    torch.manual_seed(0)
    encoder = build_model(read_yaml(config_root() / "models" / "synthsleepnet-tiny.yaml")["model"]).eval()
    embedded = [embed(encoder, prepared_epochs(night, encoder.channels, 64)) for night in nights]
    models = []
    for name, task in TASKS.items():
        config = DownstreamConfig(
            task=name,
            classes=task.classes,
            encoder=model_config(encoder),
            tune=TuneConfig(mode="frozen"),
            context=ContextConfig(kind="mamba"),
            head=HeadConfig(hidden=64, dropout=0.2),
        )
        model = Downstream(config, encoder).train()
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
        labels = [torch.from_numpy((night.stage if name == "stage" else night.labels[name]).astype(np.int64)) for night in nights]
        generator = torch.Generator().manual_seed(1)
        for _ in range(STEPS):
            rows, truth = [], []
            for _ in range(8):
                number = int(torch.randint(len(nights), (1,), generator=generator))
                first = int(torch.randint(len(labels[number]) - LENGTH, (1,), generator=generator))
                rows.append(embedded[number][first : first + LENGTH])
                truth.append(labels[number][first : first + LENGTH])
            logits = model.classify(torch.stack(rows)).flatten(0, 1)
            loss = F.cross_entropy(logits, torch.cat(truth), ignore_index=-1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        usage = Usage(task=name, classes=task.classes, window=LENGTH, threshold=0.5 if task.kind == "binary" else None)
        models.append(TaskModel(model.eval(), usage, f"trained here, {name}"))
    return Scorer(models)


def index(score: NightScore, epochs: np.ndarray) -> float:
    """Apneas and hypopneas that begin in ``epochs`` [E] scored as sleep, per hour of these."""
    asleep = epochs & (score.stages > 0)
    begun = [int(event.onset // EPOCH_SECONDS) for event in score.events]
    return sum(bool(asleep[epoch]) for epoch in begun) / max(asleep.sum() * EPOCH_SECONDS / 3600, 1e-9)


def scenarios(recording: Recording, kind: str) -> list[tuple[str, Recording, Recording | None, int, np.ndarray]]:
    """Name, recording, the same with a gap, epochs before the night's first, and which epochs of the night are alive."""
    n_epochs = int(recording.duration // EPOCH_SECONDS)
    hour = n_epochs / recording.duration * 3600
    found = []
    for name, share, places in (
        ("start", 0.25, [0.0]),
        ("middle", 0.25, [0.4]),
        ("end", 0.5, [0.5]),
        ("five", 0.05, [0.08, 0.27, 0.46, 0.65, 0.84]),
    ):
        stretches = [(place * recording.duration + 11.3 * bool(place), share * recording.duration, kind) for place in places]
        alive = np.ones(n_epochs, bool)
        for onset, duration, _ in stretches:
            alive[int(onset // EPOCH_SECONDS) : int(np.ceil((onset + duration) / EPOCH_SECONDS))] = False
        # Whole seconds, so that what follows a gap is resampled on the same grid.
        gaps = [(float(onset // 1), float(onset % 1 + duration) // 1 + 1, "gap") for onset, duration, _ in stretches]
        changed, gap = with_dead(recording, stretches), with_dead(recording, gaps)
        found.append((f"{name}, {share * len(places):.0%}", changed, gap, 0, alive))
    everything = np.ones(n_epochs, bool)
    before = int(hour / 2) * EPOCH_SECONDS
    found.append(("after, 100%", surrounded(recording, 0, recording.duration, kind), None, 0, everything))
    around = surrounded(recording, before, 2 * recording.duration - before, kind)
    found.append(("around, 200%", around, None, before // EPOCH_SECONDS, everything))
    return found


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Cohen's kappa."""
    from sklearn.metrics import cohen_kappa_score

    return float(cohen_kappa_score(first, second))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hours", type=float, default=4.0)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_cohort(Path(folder), 4, arguments.hours, 11)
        nights = [prepare_night(path) for path in paths]
        scorer = trained_scorer(nights[:3])
        # Without its scoring, which does not fit a longer recording.
        alone = Path(folder) / "alone" / paths[3].name
        alone.parent.mkdir()
        alone.write_bytes(paths[3].read_bytes())
        recording = read_recording(alone)
        clean = scorer.score(prepare_night(recording))
        human = nights[3].stage
        scored = human >= 0
        result: dict[str, object] = {
            "hours": arguments.hours,
            "clean": {"kappa_human": agreement(human[scored], clean.stages[scored]), "ahi": clean.ahi},
        }
        print(json.dumps(result), flush=True)
        references: dict[str, NightScore] = {}
        rows = []
        for kind in arguments.kinds:
            for name, changed, gap, before, alive in scenarios(recording, kind):
                if gap is None:
                    reference = clean
                else:
                    if name not in references:
                        references[name] = scorer.score(prepare_night(gap))
                    reference = references[name]
                night = prepare_night(changed)
                score = scorer.score(night)
                moved = np.zeros(score.n_epochs, bool)
                moved[before : before + len(alive)] = alive
                stages, seen = score.stages[moved], alive & scored
                row = {
                    "kind": kind,
                    "dead": name,
                    "stages_kept_clean": float((stages == clean.stages[alive]).mean()),
                    "stages_kept": float((stages == reference.stages[alive]).mean()),
                    "kappa_human": agreement(human[seen], score.stages[before : before + len(alive)][seen]),
                    "dead_epochs_scored": int((score.stages[~moved] >= 0).sum()),
                    "ahi": score.ahi,
                    "ahi_good": index(score, moved),
                    "ahi_good_reference": index(reference, alive),
                    "scale": {name: night.iqr[name] / nights[3].iqr[name] for name in scorer.channels if name in night.iqr},
                    "warnings": len(score.warnings),
                }
                rows.append(row)
                print(json.dumps(row), flush=True)
        result["nights"] = rows
        result["worst"] = {
            "stages_kept": min(row["stages_kept"] for row in rows),
            "ahi_off": max(abs(row["ahi_good"] / max(row["ahi_good_reference"], 1e-9) - 1) for row in rows),
        }
        print(json.dumps(result["worst"]))
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
