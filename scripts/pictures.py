"""Draw the pictures of the README from a finished demo: ``python scripts/pictures.py runs/demo docs/images [PAGE]``.

``night.svg`` is the scored night, as the demo's report shows it, or PAGE, the ``report.html`` of any scored night.
``pipeline.svg`` is the way of the data, with the figures of the demo's ``summary.json``. Both are text, light or dark as the
reader's screen is, and fetch nothing.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from sleepfm.reports import palette
from sleepfm.reports.svg import Picture

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif'
PIPELINE_STYLE = """text { font-size: 13px; fill: var(--ink); }
.title { font-size: 15px; font-weight: 600; }
.soft { font-size: 12px; fill: var(--soft); }
.box { fill: var(--tint); stroke: var(--accent); stroke-width: 1.4; }
.registry { fill: var(--tint); stroke: var(--apnea); stroke-width: 1.4; }
.arrow { fill: none; stroke: var(--ink); stroke-width: 1.5; }
.kept { fill: none; stroke: var(--apnea); stroke-width: 1.2; stroke-dasharray: 4 3; }
.tip { fill: var(--ink); }"""
WIDTH, BOX, GAP, TALL = 1064, 298, 84, 116


def night(page: str) -> str:
    """The first wide picture of the report's page of a night, as an SVG file."""
    drawing = re.search(r'<h2 id="night">.*?<div class="on-wide">(<svg .*?</svg>)', page, re.DOTALL)
    style = re.search(r"/\* Pictures\. \*/\n(.*?)\n\s*\n", page, re.DOTALL)
    patterns = re.search(r"<defs>.*?</defs>", page, re.DOTALL)
    if drawing is None or style is None or patterns is None:
        raise SystemExit("no picture of a night in the page; is it the report/night.html of a finished demo?")
    # In a page the picture is as wide as the page; a file has a size of its own.
    return _file(drawing[1], re.sub(r"^ *svg \{[^}]*\}\n", "", style[1]), patterns[0])


def pipeline(summary: dict[str, Any]) -> str:
    """The way of the data as an SVG file, with what the demo's ``summary`` says of its models on people of `test`."""
    kappa = max(figure["kappa"]["value"] for name, figure in summary["test"].items() if name.startswith("sleepfm-stage "))
    events = {result["kind"]: result["metrics"]["f1_iou_0.2"]["value"] for result in summary.get("events", {}).values()}
    reached = [f"stages κ {kappa:.2f}", *(f"{kind} F1 {value:.2f}" for kind, value in events.items())]
    picture = Picture(WIDTH, 436, "From recordings to a scored night: Ray, WebDataset, DeepSpeed, MLflow.")
    upper, lower = 12.0, 180.0
    left, middle, right = (float(number * (BOX + GAP)) + 1 for number in range(3))
    _box(
        picture, left, upper, "Recordings", ["EDF or BDF, with or without a scoring", "YAML rules of a cohort name the channels"]
    )
    shards = ["WebDataset tars and a Parquet manifest", "whole nights filtered, then cut into 30 s", "split by person"]
    _box(picture, middle, upper, "Shards", shards)
    _box(picture, right, upper, "NeuroNet × 5", ["EEG, EOG, EMG, ECG, breathing", "pretrained without labels"])
    joint = ["one encoder for any subset of channels", "over the frozen NeuroNets, with LoRA", "pretrained without labels"]
    _box(picture, right, lower, "SynthSleepNet", joint)
    heads = ["stages, apneas, hypopneas, arousals", "Mamba context over the night", *_rows("demo: ", reached)]
    _box(picture, middle, lower, "Probes and fine-tuning", heads)
    night = ["stages, events, AHI, report.html", "EDF+, .annot, Profusion and NSRR XML"]
    _box(picture, left, lower, "A scored night", night)
    for x, label in ((left + BOX, "Ray"), (middle + BOX, "DeepSpeed")):
        _arrow(picture, x, upper + TALL / 2, x + GAP, label)
    _arrow(picture, right, lower + TALL / 2, right - GAP, "DeepSpeed")
    _arrow(picture, middle, lower + TALL / 2, middle - GAP, "PyTorch")
    down = right + BOX / 2
    picture.path(f"M{down} {upper + TALL}V{lower - 8}", "arrow")
    picture.path(f"M{down - 5} {lower - 9}h10l-5 9z", "tip")
    picture.rect(left, 348, WIDTH - 2, 52, "registry")
    picture.text(left + 14, 370, "MLflow", "title")
    picture.text(
        left + 14, 389, "tracks every run and keeps every model as a version, with its figures, ancestors and data", "soft"
    )
    for x in (left + BOX / 2, middle + BOX / 2, down):
        picture.path(f"M{x} {lower + TALL}V348", "kept")
    picture.text(left, 424, "Demo: synthetic nights, people of the test split. The figures say nothing of patients.", "soft")
    return _file(str(picture.markup()), PIPELINE_STYLE)


def _rows(start: str, parts: list[str]) -> list[str]:
    """``parts`` in rows that fit a box."""
    return [start + ", ".join(parts)] if len(", ".join(parts)) < 40 else [start + ", ".join(parts[:2]), ", ".join(parts[2:])]


def _box(picture: Picture, x: float, y: float, title: str, lines: list[str]) -> None:
    picture.rect(x, y, BOX, TALL, "box")
    picture.text(x + 14, y + 26, title, "title")
    for number, line in enumerate(lines):
        picture.text(x + 14, y + 50 + 20 * number, line, "soft")


def _arrow(picture: Picture, start: float, y: float, stop: float, label: str) -> None:
    way = 1 if stop > start else -1
    picture.path(f"M{start} {y}H{stop - 9 * way}", "arrow")
    picture.path(f"M{stop - 10 * way} {y - 5}v10l{9 * way} -5z", "tip")
    picture.text((start + stop) / 2 - 3 * way, y - 9, label, "", "middle")


def _file(drawing: str, style: str, patterns: str = "") -> str:
    """An element of a page as a file of its own: with a name space, its style sheet and a ground."""
    colours = [";".join(f"--{name}:{colour}" for name, colour in shade.items()) for shade in (palette.LIGHT, palette.DARK)]
    variables = f":root{{{colours[0]};font-family:{FONT}}}@media (prefers-color-scheme: dark){{:root{{{colours[1]}}}}}"
    head, _, rest = drawing.partition(">")
    named = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    ground = '<rect width="100%" height="100%" fill="var(--paper)"/>'
    text = f"{named}>\n<style><![CDATA[\n{style}\n{variables}\n]]></style>\n{patterns}{ground}{rest}\n"
    # An element a line, so that a change is a readable difference.
    return re.sub(r"(/>|</text>)(?=<)", r"\1\n", text)


def main(demo: str, out: str, page: str = "") -> int:
    """Write both pictures of the folder ``demo`` into the folder ``out``; the night is that of ``page``, if it is given."""
    report = Path(page) if page else Path(demo) / "report" / "night.html"
    pages = {
        "night.svg": night(report.read_text(encoding="utf-8")),
        "pipeline.svg": pipeline(json.loads((Path(demo) / "summary.json").read_text(encoding="utf-8"))),
    }
    for name, text in pages.items():
        (Path(out) / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
