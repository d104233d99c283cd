"""Takes a run of the toy from every ZeRO stage to every other in one process, and prints what came of it as JSON.

Run by ``test_elastic.py``. DeepSpeed's converter is called here rather than in a process of its own, which would take most of the
time; the tests with more processes do that.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from toy import ToyRunConfig, ToyStage

from sleepfm.training.engine import train
from sleepfm.training.folder import RunFolder
from sleepfm.training.job import Context
from sleepfm.training.observer import Observer
from sleepfm.training.ranks.distributed import World, start
from sleepfm.training.state import checkpoint, universal

WORLD = World(0, 1, 0, 1)
# Saved after step 3.
STOP_AFTER = 4
CONFIG = """
{"steps": 6, "lr": 0.01, "global_batch": 8, "accumulation": 2, "weight_decay": 0.1, "ema": 0.8, "checkpoint_every": 3,
 "clip": 0.5, "warmup": 2}
"""


class Stopped(Exception):
    """The run ends here, as if it had been killed."""


def convert(source: Path, target: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
    folders = {"input_folder": str(source), "output_folder": str(target)}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(argparse.Namespace(**folders, **options, inject_missing_state=True))


def go(output: Path, zero: int, stop: bool) -> dict[str, Any]:
    """Losses by step, the last validation and the exported weights of what is in ``output``, taken up or begun."""
    config = ToyRunConfig.model_validate(
        {
            "train": {"output": str(output), **json.loads(CONFIG)},
            "deepspeed": {"zero": zero, "dtype": "fp32"},
            "registry": {"name": "toy", "metric": "val/error", "mode": "min"},
        }
    )
    stage = ToyStage(config, Context(WORLD, "", "auto", config))
    RunFolder(output).begin(config, stage.dataset_digest, {})
    losses: dict[str, float] = {}
    figures: dict[str, float] = {}

    class Notes(Observer):
        def report(self, step: int, row: dict[str, Any]) -> None:
            if "loss" not in row:
                figures.update(row)
                return
            losses[str(step)] = row["loss"]
            if stop and step == STOP_AFTER:
                raise Stopped

    try:
        module = train(stage, config, WORLD, checkpoint.choose(RunFolder(output).checkpoints, WORLD), Notes()).module
    except Stopped:
        return {"losses": losses}
    return {"losses": losses, "figures": figures, "weights": {k: v.flatten().tolist() for k, v in module.state_dict().items()}}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    start(WORLD, 60)
    universal._convert = convert
    results = {"still": go(folder / "still", 1, False)}
    for source in range(3):
        go(folder / f"from{source}", source, True)
        for target in range(3):
            output = folder / f"from{source}to{target}"
            shutil.copytree(folder / f"from{source}", output)
            results[f"{source} to {target}"] = go(output, target, False)
    (folder / "results.json").write_text(json.dumps(results))
