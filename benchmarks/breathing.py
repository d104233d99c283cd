"""Event heads with and without respiratory channels, on one data set: event F1, errors of onset and AHI.

    python benchmarks/breathing.py SHARDS RESP FOUR --json benchmarks/results/breathing-DATE.json

``RESP`` is a package of the NeuroNet of breathing, ``FOUR`` one of a SynthSleepNet on the paper's four channels. Each carries the
same event head, told the amplitudes of its own channels, trained in this process with the settings of
``configs/downstream/events-*-tiny.yaml``. Thresholds are chosen on ``val`` for event F1; the AHI is that of the nights of ``val``
and ``test`` over human stages, so that nothing but events differs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from sleepfm.config import load_config
from sleepfm.constants import Stage
from sleepfm.data.dataset import Dataset
from sleepfm.data.reader import ShardReader
from sleepfm.data.record_labels import RecordLabels
from sleepfm.data.scored_events import scored_events
from sleepfm.evaluation.events import ahi, events_from_seconds, join_overlapping
from sleepfm.files import read_json, write_json
from sleepfm.paths import config_root
from sleepfm.registry.registry import Resolved, load_package
from sleepfm.stages.downstream_config import FinetuneConfig
from sleepfm.stages.finetune import FinetuneStage
from sleepfm.training.folder import RunFolder

TASKS = ("apnea", "hypopnea")


def train(shards: Path, package: Path, task: str, folder: Path, steps: int) -> tuple[FinetuneStage, float, dict[str, Any]]:
    """A trained stage, its threshold of seconds, and what its evaluation says."""
    channels = ", ".join(load_package(package).module.channels)
    fixed = [f"data.path={shards}", f"train.output={folder / task}", f"cache={folder / 'frames'}", "evaluate.resamples=0"]
    config = load_config(
        FinetuneConfig,
        config_root() / "downstream" / f"events-{task}-tiny.yaml",
        [*fixed, f"events.amplitudes=[{channels}]", f"train.steps={steps}"],
    )
    stage = FinetuneStage(config, Resolved(str(package), package))
    module, rate, batch = stage.module.train(), config.train.lr, config.train.global_batch
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=rate, weight_decay=config.train.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.1)
    for step in range(steps):
        loss = stage.loss(module, stage.stream.batch(step * batch, batch), 0).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.train.clip)
        optimiser.step()
        schedule.step()
    module.eval()
    out = folder / task
    out.mkdir(parents=True, exist_ok=True)
    export = stage.export(module, out)
    assert export is not None
    told = read_json(RunFolder(out).evaluation)
    assert isinstance(told, dict)
    return stage, export.config["usage"]["event_threshold"], {key: told[key] for key in ("events", "event_timing")}


def measure(shards: Path, package: Path, steps: int) -> dict[str, Any]:
    """Figures of event heads on the encoder in ``package``."""
    dataset = Dataset.open(shards)
    figures: dict[str, Any] = {"channels": list(load_package(package).module.channels)}
    found: dict[str, dict[str, list[Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for task in TASKS:
            _, threshold, figures[task] = train(shards, package, task, Path(folder), steps)
            for split, counts in figures[task]["events"].items():
                hits = 2 * counts["matched"]
                counts["f1"] = hits / max(1, hits + counts["missed"] + counts["false"])
                predictions = pd.read_parquet(RunFolder(Path(folder) / task).predictions(split))
                for record, rows in predictions.groupby("record"):
                    seconds = np.concatenate(rows["seconds"].to_list())
                    found.setdefault(record, {})[task] = list(events_from_seconds(seconds, threshold, task))
                    found[record].setdefault("assessed", []).append(np.isfinite(rows["p1"].to_numpy()))
    reader = ShardReader(dataset)
    labels = RecordLabels(dataset, reader, ("stage", *TASKS))
    nights = []
    for record, mine in found.items():
        row = dataset.index_of(record)
        own = labels.of(row)
        asleep = (own["stage"] > Stage.W) & np.all([own[task] >= 0 for task in TASKS], axis=0) & np.all(mine["assessed"], axis=0)
        if dataset.records[row].has_events and asleep.any():
            events = join_overlapping([*mine["apnea"], *mine["hypopnea"]])
            nights.append({"model": ahi(events, asleep), "scored": ahi(scored_events(dataset, reader, row), asleep)})
    errors = np.array([night["model"] - night["scored"] for night in nights])
    return figures | {"nights": nights, "ahi_error": float(np.abs(errors).mean()), "ahi_bias": float(errors.mean())}


def main() -> None:
    """Measure both and print or write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("resp", type=Path)
    parser.add_argument("four", type=Path)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--encoders", default="pretrained", help="how their weights came about, for the results")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    people = len(set(Dataset.open(arguments.shards).subjects))
    content: dict[str, Any] = {"people": people, "steps": arguments.steps, "encoders": arguments.encoders}
    for name, package in (("with respiratory channels", arguments.resp), ("without", arguments.four)):
        content[name] = measure(arguments.shards, package, arguments.steps)
        print(name, json.dumps(content[name], indent=1), flush=True)
    if arguments.json:
        write_json(arguments.json, content)


if __name__ == "__main__":
    main()
