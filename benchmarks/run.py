"""The benchmarks that run as they stand, in one table: what ``make bench`` calls, in some 15 minutes on two cores.

    python benchmarks/run.py [--reference CHECKOUT] [--quick] [--out FOLDER]

A row is a figure of ours, and beside it, where there is one: the released code's figure (with ``--reference``), the physical
limit, and another figure that ours is compared with. The last two are measured in the same run. What the limit is stands below
the table; its rates come from `rates.py`. ``allowed`` bounds the ratio of ours to what it is beside, or to the physical limit
where it is beside nothing. Only ratios are bound, because seconds are of a machine; bounds leave room for one that is busy.
Status 1: a ratio is not allowed.

The table also goes to FOLDER (benchmarks/results) as ``bench-DATE-MACHINE.json``, where a second one of the same day and machine
takes the place of the first. ``--quick`` runs the same scripts in miniature, to see that they work: its figures say nothing, its
bounds do not count, and a file is only written where ``--out`` is given. CHECKOUT is github.com/dlcjfgmlnasa/SynthSleepNet; what
it imports must be installed: ``pip install timm peft einops polars``.

Not here: `realism.py`, `side_by_side.py` and `people.py` (need an environment with other scorers, two of them trained models),
`polarity.py` (hours), `laboratory.py` (an hour), `context_pretraining.py` (needs a data set and a trained encoder), `scaling.py`
and `roofline.py` (models, no measurements), and cases of the released code that take minutes each. `results/` holds what they
have found.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import facts, slug
from rows import table

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Script:
    """A script of this folder, and its arguments but for the file of its figures, in full and in miniature."""

    name: str
    full: str
    quick: str
    file_option: str = "--json"
    takes_reference: bool = False


SCRIPTS = (
    Script("rates", "", "--seconds 0.05"),
    Script(
        "models",
        "--only neuronet-tiny,neuronet-base,synthsleepnet-base,nt-xent,mamba-length --steps 2",
        "--only neuronet-tiny --steps 1",
        takes_reference=True,
    ),
    Script(
        "reading",
        "--large 200 --only ours,webdataset,parquet,memory --counted 20000",
        "--large 12 --only ours,webdataset,memory --counted 600",
    ),
    Script(
        "shards",
        "--nights 3 --hours 4 --turns 1 --only speed,bound,workers",
        "--nights 1 --hours 0.2 --only speed,bound",
        takes_reference=True,
    ),
    Script(
        "training",
        "--only tiny-one-process,tiny-ddp,tiny-zero0,tiny-zero1,tiny-save --steps 20",
        "--only tiny-one-process --steps 2 --subjects 8",
    ),
    Script("doctor", "--headers 3000", "--headers 40"),
    Script("dead_time", "--hours 3 --kinds mains rail", "--hours 0.5 --kinds zeros", file_option=""),
    Script("scoring", "--sizes tiny", "--sizes tiny --hours 0.25"),
)
# What the checkout must have, and what its modules import that ours do not.
CHECKOUT_FILES = ("models/neuronet/model.py", "models/unified/model.py", "models/loss.py", "dataset/data_parser.py")
CHECKOUT_IMPORTS = ("timm", "peft", "einops", "polars")


def figures_of(script: Script, quick: bool, reference: str, scratch: Path) -> dict[str, Any]:
    """Run ``script``; what it wrote."""
    file = scratch / f"{script.name}.json"
    words = [*(script.quick if quick else script.full).split()]
    words = [*words, script.file_option, str(file)] if script.file_option else [str(file), *words]
    if script.takes_reference and reference:
        words += ["--reference", reference]
    if script.name == "reading":
        words += ["--scratch", str(scratch / "reading")]
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{script.name}.py"), *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"benchmarks/{script.name}.py {' '.join(words)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def lines_of(rows: dict[str, dict[str, dict[str, Any]]], quick: bool) -> list[str]:
    """The table with its heading, and below it what each physical limit is."""
    lines = [
        f"{'':<42}{'':>15}{'released':>10}{'physical':>10}    {'ours /':>10}{'ours /':>8}  {'':<13}{'ours /':>8}",
        f"{'':<42}{'ours':>10}{'':5}{'code':>10}{'limit':>10}    {'released':>10}{'limit':>8}  {'beside':<13}{'beside':>8}  "
        "allowed",
    ]
    notes: list[str] = []
    for script, own in rows.items():
        lines.append(script)
        for what, row in own.items():
            mark = ""
            if row["limit_is"]:
                notes += [row["limit_is"]] if row["limit_is"] not in notes else []
                mark = f"[{notes.index(row['limit_is']) + 1}]"
            past = "" if row["holds"] or quick else "  NOT ALLOWED"
            line = (
                f"  {what:<40}{number(row['ours']):>10} {row['unit']:<4}{number(row['released']):>10}{number(row['limit']):>10}"
            )
            line += f" {mark:<3}{number(row['ours_over_released'], 3):>10}{number(row['ours_over_limit'], 3):>8}"
            line += f"  {row['beside'] or '':<13}{number(row['ours_over_beside'], 3):>8}  {row['allowed']}{past}"
            lines.append(line.rstrip())
    lines += [f"[{place}] {note}" for place, note in enumerate(notes, 1)]
    return lines


def number(figure: float | None, digits: int = 4) -> str:
    """A figure for the table; nothing where there is none."""
    if figure is None:
        return ""
    return f"{figure:,.0f}" if 1000 <= figure < math.inf else f"{figure:.{digits}g}"


def commit_of(checkout: str) -> str:
    """The commit that is checked out there, if git knows it."""
    words = ["git", "-C", checkout, "rev-parse", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def lacks(checkout: str) -> str:
    """What keeps the checkout from being run, with what to do; empty where nothing does."""
    missing = [name for name in CHECKOUT_FILES if not (Path(checkout) / name).is_file()]
    if missing:
        return f"--reference {checkout}: no {missing[0]}; name a checkout of github.com/dlcjfgmlnasa/SynthSleepNet"
    absent = [name for name in CHECKOUT_IMPORTS if importlib.util.find_spec(name) is None]
    if absent:
        return (
            f"--reference {checkout}: it imports {', '.join(absent)}; install: {sys.executable} -m pip install {' '.join(absent)}"
        )
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", default="", metavar="CHECKOUT", help="of the released code, to run beside ours")
    parser.add_argument("--quick", action="store_true", help="in miniature; figures and bounds say nothing")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the file of the table (benchmarks/results)")
    arguments = parser.parse_args()
    reference = str(Path(arguments.reference).resolve()) if arguments.reference else ""
    if reference and (error := lacks(reference)):
        parser.error(error)
    began, found = time.monotonic(), {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for script in SCRIPTS:
            started = time.monotonic()
            found[script.name] = figures_of(script, arguments.quick, reference, Path(folder))
            print(f"{script.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    minutes, machine = (time.monotonic() - began) / 60, facts()
    rows = table(found, arguments.quick, bool(reference))
    date = datetime.date.today().isoformat()
    bf16 = "yes" if machine["bf16"] else "no"
    print(f"{date}, {machine['processor']}, bf16: {bf16}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB", end="")
    print("; in miniature, the figures say nothing" if arguments.quick else "")
    print("\n".join(lines_of(rows, arguments.quick)))
    print(f"{minutes:.1f} minutes; the released code was {'run' if reference else 'not run (REFERENCE=CHECKOUT)'}")
    out = arguments.out or (None if arguments.quick else FOLDER / "results")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        file = out / f"bench-{date}-{slug(machine)}.json"
        content = {"date": date, "machine": machine, "quick": arguments.quick, "minutes": minutes}
        content |= {"reference_commit": commit_of(reference) if reference else None, "rates": found["rates"], "rows": rows}
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(file)
    past = [what for own in rows.values() for what, row in own.items() if not row["holds"]]
    if past and not arguments.quick:
        print(f"{len(past)} ratios are not allowed: {'; '.join(past)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
