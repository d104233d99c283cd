"""``sleepfm score``: recordings in, one folder of results a night out."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sleepfm import builtin
from sleepfm.commands.device_option import add_device
from sleepfm.console import say
from sleepfm.errors import UsageError
from sleepfm.files import make_folder
from sleepfm.signals.files import is_file, local_path, location

if TYPE_CHECKING:
    from sleepfm.commands.score_night import Outcome


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sleepfm score``."""
    parser.add_argument(
        "recordings", nargs="*", metavar="EDF", help="recordings (EDF, EDF+, BDF), folders of them, patterns, URLs"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder that gets one folder a night, and a summary of all")
    parser.add_argument(
        "--model",
        nargs="+",
        action="append",
        default=[],
        metavar="URI",
        help="models:/NAME@ALIAS, models:/NAME/VERSION, builtin or a package folder; by default the champion of sleepfm-scorer, "
        "else those of the tasks, else the built-in models",
    )
    parser.add_argument("--store", help="MLflow address; default: MLFLOW_TRACKING_URI, else runs/mlflow.db")
    parser.add_argument("--cohort", default="auto", metavar="NAME", help="channel rules (name, YAML file, or folder of them)")
    parser.add_argument(
        "--channel",
        action="append",
        default=[],
        metavar="NAME=SIGNAL",
        help="make a canonical channel of this signal, or of a signal less its reference: EEG_C4=C4:A1",
    )
    add_device(parser)
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "bf16"),
        help="of encoders; auto: bf16 for large ones where the processor multiplies in it, else fp32",
    )
    parser.add_argument("--scoring", metavar="FILE", help="human scoring of the one recording, to compare with")
    parser.add_argument(
        "--position",
        metavar="LABEL=CODES",
        help="signal of the body's position and what its values mean: POSITION=0:right,1:left,2:supine,3:prone",
    )
    parser.add_argument(
        "--show-identity",
        action="store_true",
        help="the report names the person, as the header does, and the date; without, neither",
    )
    parser.add_argument("--lights-off", metavar="TIME", help="time of day (22:45) or seconds from the start (+900)")
    parser.add_argument("--lights-on", metavar="TIME", help="as --lights-off; by default both as annotated, else by rule")
    parser.add_argument(
        "--resolution",
        default="30s",
        choices=("1s", "5s", "30s"),
        help="of the hypnodensity; 5s takes 6 times as long, 1s 30",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes, each with its models; with RAY_ADDRESS actors of that Ray cluster"
    )
    parser.add_argument("--again", action="store_true", help="score also what is there already, made with the same")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each recording")
    parser.set_defaults(run=run, several="recordings")


