"""The rows of the table of `run.py`: what each takes from the figures of the scripts, and what it is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# What each script has found, by its name.
Found = dict[str, dict[str, Any]]
Figure = Callable[[Found], float]


@dataclass(frozen=True)
class Row:
    """``physical`` and ``beside`` are words and a figure; ``allowed`` is the least and the greatest ratio."""

    script: str
    what: str
    unit: str
    ours: Figure
    released: Figure | None = None
    physical: tuple[str, Figure] | None = None
    beside: tuple[str, Figure] | None = None
    allowed: tuple[float, float] | None = None


def ratio_of(figure: float, reference: float) -> float:
    """Their ratio, where nothing is as much as nothing and anything is infinitely more."""
    if reference == 0:
        return 1.0 if figure == 0 else math.inf
    return figure / reference


def step(case: str, variant: str, figure: str = "seconds") -> Figure:
    """A figure of a variant of ``models.py``."""
    return lambda found: float(found["models"]["cases"][case][variant][figure])


def read(case: str, figure: str = "epochs_per_processor_second") -> Figure:
    """A figure of a case of ``reading.py``."""
    return lambda found: float(found["reading"]["figures"][case][figure])


def train(case: str, figure: str = "step_seconds") -> Figure:
    """A figure of a case of ``training.py``."""
    return lambda found: float(found["training"]["cases"][case][figure])


def large(found: Found) -> float:
    """Resident memory with the larger of the data sets of ``reading.py``."""
    return read(f"memory, {found['reading']['recipe']['recordings'][1]} recordings", "megabytes")(found)


def a_night(side: str) -> Figure:
    """Processor time of a night in ``shards.py``."""
    return lambda found: float(found["shards"][side]["processor_seconds_per_night"])


def workers(count: int) -> Figure:
    """Seconds of a build on ``count`` Ray workers."""
    return lambda found: float(found["shards"]["workers"][f"seconds_with_{count}"])


def overhead(found: Found) -> float:
    """Seconds of a step of one process outside of forward, backward and optimiser."""
    case = found["training"]["cases"]["tiny-one-process"]
    return float(case["outside_share"] * case["step_seconds"])


def save(found: Found) -> float:
    """Seconds of a checkpoint for each of the steps from one to the next."""
    case = found["training"]["cases"]["tiny-save"]
    return float(case["save_seconds"] / case["interval_steps"])


def doctor(figure: str) -> Figure:
    """Processor seconds of ``doctor.py`` for 10,000 recordings, a core."""
    return lambda found: float(found["doctor"][f"{figure}_per_core_and_10000"])


def stages_kept(found: Found) -> float:
    """The least share of stages that dead signal left as they are."""
    return float(found["dead_time"]["worst"]["stages_kept"])


def ahi(key: str) -> Figure:
    """A figure of the night whose AHI dead signal changed most."""

    def change(night: dict[str, Any]) -> float:
        return abs(ratio_of(night["ahi_good"], night["ahi_good_reference"]) - 1)

    return lambda found: float(max(found["dead_time"]["nights"], key=change)[key])


def scored(figure: str) -> Figure:
    """Seconds of a part of scoring a night with models of tiny size in ``scoring.py``."""
    return lambda found: float(found["scoring"]["sizes"]["tiny"]["seconds"][figure])


def scoring_memory(found: Found) -> float:
    """Peak GiB of the same."""
    return float(found["scoring"]["sizes"]["tiny"]["peak_bytes"] / 2**30)


def fixed(figure: float) -> Figure:
    """A figure that is aimed at."""
    return lambda found: figure


def product_rate(found: Found, threads: int, precision: str) -> float:
    """Operations a second of a large product; without ``precision``, in the faster type."""
    rates = found["rates"]["product_flops_a_second"][str(threads)]
    return float(rates["float32"] if precision == "fp32" else max(rates.values()))


def arithmetic(case: str, variant: str, precision: str = "", threads: int = 2) -> tuple[str, Figure]:
    """The least seconds of a step of ``models.py``. bf16 without instructions for it is computed in fp32."""

    def seconds(found: Found) -> float:
        return step(case, variant, "flops")(found) / product_rate(found, threads, precision)

    return "products and convolutions of the step, at the rate of one large product with as many threads", seconds


def scoring_arithmetic(found: Found) -> float:
    """The least seconds of the encoder over a night in ``scoring.py``."""
    tiny = found["scoring"]["sizes"]["tiny"]
    return float(tiny["flops_a_night"] / max(tiny["product_flops_a_second"].values()))


def converted_epochs(found: Found) -> float:
    """Epochs a second whose 3,000 numbers become float32."""
    return float(found["rates"]["converted_numbers_a_second"] / 3000)


def least_conversion(found: Found) -> float:
    """Processor time of what no converter can do without."""
    return float(found["shards"]["bound"]["reading_seconds"] + found["shards"]["bound"]["transform_seconds"])


def least_save(found: Found) -> float:
    """Seconds in which memory holds a checkpoint twice, for each of the steps from one to the next."""
    case = found["training"]["cases"]["tiny-save"]
    return float(case["checkpoint_bytes"] / found["rates"]["copied_bytes_a_second"] / case["interval_steps"])


ONE, POOLED = "single channel (1 of 4)", "single channels (4 pooled)"
BASE, TINY, SYNTH = "neuronet-base", "neuronet-tiny", "synthsleepnet-base"
FP32, BF16, MAMBA = "ours fp32", "ours bf16", "mamba-length"
WORK = "working_gigabytes"
ANY = math.inf
NUMBERS = ("turning the numbers of an epoch from int16 into float32, at the rate of one large array", converted_epochs)
# In miniature a row whose figures were not measured is left out.
ROWS = (
    Row(
        *("models", "NeuroNet tiny, a step in bf16", "s", step(TINY, BF16)),
        physical=arithmetic(TINY, BF16),
        beside=("in fp32", step(TINY, FP32)),
        allowed=(0, 1.5),
    ),
    Row(
        *("models", "NeuroNet base, a step in fp32", "s", step(BASE, FP32), step(BASE, "released")),
        physical=arithmetic(BASE, FP32, "fp32"),
    ),
    Row(
        *("models", "NeuroNet base, a step in bf16", "s", step(BASE, BF16), step(BASE, "released")),
        physical=arithmetic(BASE, BF16),
        beside=("in fp32", step(BASE, FP32)),
        allowed=(0, 1.3),
    ),
    Row(
        *(
            "models",
            "NeuroNet base recomputed, working memory",
            "GB",
            step(BASE, "ours recomputed", WORK),
            step(BASE, "released", WORK),
        ),
        beside=("kept", step(BASE, FP32, WORK)),
        allowed=(0, 0.8),
    ),
    Row(
        *("models", "SynthSleepNet base, a step in fp32", "s", step(SYNTH, FP32), step(SYNTH, "released")),
        physical=arithmetic(SYNTH, FP32, "fp32"),
    ),
    Row(
        *("models", "SynthSleepNet base, a step in bf16", "s", step(SYNTH, BF16), step(SYNTH, "released")),
        physical=arithmetic(SYNTH, BF16),
        beside=("in fp32", step(SYNTH, FP32)),
        allowed=(0, 1.3),
    ),
    Row(
        *("models", "contrast of 256 pairs", "s", step("nt-xent", FP32), step("nt-xent", "released")),
        physical=arithmetic("nt-xent", FP32, "fp32"),
    ),
    Row(
        *("models", "contrast of 8,192 pairs, working memory", "GB", step("nt-xent", "ours, 8192 pairs", WORK)),
        beside=("of 2,048", step("nt-xent", "ours, 2048 pairs", WORK)),
        allowed=(0, 6),
    ),
    Row(
        *("models", "Mamba over 2,800 epochs", "s", step(MAMBA, "2800 epochs")),
        physical=arithmetic(MAMBA, "2800 epochs", "fp32"),
        beside=("over 350", step(MAMBA, "350 epochs")),
        allowed=(0, 12),
    ),
    Row(
        *("reading", "epochs of one channel, a core", "1/s", read(f"ours, {ONE}")),
        physical=NUMBERS,
        beside=("WebDataset", read(f"webdataset, {ONE}")),
        allowed=(1.5, ANY),
    ),
    Row(
        *("reading", "epochs of four channels pooled, a core", "1/s", read(f"ours, {POOLED}")),
        physical=NUMBERS,
        beside=("WebDataset", read(f"webdataset, {POOLED}")),
        allowed=(1, ANY),
    ),
    Row(
        *("reading", "epochs of one channel, beside Parquet", "1/s", read(f"ours, {ONE}")),
        physical=NUMBERS,
        beside=("Parquet", read("parquet, single channel")),
        allowed=(10, ANY),
    ),
    Row(
        *("reading", "memory, many recordings", "MB", large),
        beside=("10", read("memory, 10 recordings", "megabytes")),
        allowed=(0, 1.2),
    ),
    Row(
        *("shards", "a night to a shard, a core", "s", a_night("ours"), a_night("reference")),
        physical=("reading, decoding, resampling and filtering the samples, and nothing else", least_conversion),
        allowed=(0, 5),
    ),
    Row(
        *("shards", "32 nights on two workers", "s", workers(2)),
        physical=("half of the time on one worker", lambda found: workers(1)(found) / 2),
        beside=("on one", workers(1)),
        allowed=(0, 0.8),
    ),
    Row(
        *("training", "a step, one process", "s", train("tiny-one-process")),
        physical=arithmetic(TINY, FP32, threads=1),
    ),
    Row(
        *("training", "of it, what is not arithmetic", "s", overhead),
        beside=("the step", train("tiny-one-process")),
        allowed=(0, 0.1),
    ),
    Row(
        *("training", "a step, two processes", "s", train("tiny-zero0")),
        physical=arithmetic(TINY, FP32, threads=1),
        beside=("plain DDP", train("tiny-ddp")),
        allowed=(0, 1.25),
    ),
    Row(
        *("training", "a step under ZeRO 1", "s", train("tiny-zero1")),
        physical=arithmetic(TINY, FP32, threads=1),
        beside=("plain DDP", train("tiny-ddp")),
        allowed=(0, 1.5),
    ),
    Row(
        *("training", "a save, by steps between", "s", save),
        physical=("copying the bytes of the checkpoint in memory", least_save),
        beside=("a step", train("tiny-save")),
        allowed=(0, 0.02),
    ),
    Row(
        *("doctor", "headers of 10,000 nights, a core", "s", doctor("processor_seconds")),
        physical=("opening and reading the same files", doctor("least_processor_seconds")),
        beside=("a minute", fixed(60.0)),
        allowed=(0, 1),
    ),
    Row(
        *("dead_time", "stages kept beside dead signal", "", stages_kept),
        beside=("with a gap", fixed(1.0)),
        allowed=(0.99, ANY),
    ),
    Row(
        *("dead_time", "AHI where it differs most", "1/h", ahi("ahi_good")),
        beside=("with a gap", ahi("ahi_good_reference")),
        allowed=(0.95, 1.05),
    ),
    Row(
        *("scoring", "a night of 8 h, tiny size", "s", scored("whole")),
        beside=("ten seconds", fixed(10.0)),
        allowed=(0, 1.5),
    ),
    Row(
        *("scoring", "of it, the models", "s", scored("model")),
        physical=("products and convolutions of the encoder, at the rate of one large product", scoring_arithmetic),
    ),
    Row(
        *("scoring", "of it, imports", "s", scored("imports")),
        beside=("four seconds", fixed(4.0)),
        allowed=(0, 1.5),
    ),
    Row(
        *("scoring", "peak memory of it", "GiB", scoring_memory),
        beside=("3 GiB", fixed(3.0)),
        allowed=(0, 1),
    ),
)


def words_of(allowed: tuple[float, float] | None) -> str:
    """Bounds as the table shows them."""
    if allowed is None:
        return ""
    low, high = allowed
    if high == ANY:
        return f">= {low:g}"
    return f"<= {high:g}" if low == 0 else f"{low:g} to {high:g}"


def shown(row: Row, found: Found, with_reference: bool) -> dict[str, Any]:
    """A row as it is written down: what it does not have is None. Raises KeyError where a figure was not measured."""
    ours = row.ours(found)
    released = row.released(found) if row.released and with_reference else None
    limit = row.physical[1](found) if row.physical else None
    beside = row.beside[1](found) if row.beside else None
    ratios = [None if figure is None else ratio_of(ours, figure) for figure in (released, limit, beside)]
    judged = ratios[2] if row.beside else ratios[1]
    return {
        "ours": ours,
        "unit": row.unit,
        "released": released,
        "limit": limit,
        "limit_is": row.physical[0] if row.physical else None,
        "ours_over_released": ratios[0],
        "ours_over_limit": ratios[1],
        "beside": row.beside[0] if row.beside else None,
        "beside_figure": beside,
        "ours_over_beside": ratios[2],
        "allowed": words_of(row.allowed),
        "holds": row.allowed is None or (judged is not None and row.allowed[0] <= judged <= row.allowed[1]),
    }


def table(found: Found, quick: bool, with_reference: bool) -> dict[str, dict[str, dict[str, Any]]]:
    """:data:`ROWS` by script and by what they are of."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for row in ROWS:
        try:
            whole = shown(row, found, with_reference)
        except KeyError:
            if quick:
                continue
            raise
        rows.setdefault(row.script, {})[row.what] = whole
    return rows
