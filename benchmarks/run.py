"""The benchmarks that run as they stand, in one table: what ``make bench`` calls, in at most 15 minutes on two cores.

    python benchmarks/run.py [--quick] [--json FILE]

A row is a figure, what it is compared with in the same run, their ratio, and the limit of the ratio. Limits are on
ratios, because seconds are of a machine; they leave room for one that is busy. Status 1: a ratio is past its limit.
``--quick`` runs the same scripts in miniature, to see that they work; its figures say nothing and its limits do not count.

Not here: `realism.py` and `side_by_side.py` (need a virtual environment with two scorers, the second also trained models),
`polarity.py` (hours), `laboratory.py` (an hour), `context_pretraining.py` (needs a data set and a trained encoder),
`scaling.py` and `roofline.py` (models, no measurements), and what the scripts measure beside a checkout of the released code
(`--reference`). `results/` holds what they have found.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import describe

FOLDER = Path(__file__).resolve().parent
Figures = dict[str, Any]


@dataclass(frozen=True)
class Script:
    """A script of this folder, and its arguments but for the file of its figures, in full and in miniature."""

    name: str
    full: str
    quick: str
    file_option: str = "--json"


@dataclass(frozen=True)
class Row:
    """``figure`` and ``reference`` take theirs from the script's figures; ``limit`` is the least and the greatest ratio."""

    script: str
    what: str
    unit: str
    figure: Callable[[Figures], float]
    beside: str
    reference: Callable[[Figures], float]
    limit: tuple[float, float]


SCRIPTS = (
    Script(
        "models",
        "--only neuronet-tiny,neuronet-base,nt-xent,mamba-length --steps 3",
        "--only neuronet-tiny --steps 1",
    ),
    Script(
        "reading",
        "--large 200 --only ours,webdataset,parquet,memory --counted 20000",
        "--large 12 --only ours,webdataset,memory --counted 600",
    ),
    Script("shards", "--nights 3 --hours 4 --only speed,bound,workers", "--nights 1 --hours 0.2 --only speed,bound"),
    Script(
        "training",
        "--only tiny-one-process,tiny-ddp,tiny-zero0,tiny-zero1,tiny-save --steps 20",
        "--only tiny-one-process --steps 2 --subjects 8",
    ),
    Script("doctor", "--headers 10000", "--headers 40"),
    Script("dead_time", "--hours 3 --kinds mains rail", "--hours 0.5 --kinds zeros", file_option=""),
    Script("scoring", "--sizes tiny", "--sizes tiny --hours 0.25"),
)


def ratio_of(figure: float, reference: float) -> float:
    """Their ratio, where nothing is as much as nothing and anything is infinitely more."""
    if reference == 0:
        return 1.0 if figure == 0 else math.inf
    return figure / reference


def step(case: str, variant: str, figure: str = "seconds") -> Callable[[Figures], float]:
    """A figure of a variant of ``models.py``."""
    return lambda found: float(found["cases"][case][variant][figure])


def read(case: str, figure: str = "epochs_per_processor_second") -> Callable[[Figures], float]:
    """A figure of a case of ``reading.py``."""
    return lambda found: float(found["figures"][case][figure])


def train(case: str, figure: str = "step_seconds") -> Callable[[Figures], float]:
    """A figure of a case of ``training.py``."""
    return lambda found: float(found["cases"][case][figure])


def large(found: Figures) -> float:
    """Resident memory with the larger of the data sets of ``reading.py``."""
    return read(f"memory, {found['recipe']['recordings'][1]} recordings", "megabytes")(found)


def a_night(found: Figures) -> float:
    """Processor time of a night in ``shards.py``."""
    return float(found["ours"]["processor_seconds_per_night"])


def least_work(found: Figures) -> float:
    """Processor time of what no converter can do without."""
    return float(found["bound"]["reading_seconds"] + found["bound"]["transform_seconds"])


