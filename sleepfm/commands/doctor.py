"""``sleepfm doctor DIR``: report a folder before building from it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sleepfm.doctor import Finding, examine
from sleepfm.signals.cohort import load_cohort


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of EDF or BDF recordings, or one recording")
    parser.add_argument(
        "--cohort", default="auto", help="cohort whose rules apply (default: recognise each recording's)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of text")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Report; exit status 1 where a recording would be refused."""
    cohort = None if arguments.cohort == "auto" else load_cohort(arguments.cohort)
    findings = []
    for finding in examine(arguments.folder, cohort):
        findings.append(finding)
        if not arguments.json:
            print(_text(finding), flush=True)
    refused = sum(bool(finding.refused) for finding in findings)
    if arguments.json:
        print(json.dumps([finding.as_dict() for finding in findings], indent=1, ensure_ascii=False))
    else:
        print(f"{len(findings)} recordings: {len(findings) - refused} usable, {refused} would be quarantined")
    return 1 if refused else 0


def _text(finding: Finding) -> str:
    lines = [finding.path]
    if finding.cohort:
        gaps = f", {finding.gaps} gaps" if finding.gaps else ""
        lines.append(f"  cohort {finding.cohort}, subject {finding.subject}, {finding.hours:.2f} h{gaps}")
        rates = {signal["label"]: f"{signal['rate']:g} Hz, {signal['unit'] or 'no unit'}" for signal in finding.signals}
        for name, description in finding.mapped.items():
            source = next((text for label, text in rates.items() if description.startswith(label)), "")
            flag = ", inverted by its header" if name in finding.inverted else ""
            lines.append(f"  {name:<9} <- {description} ({source}{flag})")
        lines += [f"  {name:<9} ambiguous: {reason}" for name, reason in finding.ambiguous.items()]
        lines += [f"  {name:<9} missing: {reason}" for name, reason in finding.missing.items()]
        lines.append(f"  scoring   {finding.scoring or 'none found'}")
        lines += [f"  warning   {warning}" for warning in finding.warnings]
    if finding.refused:
        lines.append(f"  REFUSED   {finding.refused}")
    return "\n".join(lines)
