"""Validates and exports stages by all processes of a job, run once a process by ``test_shared_work.py``.

Arguments: the folder of results, the data set, the packages, the type of the arithmetic, and names of stages. Writes what each
rank did and found as JSON: figures, what the package says, and how many rows each function of a model was given.
"""

from __future__ import annotations

import functools
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# A job of its own, to which the helpers of all tests are no neighbours.
sys.path.append(str(Path(__file__).parents[1]))
from device_steps import build

from sleepfm.models.downstream import Downstream
from sleepfm.models.masked_context import MaskedContext
from sleepfm.models.neuronet import NeuroNet
from sleepfm.models.synthsleepnet import SynthSleepNet
from sleepfm.training.observer import Observer
from sleepfm.training.ranks.distributed import World, exit_ranked, start
from sleepfm.training.ranks.shared_work import SharedWork

# What encodes, classifies or predicts rows.
WATCHED = [
    *((kind, name) for kind in (NeuroNet, SynthSleepNet) for name in ("encode", "encode_frames")),
    (MaskedContext, "forward"),
    (Downstream, "classify"),
]


def count_rows(counts: Counter[str]) -> None:
    for kind, name in WATCHED:
        function = getattr(kind, name)

        @functools.wraps(function)
        def counting(self: Any, rows: torch.Tensor, *rest: Any, _call: Any = function, **named: Any) -> Any:
            counts[_call.__qualname__] += len(rows)
            return _call(self, rows, *rest, **named)

        setattr(kind, name, counting)


class Progress(Observer):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def goes_on(self, how_far: str = "", still_s: float = 0.0) -> None:
        self.told.append(how_far)


def main() -> int:
    folder, dataset, packages, dtype, *kinds = sys.argv[1:]
    world = World.from_environment()
    start(world, 120)
    counts: Counter[str] = Counter()
    count_rows(counts)
    found: dict[str, Any] = {}
    for number, kind in enumerate(kinds):
        counts.clear()
        progress = Progress()
        work = SharedWork(world, dtype, progress)
        # What embeds keeps nothing for the next one; the ranks of a node share a folder.
        own = Path(folder) / str(number) / f"node{world.rank // world.local_size}"
        own.mkdir(parents=True, exist_ok=True)
        stage = build(kind, Path(dataset), Path(packages), own, work)
        built = dict(counts)
        counts.clear()
        stage.module.eval()
        figures = stage.validate(stage.module, work)
        run = own / "run"
        run.mkdir(exist_ok=True)
        validated = dict(counts)
        counts.clear()
        export = stage.export(stage.module, run, work)
        assert export is not None or not world.is_main
        found[kind] = {
            "built": built,
            "validated": validated,
            "exported": dict(counts),
            "figures": figures,
            "metrics": export.metrics if export is not None and world.is_main else {},
            "files": sorted(path.name for path in run.iterdir()) if world.is_main else [],
            "told": [text for text in progress.told if text],
        }
    (Path(folder) / f"rank{world.rank}.json").write_text(json.dumps(found))
    dist.barrier()
    return 0


if __name__ == "__main__":
    exit_ranked(main)
