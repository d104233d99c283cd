"""How often polarity is decided wrongly: upright and inverted synthetic nights of every cohort's layout.

    python benchmarks/polarity.py [--nights FIRST:LAST] [--json F]

Every layout's derivations and rules are those of a recording that is written to disk and read (with ``generic`` twice: with
EOG labelled to a mastoid, and with EOG to the nasion whose labels name no reference, as a laboratory may have
them). The nights are drawn once and used for all: C3, C4, E1, E2 and ECG at the rate at which they are drawn,
against the reference that the layout has; SHHS1 as its 8 bits hold it. Each night counts in each of these states, decided from
signals of that sign:

* ``upright``, where a channel that is turned over is a false flip;
* ``C3``, ``C4``, ``EEG`` (both) and ``EEG and EOG`` upside down, where channels are found (turned over), undecided (left), or
  called upright, and a channel that is turned over and was not upside down is a false flip.

Figures are numbers of nights, of those in ``nights``; a night counts once, by its worst channel. Two hours of a night are
short: more sleep decides more. ``--json`` adds the nights to those that F holds, so that they may be run in pieces.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

from sleepfm.signals.cohorts.catalogue import load_cohort
from sleepfm.signals.cohorts.cohort import Cohort
from sleepfm.signals.filters import preprocess
from sleepfm.signals.polarity import EEG, EOG, POLAR, Polarity, decide_polarity, has_known_sign
from sleepfm.signals.prepare import prepare
from sleepfm.synthetic.cohort import write_cohort
from sleepfm.synthetic.layout import layout_names, load_layout
from sleepfm.synthetic.night import Night, draw_night

EPOCHS = 240
STATES: dict[str, tuple[str, ...]] = {
    "upright": (),
    "C3": ("EEG_C3",),
    "C4": ("EEG_C4",),
    "EEG": EEG,
    "EEG and EOG": (*EEG, *EOG),
}
REFERENCE = {"shhs1": "nasion", "shhs2": "nasion", "mesa": "Fpz"}
MASTOID = {"EEG_C3": "C3-M2", "EEG_C4": "C4-M1", "EOG_L": "E1-M2", "EOG_R": "E2-M1"}
Case = tuple[Cohort, dict[str, str], str]


def cases(scratch: Path) -> Iterator[tuple[str, Case]]:
    """Every layout with its rules, the derivations that its files have, and the kind of its EOG."""
    for name in layout_names():
        path = write_cohort(scratch / name, 1, 0.2, 1, name)[0]
        described = prepare(path, root=scratch / name).provenance["channels"]
        derivation = {channel: described[channel]["derivation"] for channel in POLAR if channel in described}
        yield name, (load_cohort(name), derivation, "8 bits" if name == "shhs1" else REFERENCE.get(name, "mastoid"))
    generic = load_cohort("generic")
    yield "generic, E1-M2", (generic, MASTOID | {"ECG": "ECG"}, "mastoid")
    unnamed = MASTOID | {"EOG_L": "left EOG", "EOG_R": "right EOG", "ECG": "ECG"}
    yield "generic, EOG to nasion, unnamed", (generic, unnamed, "nasion")


def drawn(night: Night) -> dict[str, dict[str, np.ndarray]]:
    """Filtered channels by kind of EOG."""
    signals = night.signals
    below = signals["EOG(R)"] - np.float32(1.25) * signals["blinks"]
    both = {"EEG_C3": (signals["EEG(sec)"], 125), "EEG_C4": (signals["EEG"], 125), "ECG": (signals["ECG"], 125)}
    fine = {name: preprocess(signal, rate, name) for name, (signal, rate) in both.items()}
    eyes = {"mastoid": (signals["EOG(L)"], signals["EOG(R)"])}
    for reference in ("nasion", "Fpz"):
        eyes[reference] = (signals["EOG(L)"] - signals[reference], below - signals[reference])
    kinds = {
        kind: fine | {name: preprocess(signal, 50, name) for name, signal in zip(EOG, pair, strict=True)}
        for kind, pair in eyes.items()
    }
    kinds["8 bits"] = {}
    layout = load_layout("shhs1")
    label = {"EEG(sec)": "EEG_C3", "EEG": "EEG_C4", "EOG(L)": "EOG_L", "EOG(R)": "EOG_R", "ECG": "ECG"}
    for channel, signal in zip(layout.channels, layout.draw(night, 0), strict=True):
        if channel.label in label:
            step = (float(channel.physical_max) - float(channel.physical_min)) / (channel.digital_max - channel.digital_min)
            held = channel.digitise(signal).astype(np.float32) * np.float32(step)
            name = label[channel.label]
            kinds["8 bits"][name] = preprocess(held, channel.rate, name)
    return kinds


def decide(case: Case, channels: dict[str, np.ndarray], turned: tuple[str, ...]) -> dict[str, Polarity]:
    cohort, derivation, _ = case
    signals = {name: -channels[name] if name in turned else channels[name] for name in derivation if name in channels}
    fit = {name: np.zeros(EPOCHS, np.uint8) for name in signals}
    return decide_polarity(signals, fit, dict.fromkeys(signals, 1.0), derivation, cohort)


def judge(decided: dict[str, Polarity], turned: tuple[str, ...]) -> Iterator[str]:
    """What the night counts as."""
    wrong = [decided[name].decision for name in decided if name in turned]
    if any(decided[name].inverted for name in decided if name not in turned):
        yield "false flips"
    if wrong:
        yield "called upright" if "upright" in wrong else "undecided" if "undecided" in wrong else "found"
    if not turned and any(decided[name].decision == "undecided" for name in EEG if name in decided):
        yield "EEG undecided"


def run(nights: range) -> dict[str, dict[str, dict[str, int]]]:
    """Layout -> state -> what -> nights."""
    with tempfile.TemporaryDirectory() as scratch:
        found = dict(cases(Path(scratch)))
    counts = {name: {state: Counter[str]() for state in STATES} for name in found}
    for number in nights:
        kinds = drawn(draw_night(number, number, EPOCHS))
        known: dict[str, list[list[str]]] = {}  # layouts that differ in nothing that matters here are decided once
        for name, case in found.items():
            signs = {channel: has_known_sign(channel, text) for channel, text in case[1].items() if channel != "ECG"}
            same = json.dumps([case[0].polarity, signs, "ECG" in case[1], case[2]])
            if same not in known:
                known[same] = [
                    list(judge(decide(case, kinds[case[2]], turned), tuple(set(turned) & case[1].keys())))
                    for turned in STATES.values()
                ]
            for state, what in zip(STATES, known[same], strict=True):
                counts[name][state].update(["nights", *what])
        print(f"night {number}", file=sys.stderr, flush=True)
    return {
        name: {state: {"nights": count["nights"], "false flips": count["false flips"]} | count for state, count in states.items()}
        for name, states in counts.items()
    }


def add(path: Path, figures: dict[str, dict[str, dict[str, int]]], nights: range) -> dict[str, Any]:
    """The document with these nights added to those that are in ``path``."""
    recipe = {"hours": EPOCHS / 120, "nights": [nights.start, nights.stop]}
    if path.exists():
        before = json.loads(path.read_text())
        if before["recipe"]["nights"][1] != nights.start or before["recipe"]["hours"] != recipe["hours"]:
            raise SystemExit(f"{path}: holds nights {before['recipe']['nights']}; go on with the next one, or name another file")
        recipe["nights"] = [before["recipe"]["nights"][0], nights.stop]
        for name, states in figures.items():
            for state, count in states.items():
                earlier = before["figures"][name][state]
                states[state] = {what: earlier.get(what, 0) + count.get(what, 0) for what in dict.fromkeys((*earlier, *count))}
    return {"machine": describe(), "recipe": recipe, "figures": figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", default="0:10", help="first and last, without the last; also the seeds (default 0:10)")
    parser.add_argument("--json", type=Path, help="file of results to write or to add to")
    arguments = parser.parse_args()
    first, last = map(int, arguments.nights.split(":"))
    figures = run(range(first, last))
    if arguments.json:
        document = add(arguments.json, figures, range(first, last))
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
        figures = document["figures"]
    for name, states in figures.items():
        print(name)
        for state, count in states.items():
            print(f"  {state:12} " + ", ".join(f"{what} {number}" for what, number in sorted(count.items())))


if __name__ == "__main__":
    main()
