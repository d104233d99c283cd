"""How real the synthetic nights are: two independent scorers judge them, clean ones and ones with faults.

    python benchmarks/realism.py --python OTHER [--nights N] [--hours H] [--seed S] [--json F] [--work DIR]

OTHER is the interpreter of a virtual environment with both scorers, neither a dependency of this project:

    python -m venv VENV && VENV/bin/pip install yasa==0.8.1 psgscoring==0.37.0

The nights are those that ``sleepfm synth --clean`` and ``sleepfm synth`` write in the layout of SHHS1; the truth is what was
drawn, also where a fault hides it. A night of 8 h takes the scorers about 20 s of one core.

* YASA stages each night from C4-A1, the left EOG and the chin, and from C4-A1 alone, which shows what the EEG itself is worth:
  accuracy, kappa, and how each stage is called.
* psgscoring looks for apneas and hypopneas in flow, belts and SpO2. Found and drawn events are paired one to one, the greatest
  ratio of intersection to union first; a pair counts if they overlap at all (``f1``) or by half (``f1_iou_half``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from numpy.typing import NDArray

from sleepfm.cli import main as sleepfm
from sleepfm.constants import STAGE_NAMES
from sleepfm.synthetic.drawn_events import Event, is_respiratory
from sleepfm.synthetic.night import draw_night

CHANNELS = {
    "eeg": "EEG",
    "eog": "EOG(L)",
    "emg": "EMG",
    "flow": "NEW AIR",
    "thorax": "THOR RES",
    "abdomen": "ABDO RES",
    "spo2": "SaO2",
}
BARS = {"clean kappa": 0.72, "clean kappa of the EEG": 0.65, "clean f1": 0.60}
Span = tuple[str, float, float]  # type, onset, duration in s


def make_nights(out: Path, nights: int, hours: float, seed: int, clean: bool) -> list[Any]:
    """Write the recordings and what was drawn below ``out``; returns the drawn nights without their signals."""
    command = ["synth", str(out / "cohort"), "--subjects", str(nights), "--hours", str(hours), "--seed", str(seed)]
    if sleepfm([*command, "--workers", "1", *["--clean"] * clean]):
        raise SystemExit("sleepfm synth failed")
    truths = []
    for number, path in enumerate(sorted((out / "cohort").rglob("*.edf"))):
        night = draw_night(seed, number, round(hours * 120))
        truth = {
            "age": night.subject.age,
            "channels": CHANNELS,
            "stages": night.stages.tolist(),
            "arousals": [(event.onset, event.duration) for event in night.events if event.kind == "arousal"],
        }
        (out / f"{number:02d}.edf").symlink_to(path.resolve())
        (out / f"{number:02d}.json").write_text(json.dumps(truth))
        truths.append((night.stages, [event for event in night.events if is_respiratory(event)]))
    return truths


def pair(drawn: list[Span], found: list[Span]) -> list[tuple[int, int, float]]:
    """Indices of paired events and their intersection over union, each event at most once."""
    candidates = []
    for i, (_, start, length) in enumerate(drawn):
        for j, (_, begin, span) in enumerate(found):
            common = min(start + length, begin + span) - max(start, begin)
            if common > 0:
                candidates.append((common / (max(start + length, begin + span) - min(start, begin)), i, j))
    pairs: list[tuple[int, int, float]] = []
    for ratio, i, j in sorted(candidates, reverse=True):
        if all(i != a and j != b for a, b, _ in pairs):
            pairs.append((i, j, ratio))
    return pairs


def stage_figures(truth: list[NDArray[np.int8]], found: list[list[int]]) -> dict[str, Any]:
    """Accuracy, kappa, kappa by night, and the confusion: rows are drawn stages, in epochs."""
    tables = []
    for drawn, called in zip(truth, found, strict=True):
        table = np.zeros((5, 5), dtype=np.int64)
        length = min(len(drawn), len(called))
        np.add.at(table, (drawn[:length], np.asarray(called[:length])), 1)
        tables.append(table)
    pooled = np.sum(tables, axis=0)
    return {
        "accuracy": round(float(np.trace(pooled) / pooled.sum()), 3),
        "kappa": round(kappa(pooled), 3),
        "kappa_by_night": [round(kappa(table), 3) for table in tables],
        "recall": {name: round(float(pooled[k, k] / max(pooled[k].sum(), 1)), 2) for k, name in enumerate(STAGE_NAMES)},
        "confusion": {name: dict(zip(STAGE_NAMES, pooled[k].tolist(), strict=True)) for k, name in enumerate(STAGE_NAMES)},
    }


def kappa(table: NDArray[np.int64]) -> float:
    """Cohen's kappa of a confusion table."""
    total = table.sum()
    agreed = np.trace(table) / total
    chance = float((table.sum(axis=0) * table.sum(axis=1)).sum()) / float(total) ** 2
    return float((agreed - chance) / (1.0 - chance))


