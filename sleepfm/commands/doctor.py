"""``sleepfm doctor DIR``: report a folder of recordings before building from it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from sleepfm.constants import CHANNELS
from sleepfm.signals.cohorts.identity import persons_not_read
from sleepfm.signals.cohorts.montage import NO_LABEL
from sleepfm.signals.scorings.text_counts import TextCounts

if TYPE_CHECKING:
    from sleepfm.signals.doctor import Finding

# Distinct signals, rules and texts that are shown of a folder.
_SHOWN = 100


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``sleepfm doctor``."""
    parser.add_argument("folder", metavar="DIR", help="folder or URL (s3://...) of EDF or BDF recordings, or one recording")
    parser.add_argument(
        "--cohort", default="auto", help="whose rules apply: a name, a YAML file, or a folder of them; default auto"
    )
    parser.add_argument("--sample", type=_positive, metavar="N", help="look at N of the recordings, the same ones each time")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of text")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Report; exit status 1 where a recording or its scoring would be refused."""
    from tqdm import tqdm

    from sleepfm.signals.cohorts.catalogue import load_rules
    from sleepfm.signals.cohorts.identity import check_identity
    from sleepfm.signals.doctor import examine_recordings, sample_of
    from sleepfm.signals.examine import discover
    from sleepfm.signals.files import location

    rules, root = load_rules(arguments.cohort), location(arguments.folder)
    found = discover(root, rules)
    check_identity(found, rules)
    chosen = sample_of(found, arguments.sample)
    findings: list[Finding] = []
    workers = len(os.sched_getaffinity(0))
    # On a terminal alone; the lines of the recordings pass above it.
    with tqdm(total=len(chosen), desc="doctor", unit="recording", disable=None) as progress:
        for finding in examine_recordings(chosen, root, rules, workers):
            findings.append(finding)
            if not arguments.json:
                with progress.external_write_mode(sys.stdout):
                    print("\n".join(_lines(finding)), flush=True)
            progress.update()
    refused = sum(bool(finding.refused) for finding in findings)
    if arguments.json:
        print(json.dumps([finding.as_dict() for finding in findings], indent=1, ensure_ascii=False))
    else:
        print("\n".join(["", *_summary(findings, root)]))
        if len(chosen) < len(found):
            print(f"a sample of {len(chosen)} of the {len(found)} recordings; the others were not looked at")
    return 1 if refused or any(finding.scoring_refused for finding in findings) else 0


def _summary(findings: list[Finding], root: Path) -> list[str]:
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
        texts = TextCounts()
        for finding in usable:
            texts.merge(finding.texts)
        lines += [f"texts      {line}" for line in texts.lines()]
        lines += _places(usable)
    lines += _not_mapped(findings)
    lines += _looked_for(findings, root)
    opened = [finding for finding in findings if finding.cohort]
    unread = [finding for finding in opened if not finding.subject_read]
    if unread:
        lines.append(f"warning    {persons_not_read(len(unread), len(opened), PurePath(unread[0].path).name)}")
    lines.append(f"{len(findings)} recordings: {len(usable)} usable, {len(findings) - len(usable)} would be quarantined")
    return lines


def _places(findings: list[Finding]) -> list[str]:
    """Where texts that are not understood stand first, the most frequent ones before others."""
    texts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for finding in findings:
        for text, onset in finding.places.items():
            texts[text] += finding.unclear.get(text, 0) + finding.ignored.get(text, 0)
            first.setdefault(text, f"{finding.path} at {timedelta(seconds=round(onset))}")
    lines = [f"texts      {text!r} {count}, first in {first[text]}" for text, count in texts.most_common(_SHOWN)]
    return lines + ([f"texts      and {len(texts) - _SHOWN} more; --json has all"] if len(texts) > _SHOWN else [])


def _not_mapped(findings: list[Finding]) -> list[str]:
    """Signals that are part of no channel, and the rules that would map some of them."""
    signals = Counter((item["label"], item["rate"], item["unit"]) for finding in findings for item in finding.unmapped)
    if not signals:
        return []
    lines = ["not mapped                              rate   unit      recordings"]
    for (label, rate, unit), count in sorted(signals.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]:
        lines.append(f"           {label!r:<24} {rate:>7g} Hz   {unit or '-':<8} {count:>6} of {len(findings)}")
    if len(signals) > _SHOWN:
        lines.append(f"           and {len(signals) - _SHOWN} more; --json has all")
    rules = Counter(item["rule"] for finding in findings for item in finding.unmapped if item["rule"])
    if rules:
        lines.append("rules      that would map them, if they are what they seem; below `channels:` in a cohort file of yours:")
        for rule, count in rules.most_common(_SHOWN):
            check = "; the header states no unit, check this one" if ", unit: " in rule else ""
            lines.append(f"           {rule}  # {count} recordings{check}")
    return lines


def _looked_for(findings: list[Finding], root: Path) -> list[str]:
    """What was looked for where no scoring was found, by cohort, and patterns by which there would be some."""
    from sleepfm.signals.cohorts.proposals import scoring_patterns
    from sleepfm.signals.files import is_folder, location

    without = [location(finding.path) for finding in findings if finding.looked_for]
    patterns = scoring_patterns(without, root) if without and is_folder(root) else Counter()
    examples = {finding.cohort: finding for finding in reversed(findings) if finding.looked_for}
    lines = [
        f"scorings   {name}: looked for {', '.join(finding.looked_for)} in the folder of {finding.path} and in those above it"
        for name, finding in sorted(examples.items())
    ]
    if patterns:
        lines.append(
            "scorings   patterns that would find files of these recordings' names; below `scoring:` in a cohort file of yours:"
        )
        lines += [f"           files: [{json.dumps(name)}]  # {count} recordings" for name, count in patterns.most_common(_SHOWN)]
    return lines


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


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
    if finding.unmapped:
        signals = (f"{item['label']!r} ({item['rate']:g} Hz, {item['unit'] or 'no unit'})" for item in finding.unmapped)
        lines.append(f"  {'unmapped':<9} {', '.join(signals)}")
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
