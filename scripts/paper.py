"""The recipe of the SynthSleepNet paper on SHHS visit 1, for a person who has downloaded it from NSRR; docs/paper.md explains it.

    python scripts/paper.py SHHS OUT [--people FILE] [--gpus N] [--print]

SHHS is NSRR's folder ``shhs``, with ``polysomnography/edfs/shhs1`` and ``polysomnography/annotations-events-nsrr/shhs1`` in it.
OUT gets the shards, the runs and ``table.md``. FILE names the recordings that are taken, one a line, such as ``shhs1-200010``;
without it all are. ``--print`` shows the commands and does nothing. Started again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sleepfm.evaluation.intervals import Metric
from sleepfm.evaluation.metrics import Evaluation
from sleepfm.files import read_json, write_atomic

MODALITIES = ("eeg", "eog", "emg", "ecg")
TASKS = ("stage", "apnea", "hypopnea")
EDFS, SCORINGS = Path("polysomnography/edfs/shhs1"), Path("polysomnography/annotations-events-nsrr/shhs1")
# About three quarters pretrain and a tenth tests, as in the released code, which selects on the people that it tests on. Here
# `val` selects.
SPLIT = ("split.pretrain=0.70", "split.label=0.12", "split.val=0.08", "split.test=0.10")
# Accuracies in % of the paper's abstract, the best ones and those from few labels, whose share it does not state.
PAPER = {"stage": (89.89, 87.98), "apnea": (99.75, 99.37), "hypopnea": (89.60, 77.52)}
# A twentieth of the epochs with labels, the default of the released code.
FEW = ("data.label_fraction=0.05", "data.label_draw=epochs")


def link_recordings(shhs: Path, out: Path, people: Path | None) -> int:
    """Link the wanted recordings of ``shhs`` and their scorings below ``out``; how many there are."""
    wanted = (
        None if people is None else {line.strip() for line in people.read_text(encoding="utf-8").splitlines() if line.strip()}
    )
    found = {path.stem: path for path in sorted((shhs / EDFS).glob("shhs1-*.edf"))}
    if wanted is not None and (missing := sorted(wanted - found.keys())):
        raise SystemExit(f"{people}: {len(missing)} of {len(wanted)} recordings are not in {shhs / EDFS}, such as {missing[0]}")
    names = sorted(found.keys() if wanted is None else wanted)
    if not names:
        raise SystemExit(f"{shhs / EDFS}: no recording shhs1-*.edf; give NSRR's folder shhs")
    for name in names:
        scoring = shhs / SCORINGS / f"{name}-nsrr.xml"
        for source in (found[name], *([scoring] if scoring.exists() else [])):
            link = out / source.relative_to(shhs)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(source.resolve())
    return len(names)


def commands(shhs: Path, out: Path, gpus: int) -> Iterator[list[str]]:
    """What is run, in this order."""
    build = [
        "build",
        str(out / "recordings"),
        str(out / "shards"),
        "--cohort",
        "shhs1",
        f"subjects.folder={shhs / 'datasets'}",
        *SPLIT,
    ]
    yield [sys.executable, "-m", "shards", *build]
    yield [sys.executable, "-m", "shards", "info", str(out / "shards")]
    for name in (*MODALITIES, "multimodal"):
        yield _job("pretrain", f"pretrain/{name}-base", out, gpus, f"pretrain-{name}")
    # Embeddings are kept, and a head on them is small.
    cache = f"cache={out / 'cache'}"
    for task in TASKS:
        yield _job("probe", f"downstream/probe-{task}-base", out, 1, f"probe-{task}", cache)
    for task in TASKS:
        yield _job("probe", f"downstream/probe-{task}-base", out, 1, f"few-labels-{task}", cache, *FEW)
    for task in TASKS:
        yield _job("finetune", f"downstream/finetune-{task}-base", out, gpus, f"finetune-{task}")


def _job(launched: str, config: str, out: Path, processes: int, folder: str, *more: str) -> list[str]:
    words = ["deepspeed", "--num_gpus", str(processes), "--module", f"launch.{launched}", f"configs/{config}.yaml"]
    return [*words, f"data.path={out / 'shards'}", f"train.output={out / folder}", *more]


def table(out: Path) -> str:
    """The paper's figures beside those of the runs in ``out``; a dash where there is none."""
    rows = [
        "| task | paper, accuracy in % | here, accuracy in % | always the most frequent class | κ | macro-F1 | people tested |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        best, few = PAPER[task]
        rows.append(_row(f"{task}, linear probe", None, _evaluation(out / f"probe-{task}")))
        rows.append(_row(f"{task}, fine-tuned", best, _evaluation(out / f"finetune-{task}")))
        rows.append(_row(f"{task}, few labels", few, _evaluation(out / f"few-labels-{task}")))
    return "\n".join(rows) + "\n"


def _evaluation(folder: Path) -> Evaluation | None:
    content = read_json(folder / "evaluation.json")
    return None if content is None else Evaluation.from_dict(content["results"]["test"])


def _row(name: str, paper: float | None, ours: Evaluation | None) -> str:
    stated = "–" if paper is None else f"{paper:.2f}"
    if ours is None:
        return f"| {name} | {stated} | – | – | – | – | – |"
    accuracy = _percent(ours.metrics["accuracy"], interval=True)
    majority = _percent(ours.metrics["majority_accuracy"])
    plain = [f"{ours.metrics[figure].value:.3f}" for figure in ("kappa", "macro_f1")]
    return f"| {name} | {stated} | {accuracy} | {majority} | {' | '.join(plain)} | {ours.n_subjects} |"


def _percent(metric: Metric, interval: bool = False) -> str:
    bounds = f" ({100 * metric.ci_low:.2f} to {100 * metric.ci_high:.2f})" if interval else ""
    return f"{100 * metric.value:.2f}{bounds}"


def main(words: Sequence[str] | None = None) -> int:
    """Run the recipe; the status of the command that failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shhs", type=Path, metavar="SHHS")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--people", type=Path, metavar="FILE")
    parser.add_argument("--gpus", type=int, default=1, metavar="N")
    parser.add_argument("--print", action="store_true", dest="only_print")
    given = parser.parse_args(words)
    shhs, out = given.shhs.resolve(), given.out.resolve()
    # A registry of its own, so that no champion of other data is taken for one of these.
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{out / 'mlflow.db'}")
    if not given.only_print:
        print(f"{link_recordings(shhs, out / 'recordings', given.people)} recordings", flush=True)
    for command in commands(shhs, out, given.gpus):
        print(f"$ {shlex.join(command)}", flush=True)
        if not given.only_print and (status := subprocess.run(command, check=False).returncode):
            return status
    if not given.only_print:
        write_atomic(out / "table.md", table(out))
        print((out / "table.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
