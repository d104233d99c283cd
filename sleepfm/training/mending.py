"""What a run that goes on does about files of its own that are damaged or gone.

A damaged file is never used. It is renamed to ``damaged-…``, and a warning says so. What cannot be restored is recorded in
``run.json``, and so in tags of the tracking run and of the versions that are registered from then on.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from sleepfm.console import warn
from sleepfm.errors import CheckpointError
from sleepfm.files import atomic_file, set_aside, write_atomic
from sleepfm.output import check_free
from sleepfm.registry.package import WEIGHTS
from sleepfm.training.folder import RunFolder
from sleepfm.training.run_config import RegistryConfig
from sleepfm.training.segments import counts
from sleepfm.training.state import sealed
from sleepfm.training.state.selection import read_facts
from sleepfm.training.tracking.goodput import read_sums
from sleepfm.training.tracking.trace import whole_rows


def mend(folder: RunFolder, registry: RegistryConfig, step: int, steps: int) -> None:
    """Look at what the run in ``folder``, which goes on from ``step`` of ``steps``, will read. On rank 0, before it is read.

    Raises:
        CheckpointError: the best weights are damaged or gone, and no validation is left to choose others.
        DatasetError: the trace is no file.
        StorageError: a package has been changed, or something cannot be written.
    """
    for package in (folder.package, folder.last):
        # Now, not when everything is trained and it is to be replaced.
        check_free(package, folder.origin(package, registry.name))
    _mend_best(folder, registry.metric, step, steps)
    _mend_trace(folder, step)
    _mend_goodput(folder, step)
    try:
        folder.read_result()
    except CheckpointError as error:
        warn(f"{error}; set aside as {set_aside(folder.result).name}: the trained model is packaged and registered again")
    saved = folder.saved_step()
    if saved is not None and saved > step:
        warn(
            f"{folder.checkpoints}: the checkpoint of step {saved}, which was saved last, is missing; continuing from step {step}"
        )


def _mend_best(folder: RunFolder, metric: str, step: int, steps: int) -> None:
    fault = _fault(folder.best)
    known = folder.best_facts()
    if not fault:
        return
    gone = not os.path.lexists(folder.best)
    # A run of an earlier version did not keep what was said of its best weights.
    known = known or _header(folder.best) or _header(folder.package / WEIGHTS)
    if not known and gone:
        return
    described = f"the best weights ({'of an unknown step' if not known else _describe(known, metric, folder.best)})"
    twin = _twin(folder, known)
    if twin is not None:
        aside = "" if gone else f"; set aside as {set_aside(folder.best).name}"
        with twin.open("rb") as source, atomic_file(folder.best) as target:
            shutil.copyfileobj(source, target)
        warn(f"{fault}{aside}; {described} were restored from {twin}, where they are intact")
        return
    of_use = True
    if known:
        segment, at, _ = read_facts(known, folder.best)
        # Those of an undone step, or of one that is still to come, are no loss.
        of_use = counts(segment, at, folder.segments()) and at <= step
    if of_use and step >= steps:
        raise CheckpointError(
            f"{fault}: {described} are lost, and the run is at its last step, so no validation is left to choose others: put "
            "the file back, continue with a larger train.steps=, or give another train.output= and "
            f"branch_from={folder.root}@STEP with an earlier checkpoint"
        )
    if not gone:
        fault += f"; set aside as {set_aside(folder.best).name}"
    if of_use:
        folder.record_lost(step, described)
        warn(f"{fault}: {described} are lost; from step {step} on, the best of later validations are kept")
    elif not gone:
        warn(fault)


def _twin(folder: RunFolder, known: dict[str, str]) -> Path | None:
    """A whole file with the weights that ``known`` speaks of."""
    if sealed.SEAL not in known:
        return None
    for path in (folder.package / WEIGHTS, *(waiting / WEIGHTS for waiting in folder.all_waiting())):
        if _header(path).get(sealed.SEAL) == known[sealed.SEAL] and not _fault(path):
            return path
    return None


def _mend_trace(folder: RunFolder, step: int) -> None:
    rows, damaged = whole_rows(folder.trace)
    if damaged:
        aside = set_aside(folder.trace)
        write_atomic(folder.trace, "".join(json.dumps(row) + "\n" for row in rows))
        warn(f"{folder.trace}: {damaged} lines are damaged; set aside as {aside.name}, the other lines are kept")
    there = {row["step"] for row in rows}
    missing = [number for number in range(1, step + 1) if number not in there]
    if missing:
        what = f"{folder.trace.name}: rows of {len(missing)} steps from step {missing[0]} to {missing[-1]}"
        if folder.record_lost(step, what):
            warn(
                f"{folder.trace}: continues from step {step} without the rows of {len(missing)} steps from step {missing[0]} "
                f"to {missing[-1]}"
            )


def _mend_goodput(folder: RunFolder, step: int) -> None:
    try:
        read_sums(folder.goodput)
    except CheckpointError as error:
        aside = set_aside(folder.goodput)
        folder.record_lost(step, f"{folder.goodput.name}: where the wall time went until step {step}")
        warn(f"{error}; set aside as {aside.name}: the run time is counted from step {step} on")


def _fault(path: Path) -> str:
    """What is wrong with the best weights in ``path``; empty if they are whole."""
    try:
        read_facts(sealed.check(path), path)
    except CheckpointError as error:
        return str(error)
    return ""


def _header(path: Path) -> dict[str, str]:
    """The header of the best weights in ``path``; nothing if it cannot be read."""
    try:
        header = sealed.read_header(path)
        read_facts(header, path)
    except CheckpointError:
        return {}
    return header


def _describe(known: dict[str, str], metric: str, path: Path) -> str:
    _, step, figures = read_facts(known, path)
    return f"of step {step}, {metric} {figures[metric]:.4f}" if metric in figures else f"of step {step}"
