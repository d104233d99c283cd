"""Does the third pretraining stage help where labels are few?

    python benchmarks/context_pretraining.py --data SHARDS --encoder ADDRESS [--fraction 0.05] [--seeds N] [--json F] [--work DIR]

Pretrains a bidirectional Mamba context on the unlabelled nights of SHARDS, then fine-tunes context and head for sleep stages on
the frozen encoder at ADDRESS with a fraction of the labels, once from random weights and once from the pretrained context,
everything else alike, for several draws of labels and weights. Kappa is that of ``test``, at the step that ``val`` chose.
All jobs are the public ones, started as ``deepspeed`` starts them, in a registry of their own below DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import describe

ROOT = Path(__file__).resolve().parents[1]
LENGTH = 120


def job(script: str, config: str, output: Path, *overrides: str) -> dict[str, Any]:
    """Run a training job in one process and give its ``result.json``."""
    command = [sys.executable, "-m", "sleepfm.training.launcher", "1", str(ROOT / "launch" / f"{script}.py")]
    command += [str(ROOT / "configs" / f"{config}.yaml"), f"train.output={output}", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    return json.loads((output / "result.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="SHARDS")
    parser.add_argument("--encoder", required=True, metavar="ADDRESS", help="a package, or an address in MLFLOW_TRACKING_URI")
    parser.add_argument("--fraction", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretrain-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--json", type=Path, metavar="F", help="also write the figures there")
    parser.add_argument("--work", type=Path, metavar="DIR", default=None)
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="context-"))
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{work}/mlflow.db")
    same = [f"data.path={Path(arguments.data).resolve()}", "deepspeed.dtype=fp32"]
    pretrained = job(
        "pretrain",
        "pretrain/context-tiny",
        work / "pretrain",
        *same,
        f"encoder={arguments.encoder}",
        f"cache={work / 'cache'}",
        f"model.length={LENGTH}",
        f"train.steps={arguments.pretrain_steps}",
    )
    relative = pretrained["metrics"]["val/reconstruction_vs_mean"]
    print(f"masked epochs: error {relative:.3f} of that of the mean", flush=True)
    starts = {"random": arguments.encoder, "pretrained": str(work / "pretrain" / "package")}
    kappa: dict[str, list[float]] = {name: [] for name in starts}
    for seed in range(arguments.seeds):
        for name, encoder in starts.items():
            found = job(
                "finetune",
                "downstream/finetune-stage-tiny",
                work / f"{name}-{seed}",
                *same,
                f"encoder={encoder}",
                "tune.mode=frozen",
                "context.bidirectional=true",
                f"sequence.length={LENGTH}",
                f"sequence.stride={LENGTH // 2}",
                f"data.label_fraction={arguments.fraction}",
                "data.label_draw=epochs",
                f"data.label_seed={seed}",
                f"train.seed={seed}",
                f"train.steps={arguments.steps}",
                "train.global_batch=4",
                "evaluate.resamples=0",
            )
            kappa[name].append(found["metrics"]["test/kappa"])
            print(f"seed {seed}, {name}: kappa {kappa[name][-1]:.3f}", flush=True)
    gains = [after - before for before, after in zip(kappa["random"], kappa["pretrained"], strict=True)]
    result = {
        "machine": describe(),
        "label_fraction": arguments.fraction,
        "sequence_epochs": LENGTH,
        "pretrain_steps": arguments.pretrain_steps,
        "finetune_steps": arguments.steps,
        "masked_error_vs_mean": relative,
        "test_kappa": kappa,
        "gain": {"mean": statistics.mean(gains), "each": gains},
    }
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
