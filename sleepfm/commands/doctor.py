"""``sleepfm doctor DIR``: report a folder of recordings before building from it."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from sleepfm.constants import CHANNELS
from sleepfm.signals.cohorts.identity import persons_not_read
from sleepfm.signals.cohorts.montage import NO_LABEL
from sleepfm.signals.scorings.text_counts import TextCounts

if TYPE_CHECKING:
    from sleepfm.signals.doctor import Finding


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``sleepfm doctor``."""
    parser.add_argument("folder", metavar="DIR", help="folder or URL (s3://...) of EDF or BDF recordings, or one recording")
    parser.add_argument("--cohort", default="auto", help="whose rules apply: a name or a YAML file (default auto)")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of text")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Report; exit status 1 where a recording or its scoring would be refused."""
    from sleepfm.signals.cohorts.cohort import AUTO, load_cohort
    from sleepfm.signals.doctor import examine_folder
    from sleepfm.signals.files import location

    cohort = None if arguments.cohort == AUTO else load_cohort(arguments.cohort)
    findings: list[Finding] = []
    for finding in examine_folder(location(arguments.folder), cohort):
        findings.append(finding)
        if not arguments.json:
            print("\n".join(_lines(finding)), flush=True)
    refused = sum(bool(finding.refused) for finding in findings)
    if arguments.json:
        print(json.dumps([finding.as_dict() for finding in findings], indent=1, ensure_ascii=False))
    else:
        print("\n".join(["", *_summary(findings)]))
    return 1 if refused or any(finding.scoring_refused for finding in findings) else 0


def _summary(findings: list[Finding]) -> list[str]:
    usable = [finding for finding in findings if not finding.refused]
    lines = []
    if usable:
        polarity = Counter(
            (name, channel["polarity"].get("decision")) for finding in usable for name, channel in finding.channels.items()
        )
        mapped = Counter(name for finding in usable for name in finding.channels)
        lines.append("channel    in usable recordings   upside down   polarity undecided")
        for name in CHANNELS:
            share = f"{mapped[name]} of {len(usable)}"
            lines.append(f"{name:<10} {share:>20} {polarity[name, 'inverted']:>13} {polarity[name, 'undecided']:>20}")
        cohorts = Counter(finding.cohort for finding in usable)
        lines.append("cohorts    " + ", ".join(f"{name} {count}" for name, count in sorted(cohorts.items())))
        subjects = len({finding.subject for finding in usable})
        unscored = sum(not finding.scoring for finding in usable)
        not_used = sum(bool(finding.scoring_refused) for finding in usable)
        also = (
            f" ({not_used} has one that is not used)"
            if not_used == 1
            else f" ({not_used} have one that is not used)"
            if not_used
            else ""
        )
        lines.append(f"subjects   {subjects}; {unscored} of the usable recordings have no scoring{also}")
        unread = [finding for finding in usable if not finding.subject_read]
        if unread:
            lines.append(f"warning    {persons_not_read(len(unread), len(usable), PurePath(unread[0].path).name)}")
        texts = TextCounts()
        for finding in usable:
            texts.merge(finding.texts)
        lines += [f"texts      {line}" for line in texts.lines()]
    lines.append(f"{len(findings)} recordings: {len(usable)} usable, {len(findings) - len(usable)} would be quarantined")
    return lines


def _lines(finding: Finding) -> list[str]:
    lines = [finding.path]
    if finding.cohort:
        gaps = f", {finding.gaps} gaps" if finding.gaps else ""
        lines.append(
            f"  cohort {finding.cohort}, subject {finding.subject}, {finding.epochs} epochs ({finding.hours:.2f} h), "
            f"{len(finding.signals)} signals{gaps}"
        )
    for name in CHANNELS:
        if name in finding.channels:
            lines.append(f"  {name:<9} {_mapped(finding.channels[name])}{_unusable(finding.channels[name], finding.epochs)}")
        elif name in finding.ambiguous:
            lines.append(f"  {name:<9} AMBIGUOUS {finding.ambiguous[name]}")
        elif finding.missing.get(name, NO_LABEL) != NO_LABEL:
            lines.append(f"  {name:<9} missing: {finding.missing[name]}")
    absent = [name for name in CHANNELS if finding.missing.get(name) == NO_LABEL]
    if absent:
        lines.append(f"  {'missing':<9} {', '.join(absent)}: {NO_LABEL}")
    if finding.cohort:
        scored = f"{finding.scoring}: {finding.scored_epochs} epochs scored, {finding.events} events"
        found = scored if finding.scoring else "none found"
        refused = finding.scoring_refused.removeprefix(finding.path + ": ")
        lines.append(f"  scoring   {f'NOT USED {refused}' if refused else found}")
        lines += [f"  texts     {line}" for line in finding.texts.lines() if not line.startswith("scoring not used")]
    lines += [f"  warning   {warning}" for warning in finding.warnings]
    if finding.refused:
        lines.append(f"  REFUSED   {finding.refused.removeprefix(finding.path + ': ')}")
    return lines


def _mapped(channel: dict[str, Any]) -> str:
    text = " - ".join([channel["signal"], *channel["reference"]])
    text += f", {channel['rate']:g} Hz, {channel['unit'] or 'no unit'}"
    if channel["derivation"] and channel["derivation"] != channel["signal"]:
        text += f", {channel['derivation']}"
    if channel["polarity"]["header_inverted"]:
        text += ", turned over by its header"
    if channel["polarity"]["inverted_by_rule"]:
        text += ", turned over by the cohort's rule"
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
    match polarity.get("decision"):
        case "inverted":
            return f", recorded upside down (probability {polarity['probability_inverted']:.2f}): turned over"
        case "undecided" if polarity["probability_inverted"] > 0.1:
            return f", upside down with probability {polarity['probability_inverted']:.2f}: undecided, left as it is"
    return ""
