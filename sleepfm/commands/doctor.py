"""``sleepfm doctor DIR``: report a folder of recordings before building from it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from sleepfm.command_line import add_examples, positive
from sleepfm.commands.options import add_cohort
from sleepfm.console import RED, YELLOW, coloured, warn
from sleepfm.constants import CHANNELS
from sleepfm.errors import SubjectTableError
from sleepfm.signals.cohorts.montage import NO_LABEL
from sleepfm.wording import counted

if TYPE_CHECKING:
    from sleepfm.signals.doctor import Finding


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``sleepfm doctor``."""
    parser.add_argument("folder", metavar="DIR", help="folder or URL (s3://...) of EDF or BDF recordings, or one recording")
    add_cohort(parser)
    parser.add_argument(
        "--sample",
        type=positive,
        metavar="N",
        help="look at only N of the recordings, the same ones each time (default: all)",
    )
    parser.add_argument(
        "--headers",
        action="store_true",
        help="read only headers and scorings: thousands of recordings a minute (default: the signals too, as a build does)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of text")
    add_examples(
        parser, "recordings", "recordings --cohort lakeside.yaml", "s3://bucket/shhs --cohort shhs1 --headers --sample 100"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Report; exit status 1 where a recording or its scoring would be refused."""
    from tqdm import tqdm

    from sleepfm.commands.doctor_summary import FolderSummary
    from sleepfm.signals.cohorts.catalogue import all_cohorts, load_rules
    from sleepfm.signals.cohorts.cohort import Cohort
    from sleepfm.signals.cohorts.identity import check_identity
    from sleepfm.signals.discover import discover
    from sleepfm.signals.doctor import Finding, examine_recordings, sample_of
    from sleepfm.signals.files import location
    from sleepfm.signals.people import KnownPeople, read_people
    from sleepfm.signals.record_names import names_below

    rules, root = load_rules(arguments.cohort), location(arguments.folder)
    unlisted: dict[str, str] = {}
    found = discover(root, rules, unlisted=unlisted)
    names = names_below(found, root)
    check_identity((name.path for name in names.values()), rules)
    chosen = sample_of(found, arguments.sample)
    people, unusable = KnownPeople(), False
    try:
        people = read_people(root, [rules] if isinstance(rules, Cohort) else (rules or all_cohorts()).all())
    except SubjectTableError as error:
        warn(f"{error}; a build would stop here")
        unusable = True
    summary = FolderSummary(root, signals=not arguments.headers, people=people)
    for folder, why in unlisted.items():
        finding = Finding(folder, f"{why}; make it readable; what is in it is unknown")
        print(_element(finding, summary.printed) if arguments.json else "\n".join(_lines(finding)), flush=True)
        summary.add_folder()
    workers = len(os.sched_getaffinity(0))
    # On a terminal alone; the lines of the recordings pass above it.
    with tqdm(total=len(chosen), desc="doctor", unit="recording", disable=None) as progress:
        for finding in examine_recordings(chosen, root, rules, workers, not arguments.headers, names):
            with progress.external_write_mode(sys.stdout):
                print(_element(finding, summary.printed) if arguments.json else "\n".join(_lines(finding)), flush=True)
            summary.add(finding)
            progress.update()
    if arguments.json:
        print("]")
    else:
        print("\n".join(["", *summary.lines()]))
        if arguments.headers:
            print(
                "only headers and scorings were read; without --headers the doctor also reports polarity, dead signals and "
                "duplicate nights"
            )
        if len(chosen) < len(found):
            print(f"a sample of {len(chosen)} of the {counted(len(found), 'recording')}; the others were not looked at")
    return 1 if summary.troubled or unusable else 0


def _element(finding: Finding, before: int) -> str:
    """A finding as an element of one JSON list, which begins with the first and is written as they come."""
    return f"{',' if before else '['}{json.dumps(finding.as_dict(), ensure_ascii=False)}"


def _lines(finding: Finding) -> list[str]:
    lines = [finding.path]
    if finding.cohort:
        gaps = f", {counted(finding.gaps, 'gap')}" if finding.gaps else ""
        lines.append(
            f"  cohort {finding.cohort}, subject {finding.subject}, {counted(finding.epochs, 'epoch')} ({finding.hours:.2f} h), "
            f"{counted(len(finding.signals), 'signal')}{gaps}"
        )
    for name in CHANNELS:
        if name in finding.channels:
            lines.append(f"  {name:<9} {_mapped(finding.channels[name])}{_unusable(finding.channels[name], finding.epochs)}")
        elif name in finding.ambiguous:
            lines.append(f"  {name:<9} {coloured('AMBIGUOUS', RED)} {finding.ambiguous[name]}")
        elif finding.missing.get(name, NO_LABEL) != NO_LABEL:
            lines.append(f"  {name:<9} missing: {finding.missing[name]}")
    absent = [name for name in CHANNELS if finding.missing.get(name) == NO_LABEL]
    if absent:
        lines.append(f"  {'missing':<9} {', '.join(absent)}: {NO_LABEL}")
    if finding.unmapped:
        signals = (f"{item['label']!r} ({item['rate']:g} Hz, {item['unit'] or 'no unit'})" for item in finding.unmapped)
        lines.append(f"  {'unmapped':<9} {', '.join(signals)}")
    if finding.cohort:
        scored = f"{finding.scoring}: {counted(finding.scored_epochs, 'epoch')} scored, {counted(finding.events, 'event')}"
        found = scored if finding.scoring else "none found"
        refused = finding.scoring_refused.removeprefix(finding.path + ": ")
        lines.append(f"  scoring   {coloured('NOT USED', YELLOW) + ' ' + refused if refused else found}")
        lines += [f"  texts     {line}" for line in finding.texts.lines() if not line.startswith("scoring not used")]
    lines += [f"  {coloured('warning', YELLOW)}   {warning}" for warning in finding.warnings]
    if finding.refused:
        lines.append(f"  {coloured('REFUSED', RED)}   {finding.refused.removeprefix(finding.path + ': ')}")
    return lines


def _mapped(channel: dict[str, Any]) -> str:
    text = " - ".join([channel["signal"], *channel["reference"]])
    text += f", {channel['rate']:g} Hz, {channel['unit'] or 'no unit'}"
    if channel["derivation"] and channel["derivation"] != channel["signal"]:
        text += f", {channel['derivation']}"
    if channel["polarity"]["header_inverted"]:
        text += ", inverted, as its header says"
    if channel["polarity"]["inverted_by_rule"]:
        text += ", inverted by the cohort's rule"
    text += _polarity(channel["polarity"])
    if channel["substitute"]:
        text += f" (substitute: {channel['substitute']})"
    return text


def _unusable(channel: dict[str, Any], epochs: int) -> str:
    """The share of the epochs in which the channel cannot be used, and why."""
    if not channel.get("epochs_unusable"):
        return ""
    from sleepfm.signals.quality import UNUSABLE, Quality

    reasons = ", ".join(f"{name} {count}" for name, count in channel["epochs_flagged"].items() if Quality[name] in UNUSABLE)
    return f"; unusable in {channel['epochs_unusable'] / epochs:.1%} of the epochs ({reasons})"


def _polarity(polarity: dict[str, Any]) -> str:
    """What was decided, where somebody may want to look: not where nothing speaks against upright."""
    from sleepfm.signals.polarity import was_weighed

    match polarity.get("decision"):
        case "inverted":
            return f", recorded upside down (probability {polarity['probability_inverted']:.2f}): turned over"
        case "undecided" if polarity["probability_inverted"] > 0.1:
            why = "undecided" if was_weighed(polarity) else "documented of its cohort, not weighed in the signal"
            return f", upside down with probability {polarity['probability_inverted']:.2f}: {why}, left as it is"
    return ""
