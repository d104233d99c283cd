"""Write a synthetic cohort as a download of a real one looks: SHHS1, or any other that has a layout."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from sleepfm.constants import EPOCH_SECONDS
from sleepfm.data.synthetic.edf import write_edf
from sleepfm.data.synthetic.layout import layout_names, load_layout
from sleepfm.data.synthetic.night import draw_night
from sleepfm.data.synthetic.scoring_files import write_scoring
from sleepfm.errors import RecordingError, UsageError
from sleepfm.version import __version__

STATEMENT = "synth.json"
LEAST_HOURS, MOST_HOURS = 0.1, 24.0


def write_cohort(out: Path, subjects: int, hours: float, seed: int, cohort: str = "shhs1", workers: int = 1) -> list[Path]:
    """Write ``subjects`` recordings of ``hours`` (rounded to epochs) below ``out`` and return the EDF paths.

    The bytes depend only on ``seed``, the subject's number and ``hours``. Files are written beside their
    place and renamed; a recording that is there whole under the same arguments is kept. ``out/synth.json``
    states the arguments.

    Raises:
        UsageError: arguments out of range, an unknown cohort, or an ``out`` made with other arguments.
        RecordingError: the folder cannot be written.
    """
    if cohort not in layout_names():
        raise UsageError(f"--cohort {cohort!r}: expected one of {', '.join(layout_names())}")
    most = load_layout(cohort).most
    if not 1 <= subjects <= most:
        raise UsageError(f"--subjects {subjects}: expected 1 to {most}")
    if not LEAST_HOURS < hours <= MOST_HOURS:
        raise UsageError(f"--hours {hours:g}: expected more than {LEAST_HOURS} and at most {MOST_HOURS:g}")
    if seed < 0:
        raise UsageError(f"--seed {seed}: expected 0 or more")
    if workers < 1:
        raise UsageError(f"--workers {workers}: expected 1 or more")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is not a folder")
    n_epochs = round(hours * 3600 / EPOCH_SECONDS)
    statement: dict[str, str | int | float] = {
        "cohort": cohort,
        "hours": n_epochs * EPOCH_SECONDS / 3600,
        "seed": seed,
        "version": __version__,
        "subjects": subjects,
    }
    write = partial(write_subject, out, cohort, seed, n_epochs)
    progress = partial(tqdm, total=subjects, desc="synth", unit="night")
    try:
        _state(out / STATEMENT, statement, complete=False)
        if workers == 1 or subjects == 1:
            paths = [write(number) for number in progress(range(subjects))]
        else:
            with ProcessPoolExecutor(min(workers, subjects), mp_context=get_context("spawn")) as pool:
                paths = list(progress(pool.map(write, range(subjects))))
        _state(out / STATEMENT, statement, complete=True)
    except OSError as error:
        raise RecordingError(f"{error.filename or out}: cannot write the cohort ({error.strerror})") from error
    return paths


def write_subject(out: Path, cohort: str, seed: int, n_epochs: int, number: int) -> Path:
    """Write the EDF and the scoring of subject ``number`` (0-based) unless both are there; returns the EDF's
    path."""
    layout = load_layout(cohort)
    edf, scoring = layout.place(out, number)
    if edf.exists() and scoring.exists():
        return edf
    night = draw_night(seed, number, n_epochs)
    for path in (edf, scoring):
        path.parent.mkdir(parents=True, exist_ok=True)
    partial_edf, partial_scoring = _partial(edf), _partial(scoring)
    write_edf(partial_edf, layout.channels, layout.draw(night, number), n_epochs * EPOCH_SECONDS, night.start)
    write_scoring(layout.scoring.format, partial_scoring, night)
    os.replace(partial_edf, edf)
    os.replace(partial_scoring, scoring)
    return edf


def _state(path: Path, statement: dict[str, str | int | float], complete: bool) -> None:
    """Write the arguments to ``path``, after checking that what is there is the same cohort or its beginning."""
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        for key, value in statement.items():
            if found.get(key) != value and not (key == "subjects" and found[key] < statement["subjects"]):
                raise UsageError(
                    f"{path.parent}: holds a cohort with {key} {found.get(key)}, asked for {value}; "
                    "give another folder or remove this one"
                )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = _partial(path)
    partial_path.write_text(json.dumps({**statement, "complete": complete}, indent=1, sort_keys=True) + "\n")
    os.replace(partial_path, path)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