def workers(count: int) -> Callable[[Figures], float]:
    """Seconds of a build on ``count`` Ray workers."""
    return lambda found: float(found["workers"][f"seconds_with_{count}"])


def overhead(found: Figures) -> float:
    """Seconds of a step of one process outside of forward, backward and optimiser."""
    case = found["cases"]["tiny-one-process"]
    return float(case["outside_share"] * case["step_seconds"])


def save(found: Figures) -> float:
    """Seconds of a checkpoint for each of the steps from one to the next."""
    case = found["cases"]["tiny-save"]
    return float(case["save_seconds"] / case["interval_steps"])


def headers(found: Figures) -> float:
    """Processor seconds of ``doctor.py`` for 10,000 recordings, a core."""
    return float(found["processor_seconds_per_core_and_10000"])


def stages_kept(found: Figures) -> float:
    """The least share of stages that dead signal left as they are."""
    return float(found["worst"]["stages_kept"])


def ahi(key: str) -> Callable[[Figures], float]:
    """A figure of the night whose AHI dead signal changed most."""

    def change(night: Figures) -> float:
        return abs(ratio_of(night["ahi_good"], night["ahi_good_reference"]) - 1)

    return lambda found: float(max(found["nights"], key=change)[key])


def scored(figure: str) -> Callable[[Figures], float]:
    """Seconds of a part of scoring a night with models of tiny size in ``scoring.py``."""
    return lambda found: float(found["sizes"]["tiny"]["seconds"][figure])


def scoring_memory(found: Figures) -> float:
    """Peak GiB of the same."""
    return float(found["sizes"]["tiny"]["peak_bytes"] / 2**30)


ONE, POOLED = "single channel (1 of 4)", "single channels (4 pooled)"
BASE, TINY = "neuronet-base", "neuronet-tiny"
WORK = "working_gigabytes"
ANY = math.inf
# In miniature a row whose figures were not measured is left out.
ROWS = (
    Row("models", "NeuroNet tiny, a step in bf16", "s", step(TINY, "ours bf16"), "in fp32", step(TINY, "ours fp32"), (0, 1.5)),
    Row("models", "NeuroNet base, a step in bf16", "s", step(BASE, "ours bf16"), "in fp32", step(BASE, "ours fp32"), (0, 1.3)),
    Row(
        *("models", "NeuroNet base recomputed, working memory", "GB"),
        *(step(BASE, "ours recomputed", WORK), "kept", step(BASE, "ours fp32", WORK), (0, 0.8)),
    ),
    Row(
        *("models", "contrast of 8,192 pairs, working memory", "GB"),
        *(step("nt-xent", "ours, 8192 pairs", WORK), "of 2,048", step("nt-xent", "ours, 2048 pairs", WORK), (0, 6)),
    ),
    Row(
        *("models", "Mamba over 2,800 epochs", "s"),
        *(step("mamba-length", "2800 epochs"), "over 350", step("mamba-length", "350 epochs"), (0, 12)),
    ),
    Row(
        "reading",
        "epochs of one channel, a core",
        "1/s",
        read(f"ours, {ONE}"),
        "WebDataset",
        read(f"webdataset, {ONE}"),
        (1.5, ANY),
    ),
    Row(
        *("reading", "epochs of four channels pooled, a core", "1/s"),
        *(read(f"ours, {POOLED}"), "WebDataset", read(f"webdataset, {POOLED}"), (1, ANY)),
    ),
    Row(
        *("reading", "epochs of one channel, a core", "1/s"),
        *(read(f"ours, {ONE}"), "Parquet", read("parquet, single channel"), (10, ANY)),
    ),
    Row("reading", "memory, many recordings", "MB", large, "10", read("memory, 10 recordings", "megabytes"), (0, 1.2)),
    Row("shards", "a night to a shard, a core", "s", a_night, "least work", least_work, (0, 5)),
    Row("shards", "16 nights on two workers", "s", workers(2), "on one", workers(1), (0, 0.8)),
    Row("training", "a step, what is not arithmetic", "s", overhead, "the step", train("tiny-one-process"), (0, 0.1)),
    Row("training", "a step, two processes", "s", train("tiny-zero0"), "plain DDP", train("tiny-ddp"), (0, 1.25)),
    Row("training", "a step under ZeRO 1", "s", train("tiny-zero1"), "plain DDP", train("tiny-ddp"), (0, 1.5)),
    Row("training", "a save, by steps between", "s", save, "a step", train("tiny-save"), (0, 0.02)),
    Row("doctor", "headers of 10,000 nights, a core", "s", headers, "a minute", lambda found: 60.0, (0, 1)),
    Row("dead_time", "stages kept beside dead signal", "", stages_kept, "with a gap", lambda found: 1.0, (0.99, ANY)),
    Row("dead_time", "AHI where it differs most", "1/h", ahi("ahi_good"), "with a gap", ahi("ahi_good_reference"), (0.95, 1.05)),
    Row("scoring", "a night of 8 h, tiny size", "s", scored("whole"), "ten seconds", lambda found: 10.0, (0, 1.5)),
    Row("scoring", "imports of it", "s", scored("imports"), "four seconds", lambda found: 4.0, (0, 1.5)),
    Row("scoring", "peak memory of it", "GiB", scoring_memory, "3 GiB", lambda found: 3.0, (0, 1)),
)


