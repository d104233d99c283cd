"""Write a synthetic cohort as a download of a real one looks: SHHS1, or any other that has a layout."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from sleepfm.config import digest, to_dict
from sleepfm.console import with_progress
from sleepfm.constants import EPOCH_SECONDS
from sleepfm.errors import UsageError
from sleepfm.files import atomic_path, make_folder, read_json, remove_temporaries, sha256_file, write_json
from sleepfm.lock import LOCK_FILE
from sleepfm.processes import process_pool
from sleepfm.signals.edf.writer import write_edf
from sleepfm.synthetic.faults.draw import add_faults
from sleepfm.synthetic.faults.rates import FaultRates
from sleepfm.synthetic.faults.spoil import spoil
from sleepfm.synthetic.faults.truth import Fault, truth_document
from sleepfm.synthetic.layout import layout_names, load_layout
from sleepfm.synthetic.night import draw_night
from sleepfm.synthetic.scoring_files import write_scoring
from sleepfm.synthetic.subject_table import write_table
from sleepfm.synthetic.variety.config import Variety
from sleepfm.synthetic.variety.recorder import record, varied_layout
from sleepfm.synthetic.variety.recording import draw_varied
from sleepfm.version import __version__

STATEMENT = "synth.json"
TRUTH = "truth"
LEAST_HOURS, MOST_HOURS = 0.1, 24.0


def write_cohort(
    out: Path,
    subjects: int,
    hours: float,
    seed: int,
    cohort: str = "shhs1",
    workers: int = 1,
    rates: FaultRates | None = None,
    variety: Variety | None = None,
    part: range | None = None,
    compare: bool = False,
) -> list[Path]:
    """Write ``subjects`` recordings of ``hours`` (rounded to epochs) below ``out`` and return the EDF paths.

    ``rates`` say how often a recording has which fault; clean nights where it is None. What was drawn into a faulty
    recording stands in ``out/truth``, and what is told of the people in a table, where the cohort has one. With ``variety``
    each recording has a layout of its own, and ``cohort`` is not used. ``part`` are the numbers of those that are written now, of
    a cohort without a table; all by default. With ``compare`` what is there whole is drawn again, and refused if it has other
    bytes.

    The bytes of a recording depend only on ``seed``, the subject's number, ``hours``, ``rates`` and ``variety``. Files are
    written beside their place and renamed; a recording that is there whole under the same arguments is kept.
    ``out/synth.json`` states the arguments.

    Raises:
        UsageError: arguments out of range, an unknown cohort, or an ``out`` made with other arguments.
        StorageError: the folder cannot be written to.
    """
    if cohort not in layout_names():
        raise UsageError(f"--cohort {cohort!r}: expected one of {', '.join(layout_names())}")
    places = load_layout(cohort) if variety is None else varied_layout({})
    most = places.most
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
        "faults": digest(to_dict(rates)) if rates else "none",
        "subjects": subjects,
    }
    if variety is not None:
        statement |= {"cohort": "varied", "variety": digest(variety)}
    write = partial(write_subject, out, cohort, seed, n_epochs, rates=rates, variety=variety, compare=compare)
    numbers = range(subjects) if part is None else part
    progress = partial(with_progress, total=len(numbers), what="synth", unit="night")
    _state(out / STATEMENT, statement, complete=False)
    remove_temporaries(out, re.escape(STATEMENT))
    for path in {place for number in numbers for place in places.place(out, number)}:
        remove_temporaries(path.parent, re.escape(path.name))
        remove_temporaries(out / TRUTH, re.escape(f"{path.stem}.json"))
    if workers == 1 or len(numbers) == 1:
        paths = [write(number) for number in progress(numbers)]
    else:
        with process_pool(min(workers, len(numbers))) as pool:
            paths = list(progress(pool.map(write, numbers)))
    if part is not None:
        return paths
    if (table := places.table) is not None:
        path = out / table.path
        remove_temporaries(path.parent, re.escape(path.name))
        write_table(path, table, places.first, subjects, seed)
    _state(out / STATEMENT, statement, complete=True)
    return paths


def write_subject(
    out: Path,
    cohort: str,
    seed: int,
    n_epochs: int,
    number: int,
    rates: FaultRates | None = None,
    variety: Variety | None = None,
    compare: bool = False,
) -> Path:
    """Write the EDF, the scoring and, with faults or ``variety``, the truth of subject ``number`` (0-based) unless they are
    there; returns the EDF's path. ``compare`` as in :func:`write_cohort`."""
    layout = load_layout(cohort) if variety is None else varied_layout({})
    edf, scoring = layout.place(out, number)
    truth = out / TRUTH / f"{edf.stem}.json"
    tells_truth = rates is not None or variety is not None
    if not compare and edf.exists() and scoring.exists() and (truth.exists() or not tells_truth):
        return edf
    varied = None if variety is None else draw_varied(seed, number, n_epochs, variety)
    night = draw_night(seed, number, n_epochs) if varied is None else varied.night
    layout = layout if varied is None else varied.recorder.layout
    faults: tuple[Fault, ...] = ()
    clean = night
    if rates is not None:
        night, faults = add_faults(clean, rates, layout.scoring.format)
    if tells_truth and not truth.exists():
        sources = {label: signal.source for label, signal in layout.signals.items()}
        document = truth_document(edf.relative_to(out).as_posix(), clean, len(night.codes) * EPOCH_SECONDS, faults, sources)
        write_json(truth, document if varied is None else document | varied.told(), compact=True)
    del clean
    for path in (edf, scoring):
        make_folder(path.parent)
    with atomic_path(edf) as new_edf, atomic_path(scoring) as new_scoring:
        drawn = layout.draw(night, number)
        recorded = drawn if varied is None else record(drawn, varied.recorder, night.subject)
        signals = spoil(recorded, layout, night.subject, faults)
        write_edf(new_edf, layout.channels, signals, len(night.codes) * EPOCH_SECONDS, night.start)
        write_scoring(layout.scoring.format, new_scoring, night)
        for path, new in ((edf, new_edf), (scoring, new_scoring)):
            # A kill between the two renames leaves one of them; anything else is not ours to replace.
            if path.exists() and sha256_file(path) != sha256_file(new):
                raise UsageError(f"{path}: exists and is not the recording of this cohort; move it away, or give another folder")
    return edf


def _state(path: Path, statement: dict[str, str | int | float], complete: bool) -> None:
    """Write the arguments to ``path``, after checking that what is there is the same cohort or its beginning."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        found = "no statement"
    if found is None and path.parent.exists() and any(item.name != LOCK_FILE for item in path.parent.iterdir()):
        raise UsageError(f"{path.parent}: contains files that this command did not write; give a new or an empty folder")
    if found is not None and not isinstance(found, dict):
        raise UsageError(f"{path}: does not describe a cohort; give another folder")
    if found is not None:
        for key, value in statement.items():
            if found.get(key) != value and not (key == "subjects" and found[key] < statement["subjects"]):
                raise UsageError(
                    f"{path.parent}: contains a cohort with {key} {found.get(key)}, asked for {value}; "
                    "give another folder or remove this one"
                )
    write_json(path, {**statement, "complete": complete})
