"""``sleepfm score``: recordings in, one folder of results a night out."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sleepfm import builtin
from sleepfm.command_line import add_examples, positive
from sleepfm.commands.options import add_cohort, add_device, add_store
from sleepfm.console import say
from sleepfm.errors import UsageError
from sleepfm.files import check_folder, make_folder
from sleepfm.signals.files import is_file, local_path, location

if TYPE_CHECKING:
    from sleepfm.commands.score_night import Outcome


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sleepfm score``."""
    parser.add_argument(
        "recordings",
        nargs="*",
        metavar="EDF",
        help="recordings (EDF, EDF+, BDF), folders of them, patterns such as '*.edf', or URLs",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="folder for the results: a summary, and one folder for each night, named like its file; if several files of a call "
        "have the same name, as in one folder per patient, like their paths (P1-psg-edf)",
    )
    parser.add_argument(
        "--model",
        nargs="+",
        action="append",
        default=[],
        metavar="URI",
        help="models:/NAME@ALIAS, models:/NAME/VERSION, builtin or a model folder; one for each task (default: the champion of "
        "sleepfm-scorer, else the champions of sleepfm-stage, sleepfm-apnea and sleepfm-hypopnea, else builtin)",
    )
    add_store(parser)
    add_cohort(parser)
    parser.add_argument(
        "--channel",
        action="append",
        default=[],
        metavar="NAME=SIGNAL",
        help="make a canonical channel from this signal, or from a signal and its reference: EEG_C4=C4:A1; may be given several "
        "times",
    )
    add_device(parser)
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "bf16"),
        help="arithmetic of the encoders; auto: bf16 for large encoders if the processor has bf16 multiplication, else fp32 "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--scoring",
        metavar="FILE",
        help="human scoring to compare with; only for one recording (default: the scoring beside the recording, if there is one)",
    )
    parser.add_argument(
        "--position",
        metavar="LABEL=CODES",
        help="label of the signal of body position, and what its values mean: POSITION=0:right,1:left,2:supine,3:prone",
    )
    parser.add_argument(
        "--show-identity",
        action="store_true",
        help="show the person's name, from the recording's header, and the date in the report (default: neither)",
    )
    parser.add_argument(
        "--lights-off",
        metavar="TIME",
        help="time of day (22:45), or seconds from the start (+900) (default: as annotated, else the first scored epoch)",
    )
    parser.add_argument(
        "--lights-on", metavar="TIME", help="the same for lights on (default: as annotated, else the last scored epoch)"
    )
    parser.add_argument(
        "--resolution",
        default="30s",
        choices=("1s", "5s", "30s"),
        help="time step of the hypnodensity; 5s takes 6 times as long as 30s, 1s takes 30 times as long (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="number of processes, each with its own copy of the models; with RAY_ADDRESS, of actors on that Ray cluster "
        "(default: 1; on Ray, one for each CPU)",
    )
    parser.add_argument(
        "--again", action="store_true", help="score all nights again (default: skip nights whose results would be the same)"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON for each recording")
    add_examples(
        parser, "night.edf --out scored", "recordings --out scored --model models:/sleepfm-scorer@champion --lights-off 22:45"
    )
    parser.set_defaults(run=run, several="recordings")


def run(arguments: argparse.Namespace) -> int:
    """Score every recording; 1 if any was refused, each with its reason."""
    models, words = _models_and_recordings(arguments.model, arguments.recordings)
    if not words:
        raise UsageError("no recording given; give EDF or BDF files, or folders of them")
    scoring = _scoring(arguments.scoring)
    from sleepfm.commands.refusals import Refusals
    from sleepfm.commands.score_inputs import Job, find_jobs, named_apart
    from sleepfm.commands.score_night import Outcome, Plan, parse_time
    from sleepfm.commands.score_pool import outcomes
    from sleepfm.commands.score_scorings import with_named_scorings
    from sleepfm.reports.cohort_summary import check_summary, write_summary
    from sleepfm.signals.cohorts.by_hand import parse_channels
    from sleepfm.signals.cohorts.catalogue import load_rules
    from sleepfm.signals.position import parse_position

    out = local_path(arguments.out, "--out")
    check_folder(out)
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
    rules = load_rules(arguments.cohort)
    given, told = with_named_scorings(list(find_jobs(words, rules, out)), rules)
    for line in told:
        say(line)
    found = named_apart(given, words)
    jobs = [job for job in found if isinstance(job, Job)]
    if scoring and len(found) > 1:
        raise UsageError("--scoring is for one recording; score the other recordings in separate calls")
    check_summary(out)
    refusals = Refusals()
    for item in found:
        if not isinstance(item, Job):
            refusals.add(item.file, str(item.error))
    names: dict[str, str] = {}
    if jobs and not plan.models:
        plan = replace(plan, models=_default_models(arguments.store))
    done = outcomes(plan, jobs, arguments.workers) if jobs else iter(())
    first = next(done, None)
    if jobs:
        # Models that are not there are told before anything is made.
        make_folder(out)
    number = refusals.count
    counts = {"scored": 0, "done before": 0}
    lacking: Counter[str] = Counter()
    while first is not None:
        number += 1
        outcome = first
        if outcome.status != "refused" and names.setdefault(outcome.record, outcome.file) != outcome.file:
            reason = f"{outcome.file}: named {outcome.record!r} like {names[outcome.record]}; use another --out"
            outcome = Outcome("refused", outcome.file, reason=reason)
        if outcome.status == "refused":
            refusals.add(outcome.file, outcome.reason)
        else:
            counts[outcome.status] += 1
            if outcome.lacks:
                lacking[outcome.lacks] += 1
        _tell(outcome, f"[{number}/{len(found)}]", arguments.json)
        first = next(done, None)
    if names:
        folder = write_summary(out, refusals.reasons)
        if not arguments.json:
            print(f"summary of all nights -> {folder}", flush=True)
    if len(found) > 1 and not arguments.json:
        parts = [f"{counts['scored']} scored", *(f"{count} of them without {what}" for what, count in sorted(lacking.items()))]
        parts += [f"{counts['done before']} done before"] if counts["done before"] else []
        print("\n".join(refusals.summary(", ".join(parts))), flush=True)
    return 1 if refusals.count else 0


def _default_models(store: str | None) -> tuple[str, ...]:
    """By version, so that all processes take the same; says which they are."""
    from sleepfm.inference.default_models import default_models

    addresses, said = default_models(store)
    say(said)
    return addresses


def _tell(outcome: Outcome, count: str, as_json: bool) -> None:
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
