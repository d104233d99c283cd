"""Tables of a scored night: a row an epoch, a row a second, and the hypnogram as an array."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sleepfm.constants import EPOCH_SECONDS, STAGE_NAMES
from sleepfm.inference.night_score import NightScore
from sleepfm.inference.resolution import per_second
from sleepfm.signals.prepare import PreparedRecording
from sleepfm.signals.quality import UNUSABLE, Quality
from sleepfm.signals.scorings.writers.night import FAMILIES
from sleepfm.tasks import TASKS

# YASA's code of an epoch that nobody scored (its -1 is an artefact, which is not all that -1 stands for here).
YASA_UNSCORED = -2


def write_tables(folder: Path, score: NightScore, night: PreparedRecording, clock: Callable[[float], str]) -> None:
    """Write ``stages.csv``, ``hypnodensity.csv``, the finer one if there is any, ``probabilities.parquet``, ``hypnogram.npy``."""
    stages = score.stages_frame()
    stages.insert(2, "clock", [clock(second) for second in stages["onset_s"].tolist()])
    stages["unscored_because"] = unscored_reasons(score, night)
    stages["events_not_assessed"] = _without_events(score)
    stages.to_csv(folder / "stages.csv", index=False, float_format="%.5f")
    score.hypnodensity_frame().to_csv(folder / "hypnodensity.csv", index=False, float_format="%.5f")
    if score.fine is not None:
        fine: dict[str, Any] = {"onset_s": np.arange(len(score.fine.probability)) * score.fine.seconds}
        fine |= {name: score.fine.probability[:, k] for k, name in enumerate(STAGE_NAMES)}
        path = folder / f"hypnodensity-{score.fine.seconds}s.csv"
        pd.DataFrame(fine).to_csv(path, index=False, float_format="%.5f")
    pq.write_table(_by_second(score, clock), folder / "probabilities.parquet")
    np.save(folder / "hypnogram.npy", np.where(score.stages >= 0, score.stages, YASA_UNSCORED).astype(np.int64))


def clock_of(start: datetime | None, clock: str | None) -> Callable[[float], str]:
    """Seconds from the first sample as a time of day, to the second below; empty where nobody knows it."""
    if start is None and clock is None:
        return lambda seconds: ""
    begin = start or datetime.fromisoformat(f"2000-01-01T{clock}")
    return lambda seconds: (begin + timedelta(seconds=seconds)).time().isoformat(timespec="seconds")


def unscored_reasons(score: NightScore, night: PreparedRecording) -> list[str]:
    """Why each epoch has no stage; empty where it has one."""
    if "stage" not in score.models:
        return ["no model of sleep stages was given"] * score.n_epochs
    used = score.inputs.get("stage", ())
    needed = TASKS["stage"].needed(used) or used
    asked = ", ".join(TASKS["stage"].evidence)
    if not needed or "stage" in score.without_evidence:
        return [f"the recording has no usable channel of {asked}"] * score.n_epochs
    return [
        "" if stage >= 0 else "; ".join(f"{name} {_flagged(int(night.quality[name][epoch]))}" for name in needed)
        for epoch, stage in enumerate(score.stages.tolist())
    ]


def _flagged(flags: int) -> str:
    named = [str(flag.name).lower().replace("_", " ") for flag in Quality if flags & flag & UNUSABLE]
    return ", ".join(named) or "without a usable signal"


def _without_events(score: NightScore) -> list[str]:
    """Families of events that nobody looked for to the second in each epoch."""
    nowhere = np.zeros(score.n_epochs, bool)
    masks = {family: score.assessed_families.get(family, nowhere) for family in FAMILIES}
    return [" ".join(family for family, mask in masks.items() if not mask[epoch]) for epoch in range(score.n_epochs)]


def _by_second(score: NightScore, clock: Callable[[float], str]) -> pa.Table:
    """A row a second; what its metadata calls ``30-s epoch`` has the same value in all seconds of an epoch."""
    seconds = np.arange(score.n_epochs * EPOCH_SECONDS)
    columns: dict[str, Any] = {
        "second": pa.array(seconds, pa.int32()),
        "epoch": pa.array(seconds // EPOCH_SECONDS + 1, pa.int32()),
        "clock": pa.array([clock(second) for second in seconds.tolist()], pa.string()),
    }
    stages = per_second(score.fine) if score.fine is not None else np.repeat(score.hypnodensity, EPOCH_SECONDS, axis=0)
    resolution = {"stage": f"{score.fine.seconds} s, of the 30-s epoch around it" if score.fine is not None else "30-s epoch"}
    columns |= {f"stage_{name}": _nullable(stages[:, k]) for k, name in enumerate(STAGE_NAMES)}
    for task, of_epochs in score.probability.items():
        of_seconds = score.seconds.get(task)
        columns[task] = _nullable(np.repeat(of_epochs, EPOCH_SECONDS) if of_seconds is None else of_seconds)
        resolution[task] = "30-s epoch" if of_seconds is None else "1 s"
    table = pa.table(columns)
    return table.replace_schema_metadata({f"resolution of {name}": text for name, text in resolution.items()})


def _nullable(values: NDArray[np.float64]) -> pa.Array:
    """float32, null where nan: unknown is no number."""
    return pa.array(values.astype(np.float32), mask=np.isnan(values))