def event_figures(truth: list[tuple[NDArray[np.int8], list[Event]]], found: list[dict[str, Any]]) -> dict[str, Any]:
    """AHI, precision, recall and F1 over all nights, and which type each drawn event was found as."""
    count: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = {}
    drawn_ahi, found_ahi, half = [], [], 0
    remarks: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for (stages, events), night in zip(truth, found, strict=True):
        spans = [(event.kind, event.onset, event.duration) for event in events]
        called = [(kind, onset, length) for kind, onset, length in night["events"]]
        pairs = pair(spans, called)
        hours = float((stages > 0).sum()) / 120
        drawn_ahi.append(round(len(spans) / hours, 1))
        found_ahi.append(round(len(called) / hours, 1))
        count.update(drawn=len(spans), found=len(called), both=len(pairs))
        half += sum(ratio >= 0.5 for _, _, ratio in pairs)
        matched = {i: called[j][0] for i, j, _ in pairs}
        for i, (kind, _, _) in enumerate(spans):
            kinds.setdefault(kind, Counter())[matched.get(i, "not found")] += 1
        remarks.update(remark.split(" (")[0] for remark in night["remarks"])
        rejected.update(night["rejected"])
    return {
        "ahi_drawn": round(float(np.mean(drawn_ahi)), 1),
        "ahi_found": round(float(np.mean(found_ahi)), 1),
        "ahi_by_night": [{"drawn": a, "found": b} for a, b in zip(drawn_ahi, found_ahi, strict=True)],
        "precision": round(count["both"] / max(count["found"], 1), 3),
        "recall": round(count["both"] / max(count["drawn"], 1), 3),
        "f1": round(2 * count["both"] / max(count["drawn"] + count["found"], 1), 3),
        "f1_iou_half": round(2 * half / max(count["drawn"] + count["found"], 1), 3),
        "found_as": {kind: dict(names.most_common()) for kind, names in sorted(kinds.items())},
        "rejected_candidates": dict(rejected.most_common()),
        "nights_with_remark": dict(remarks),
    }


def ask_outside(python: str, work: Path) -> dict[str, Any]:
    """What `outside_scorers.py` says of the nights in ``work``. Ends the program where ``python`` does not have the scorers."""
    script = Path(__file__).with_name("outside_scorers.py")
    done = subprocess.run([python, str(script), str(work)], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{python} {script}: status {done.returncode}; does that interpreter have yasa and psgscoring?")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def judge(work: Path, python: str, nights: int, hours: float, seed: int, clean: bool) -> dict[str, Any]:
    """Both scorers' figures on one cohort."""
    work.mkdir(parents=True, exist_ok=True)
    truth = make_nights(work, nights, hours, seed, clean)
    answer = ask_outside(python, work)
    found = [answer["nights"][name] for name in sorted(answer["nights"])]
    return {
        "versions": answer["versions"],
        "profile": answer["profile"],
        "yasa": stage_figures([stages for stages, _ in truth], [night["stages"] for night in found]),
        "yasa_eeg": stage_figures([stages for stages, _ in truth], [night["stages_of_eeg"] for night in found]),
        "psgscoring": event_figures(truth, found),
    }


def main() -> None:
    """Print the figures, and write them to a file where one is named. Status 1 where a clean cohort misses a bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, metavar="OTHER", help="interpreter with yasa and psgscoring")
    parser.add_argument("--nights", type=int, default=6)
    parser.add_argument("--hours", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="F", help="also write the figures there")
    parser.add_argument("--work", type=Path, metavar="DIR", default=None)
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="realism-"))
    recipe = (arguments.nights, arguments.hours, arguments.seed)
    figures = {name: judge(work / name, arguments.python, *recipe, clean=name == "clean") for name in ("clean", "faulty")}
    clean = figures["clean"]
    reached = {
        "clean kappa": clean["yasa"]["kappa"],
        "clean kappa of the EEG": clean["yasa_eeg"]["kappa"],
        "clean f1": clean["psgscoring"]["f1"],
    }
    result = {
        "machine": describe(),
        "recipe": {"nights": recipe[0], "hours": recipe[1], "seed": recipe[2], "cohort": "shhs1"},
        "scorers": {key: clean[key] for key in ("versions", "profile")},
        "bars": {name: {"least": least, "reached": reached[name]} for name, least in BARS.items()},
        **{name: {key: part[key] for key in ("yasa", "yasa_eeg", "psgscoring")} for name, part in figures.items()},
    }
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if any(reached[name] < least for name, least in BARS.items()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