def run(arguments: argparse.Namespace) -> int:
    """Score every recording; 1 if any was refused, each with its reason."""
    models, words = _models_and_recordings(arguments.model, arguments.recordings)
    if not words:
        raise UsageError("no recording stated; name EDF or BDF files, or folders of them")
    if arguments.workers is not None and arguments.workers < 1:
        raise UsageError(f"--workers {arguments.workers}: at least 1")
    scoring = _scoring(arguments.scoring)
    from sleepfm.commands.score_inputs import Job, find_jobs
    from sleepfm.commands.score_night import Outcome, Plan, parse_time
    from sleepfm.commands.score_pool import outcomes
    from sleepfm.reports.cohort_summary import check_summary, write_summary
    from sleepfm.signals.cohorts.by_hand import parse_channels
    from sleepfm.signals.cohorts.catalogue import load_rules
    from sleepfm.signals.position import parse_position

    out = local_path(arguments.out, "--out")
    for option, text in (("--lights-off", arguments.lights_off), ("--lights-on", arguments.lights_on)):
        if text is not None:
            parse_time(option, text)
    if arguments.position is not None:
        parse_position(arguments.position)
    plan = Plan(
        models=tuple(models),
        out=out,
        cohort=arguments.cohort,
        store=arguments.store,
        device=arguments.device,
        channels=parse_channels(arguments.channel),
        lights_off=arguments.lights_off,
        lights_on=arguments.lights_on,
        resolution=int(arguments.resolution.removesuffix("s")),
        scoring=scoring,
        again=arguments.again,
        precision=arguments.precision,
        progress=not arguments.json,
        position=arguments.position,
        show_identity=arguments.show_identity,
    )
    found = list(find_jobs(words, load_rules(arguments.cohort), out))
    jobs = [job for job in found if isinstance(job, Job)]
    if scoring and len(found) > 1:
        raise UsageError("--scoring belongs to one recording; score the others in calls of their own")
    check_summary(out)
    refused = {item.file: str(item.error) for item in found if not isinstance(item, Job)}
    for reason in refused.values():
        print(f"refused: {reason}", file=sys.stderr, flush=True)
    names: dict[str, str] = {}
    if jobs and not plan.models:
        plan = replace(plan, models=_default_models(arguments.store))
    done = outcomes(plan, jobs, arguments.workers)
    first = next(done, None)
    # Models that are not there are told before anything is made.
    make_folder(out)
    number = len(refused)
    while first is not None:
        number += 1
        outcome = first
        if outcome.status != "refused" and names.setdefault(outcome.record, outcome.file) != outcome.file:
            reason = f"{outcome.file}: named {outcome.record!r} like {names[outcome.record]}; use another --out"
            outcome = Outcome("refused", outcome.file, reason=reason)
        if outcome.status == "refused":
            refused[outcome.file] = outcome.reason
        _tell(outcome, f"[{number}/{len(found)}]", arguments.json)
        first = next(done, None)
    if names:
        folder = write_summary(out, refused)
        if not arguments.json:
            print(f"summary of all nights -> {folder}", flush=True)
    return 1 if refused else 0


def _default_models(store: str | None) -> tuple[str, ...]:
    """By version, so that all processes take the same; says which they are."""
    from sleepfm.inference.default_models import default_models

    addresses, said = default_models(store)
    say(said)
    return addresses


def _tell(outcome: Outcome, count: str, as_json: bool) -> None:
    if outcome.status == "refused":
        print(f"refused: {outcome.reason}", file=sys.stderr, flush=True)
    if as_json:
        content = {"status": outcome.status, "file": outcome.file}
        if outcome.status == "refused":
            content["reason"] = outcome.reason
        else:
            content |= {"record": outcome.record, "folder": outcome.folder}
            summary = json.loads((Path(outcome.folder) / "summary.json").read_text(encoding="utf-8"))
            content["summary"] = summary
        print(json.dumps(content, allow_nan=False), flush=True)
    elif outcome.status == "scored":
        print(f"{count} {outcome.file}: {outcome.line} -> {outcome.folder}", flush=True)
        for warning in outcome.warnings:
            print(f"  {warning}", flush=True)
    elif outcome.status == "done before":
        print(f"{count} {outcome.file}: done before -> {outcome.folder} (--again scores it again)", flush=True)


def _models_and_recordings(groups: list[list[str]], recordings: list[str]) -> tuple[list[str], list[str]]:
    """The words behind each ``--model``, and those that are recordings.

    The first word behind an option is a model; of the others those that can be no recording: addresses and packages.
    """
    models: list[str] = []
    found: list[str] = []
    for first, *others in groups:
        models.append(first)
        for word in others:
            (models if _is_model(word) else found).append(word)
    return models, [*found, *recordings]


def _is_model(word: str) -> bool:
    return word.startswith("models:") or builtin.is_address(word) or (Path(word) / "config.yaml").is_file()


def _scoring(path: str | None) -> str | None:
    """The file of ``--scoring``. What is in it may be of no use, and the night is scored without; a name that is wrong is not."""
    if path is None:
        return None
    try:
        there = is_file(location(path))
    except OSError as error:
        raise UsageError(f"--scoring {path}: cannot be read ({error.strerror or error})") from error
    if not there:
        raise UsageError(f"--scoring {path}: no such file")
    return path