def words_of(limit: tuple[float, float]) -> str:
    """A limit as the table shows it."""
    low, high = limit
    if high == ANY:
        return f">= {low:g}"
    return f"<= {high:g}" if low == 0 else f"{low:g} to {high:g}"


def figures_of(script: Script, quick: bool, scratch: Path) -> Figures:
    """Run ``script``; what it wrote."""
    file = scratch / f"{script.name}.json"
    words = [*(script.quick if quick else script.full).split()]
    words = [*words, script.file_option, str(file)] if script.file_option else [str(file), *words]
    if script.name == "reading":
        words += ["--scratch", str(scratch / "reading")]
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{script.name}.py"), *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"benchmarks/{script.name}.py {' '.join(words)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: Figures = json.loads(file.read_text())
    return found


def table(figures: dict[str, Figures], quick: bool) -> list[dict[str, Any]]:
    """A dictionary a row, in the order of :data:`ROWS`."""
    rows = []
    for row in ROWS:
        try:
            figure, reference = row.figure(figures[row.script]), row.reference(figures[row.script])
        except KeyError:
            if quick:
                continue
            raise
        ratio = ratio_of(figure, reference)
        shown: dict[str, Any] = {
            "benchmark": row.script,
            "what": row.what,
            "figure": figure,
            "unit": row.unit,
            "beside": row.beside,
        }
        shown |= {"reference": reference, "ratio": ratio, "limit": words_of(row.limit)}
        rows.append(shown | {"holds": row.limit[0] <= ratio <= row.limit[1]})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="in miniature; figures and limits say nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table there")
    arguments = parser.parse_args()
    began, figures = time.monotonic(), {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for script in SCRIPTS:
            started = time.monotonic()
            figures[script.name] = figures_of(script, arguments.quick, Path(folder))
            print(f"{script.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    rows, machine = table(figures, arguments.quick), describe()
    print(f"{'benchmark':<11}{'what':<42}{'figure':>12}      {'beside':<12}{'ratio':>7}  limit")
    for row in rows:
        past = "" if row["holds"] or arguments.quick else "  PAST"
        figure = f"{row['figure']:>12.4g} {row['unit']:<4}"
        print(f"{row['benchmark']:<11}{row['what']:<42}{figure} {row['beside']:<12}{row['ratio']:>7.3g}  {row['limit']}{past}")
    print(f"{(time.monotonic() - began) / 60:.1f} minutes on {machine}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    past = [row for row in rows if not row["holds"]]
    if past and not arguments.quick:
        print(f"{len(past)} of {len(rows)} figures are past their limits", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
