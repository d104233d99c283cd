"""``sleepfm score``: recordings in, one folder of results a night out."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sleepfm.commands.device_option import add_device
from sleepfm.errors import RecordingError, SleepFMError, UsageError
from sleepfm.files import make_folder
from sleepfm.output import Origin, check_free, whole_folder
from sleepfm.signals.files import file_sha256, is_file, location

if TYPE_CHECKING:
    from sleepfm.inference.night_score import NightScore


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sleepfm score``."""
    parser.add_argument("recordings", nargs="*", metavar="EDF", help="recordings (EDF, EDF+, BDF)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder that gets one folder a night")
    parser.add_argument(
        "--model",
        nargs="+",
        action="append",
        default=[],
        metavar="URI",
        help="models:/NAME@ALIAS, models:/NAME/VERSION or a package folder; the champions by default",
    )
    parser.add_argument("--cohort", default="auto", metavar="NAME", help="channel rules (name, YAML file, or folder of them)")
    add_device(parser)
    parser.add_argument("--scoring", metavar="FILE", help="human scoring of the one recording, to compare with")
    parser.set_defaults(run=run, several="recordings")


def headline(score: NightScore) -> str:
    """The night in one line: what was scored, and nothing of what was not."""
    parts = [f"{score.n_epochs} epochs"]
    if "stage" in score.models:
        stats = score.statistics
        slept = stats.total_sleep_time
        parts.append("no epoch staged" if math.isnan(slept) else f"{slept:.0f} min of sleep")
        parts += [f"{stats.unscored:g} min unscored"] if stats.unscored else []
    return ", ".join([*parts, *([str(score.breathing)] if score.breathing.counted else [])])


def run(arguments: argparse.Namespace) -> int:
    """Score every recording; 1 if any was refused, each with its reason."""
    models, recordings = _models_and_recordings(arguments.model, arguments.recordings)
    if not recordings:
        raise UsageError("no recording stated; name EDF or BDF files")
    if arguments.scoring and len(recordings) > 1:
        raise UsageError("--scoring belongs to one recording; score the others in calls of their own")
    scoring = _scoring(arguments.scoring)
    from sleepfm.inference.scorer import Scorer, prepare_night
    from sleepfm.models.device import choose_device
    from sleepfm.reports.night_files import write_night
    from sleepfm.signals.files import local_path

    out = local_path(arguments.out, "--out")
    scorer = Scorer.load(models, device=choose_device(arguments.device))
    make_folder(out)
    written: dict[str, str] = {}
    refused = 0
    for number, path in enumerate(recordings, 1):
        prefix = f"[{number}/{len(recordings)}] {path}"
        try:
            night = prepare_night(path, arguments.cohort, scoring)
            if night.record in written:
                raise UsageError(f"{path}: named {night.record!r} like {written[night.record]}; use another --out")
            folder, origin = out / night.record, _origin(path)
            # Before the work.
            check_free(folder, origin)
            score = scorer.score(night)
            with whole_folder(folder, origin) as unfinished:
                write_night(unfinished, score, night)
        except SleepFMError as error:
            refused += 1
            print(f"refused: {error}", file=sys.stderr, flush=True)
            continue
        written[night.record] = str(path)
        print(f"{prefix}: {headline(score)} -> {folder}", flush=True)
        for warning in score.warnings:
            print(f"  {warning}", flush=True)
    return 1 if refused else 0


def _models_and_recordings(groups: list[list[str]], recordings: list[str]) -> tuple[list[str], list[str]]:
    """The words behind each ``--model``, and those that are recordings.

    The first word behind an option is a model; of the others those that can be no recording: addresses and folders.
    """
    models: list[str] = []
    found: list[str] = []
    for first, *others in groups:
        models.append(first)
        for word in others:
            (models if word.startswith("models:") or Path(word).is_dir() else found).append(word)
    return models, [*found, *recordings]


def _scoring(path: str | None) -> Path | None:
    """The file of ``--scoring``. What is in it may be of no use, and the night is scored without; a name that is wrong is not."""
    if path is None:
        return None
    found = location(path)
    try:
        there = is_file(found)
    except OSError as error:
        raise UsageError(f"--scoring {path}: cannot be read ({error.strerror or error})") from error
    if not there:
        raise UsageError(f"--scoring {path}: no such file")
    return found


def _origin(path: str) -> Origin:
    """What a scored night was made from: the bytes of its recording, since headers of different nights can be equal."""
    try:
        return Origin("scored night", file_sha256(location(path)), path)
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read ({error})") from error
