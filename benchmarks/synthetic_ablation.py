"""What each knob of the nights for training adds: a small stage model trained with all of them, and without one at a time.

    python benchmarks/synthetic_ablation.py --work DIR [--config synthetic/train.yaml] [--people N] [--hours H] [--knobs A,B]
        [--held-out N] [--real SRC ...] [--seed S] [--json F] [--miniature]

For each variant (``all``, ``without NAME`` a knob, ``none``) the same people are drawn, and the built-in scorer's model of stages
(``downstream/finetune-stage-small.yaml``) learns from them. It sees powers of bands alone, so that one encoder, hardly trained,
does for all. The model is judged on nights that no variant has seen: of ``synthetic/held-out.yaml``, whose ranges
are others and whose stages are as drawn, and of every folder behind ``--real``, recordings of people with their scorings, which
are read by ``auto`` and train nothing. ``adds`` is kappa with all knobs less kappa without the knob. One seed says little:
differences smaller than those between seeds are none.

What is done is kept in DIR; the same line goes on. ``--miniature`` runs every part and learns nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import describe

from sleepfm.demo.weights import ALL_TEST

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ["split.pretrain=0.05", "split.label=0.8", "split.val=0.1", "split.test=0.05"]
ENCODER = ["train.steps=5", "train.global_batch=16", "train.warmup=1", "train.validate_every=5", "train.checkpoint_every=5"]
MINIATURE = ["train.steps=2", "train.global_batch=8", "train.warmup=1", "train.checkpoint_every=2", "train.validate_every=2"]
SWITCHES = ("faults", "scorer")


def variants(config: str, knobs: Sequence[str] | None) -> dict[str, list[str]]:
    """Name of each variant and what is set on top of ``config`` for it."""
    from sleepfm.synthetic.variety.config import load_variety

    present = [name for name, value in load_variety(config) if value]
    if unknown := sorted(set(knobs or ()) - set(present)):
        raise SystemExit(f"--knobs {','.join(unknown)}: not in {config}; it has {','.join(present)}")
    off = {name: f"{name}={'false' if name in SWITCHES else 'null'}" for name in present}
    chosen = {f"without {name}": [off[name]] for name in knobs or present}
    return {"all": [], **chosen, "none": list(off.values())}


def run(*words: str) -> None:
    """A command of the package; ends the program where it fails."""
    print("$", *words, flush=True)
    if subprocess.run([sys.executable, *words], cwd=ROOT, check=False).returncode not in (0, 1):
        raise SystemExit(f"failed: {' '.join(words)}")


def make_shards(
    folder: Path, config: str, people: int, hours: float, seed: int, options: Sequence[str], splits: Sequence[str]
) -> Path:
    """The data set of a variant."""
    shards = folder / "shards"
    size = ["--subjects", str(people), "--hours", str(hours), "--seed", str(seed), "--workers", "2"]
    settings = [word for item in options for word in ("--set", item)] + [word for item in splits for word in ("--build", item)]
    recordings = str(folder / "recordings")
    run("-m", "sleepfm.cli", "synth", recordings, *size, "--config", config, "--shards", str(shards), *settings)
    return shards


def job(folder: Path, script: str, config: str, shards: Path, settings: Sequence[str], is_miniature: bool) -> Path:
    """The package of a job in ``folder``, which is done once."""
    from sleepfm.training.folder import RunFolder

    if not RunFolder(folder).result.exists():
        common = [f"data.path={shards}", f"tracking.uri=sqlite:///{folder.parent / 'mlflow.db'}", f"train.output={folder}"]
        words = [*common, *settings, *(MINIATURE if is_miniature else [])]
        run("-m", "sleepfm.training.launcher", "1", f"launch/{script}.py", f"configs/{config}.yaml", *words)
    return RunFolder(folder).package


def figures(package: Path, shards: Path) -> dict[str, Any]:
    """Kappa, accuracy and the recall of each stage on all nights of ``shards``."""
    from sleepfm.data.dataset import Dataset
    from sleepfm.demo.weights_figures import recalls
    from sleepfm.inference.subsets import modality_subsets
    from sleepfm.inference.task_model import TaskModel

    found = modality_subsets(TaskModel.load(package), Dataset.open(shards), "test", [("EEG",)])[0].evaluation
    return {
        "epochs": found.n_epochs,
        "people": found.n_subjects,
        **{name: round(found.metrics[name].value, 3) for name in ("kappa", "accuracy", "macro_f1")},
        "recall": recalls(found),
    }


def main() -> None:
    """Print the table, and write it to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--config", default="synthetic/train.yaml")
    parser.add_argument("--people", type=int, default=48)
    parser.add_argument("--hours", type=float, default=4.0)
    parser.add_argument("--held-out", type=int, default=16, metavar="N", help="people of synthetic/held-out.yaml")
    parser.add_argument("--real", type=Path, nargs="*", default=[], metavar="SRC", help="folders of scored recordings of people")
    parser.add_argument("--knobs", type=lambda text: text.split(","), metavar="A,B", help="these alone (default: all)")
    parser.add_argument("--steps", type=int, default=200, help="of the fine-tune")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--miniature", action="store_true")
    parser.add_argument("--json", type=Path, metavar="F")
    arguments = parser.parse_args()
    people, hours, held_out = (8, 0.3, 2) if arguments.miniature else (arguments.people, arguments.hours, arguments.held_out)
    work = arguments.work.resolve()
    # Another seed than that of training: held-out people beside held-out ranges.
    unseen = make_shards(work / "held-out", "synthetic/held-out.yaml", held_out, hours, arguments.seed + 1000, [], ALL_TEST)
    judged = {"held-out": unseen}
    for source in arguments.real:
        judged[source.name] = work / "real" / source.name
        run("-m", "shards", "build", str(source.resolve()), str(judged[source.name]), *ALL_TEST)
    table: dict[str, Any] = {}
    for name, options in variants(arguments.config, arguments.knobs).items():
        folder = work / name.replace(" ", "-")
        splits = [*SPLITS, "recordings_per_shard=2"]
        shards = make_shards(folder, arguments.config, people, hours, arguments.seed, options, splits)
        encoder = job(work / "encoder", "pretrain", "pretrain/eeg-small", shards, [*ENCODER, "monitor.val_epochs=50"], False)
        steps, every = arguments.steps, arguments.steps // 2
        settings = [f"train.steps={steps}", f"train.validate_every={every}", f"train.checkpoint_every={every}", "train.warmup=20"]
        settings += [f"encoder={encoder}", "evaluate.resamples=0", f"train.seed={arguments.seed}"]
        package = job(folder / "finetune", "finetune", "downstream/finetune-stage-small", shards, settings, arguments.miniature)
        table[name] = {place: figures(package, data) for place, data in judged.items()}
        print(f"{name}: {json.dumps(table[name])}", flush=True)
    for name, row in table.items():
        if name.startswith("without "):
            row["adds"] = {place: round(table["all"][place]["kappa"] - row[place]["kappa"], 3) for place in judged}
    recipe = {"people": people, "hours": hours, "held_out": held_out, "steps": arguments.steps, "seed": arguments.seed}
    result = {"machine": describe(), "recipe": recipe, "variants": table}
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
