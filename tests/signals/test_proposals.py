"""What the doctor proposes for a cohort file: lines that, taken over, do what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from made_edf import Made, noise, write_edf

from sleepfm.cli import main
from sleepfm.signals.cohorts.proposals import scoring_patterns

STAGES = "W\nN1\n"


def recording(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_edf(path, [Made("Ch 3 C4/M1", noise(12_000), 200), Made("Ch 7 Flow", noise(1920), 32, unit="")])


def table(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STAGES)


@pytest.mark.parametrize(
    ("night", "scored", "pattern"),
    [
        ("nights/a1.edf", "nights/a1_staging.txt", "{stem}_staging.txt"),
        ("nights/a1.edf", "nights/tables/staging-a1.csv", "tables/staging-{stem}.csv"),
        ("nights/edf/a1.edf", "nights/tables/a1.tsv", "tables/{stem}.tsv"),
        ("nights/p7/a1.edf", "nights/tables/p7/a1.csv", "tables/{folder}/{stem}.csv"),
        ("nights/a[1]{x}.edf", "nights/t{y}/a[1]{x} st*.csv", "t{{y}}/{stem} st[*].csv"),
    ],
)
def test_a_proposed_pattern_finds_the_table(tmp_path, capsys, night, scored, pattern):
    recording(tmp_path / night)
    table(tmp_path / scored)
    # Tables of nobody, and of somebody whose name only begins alike.
    table(tmp_path / "nights" / "summary.csv")
    table(tmp_path / "nights" / "a12_staging.txt")
    main(["doctor", str(tmp_path)])
    out = capsys.readouterr().out
    assert re.findall(r"^ +files: (.*)  # 1 recordings$", out, re.MULTILINE) == [json.dumps([pattern])]
    rules = tmp_path / "lab.yaml"
    channels = dict(re.findall(r"^ +(EEG_C4|AIRFLOW): (.*)  # 1 recordings$", out, re.MULTILINE))
    lines = [f"  {name}: {rule}" for name, rule in channels.items()]
    rules.write_text("\n".join(["extends: generic.yaml", "name: lab", "source: x", "channels:", *lines, "scoring:", ""]))
    with rules.open("a") as file:
        file.write(f"  files: {json.dumps([pattern])}\n")
    capsys.readouterr()
    assert main(["doctor", str(tmp_path), "--cohort", str(rules)]) == 0
    out = capsys.readouterr().out
    assert "2 epochs scored" in out and "files:" not in out
    assert set(channels) == {"EEG_C4", "AIRFLOW"}
    # The electrodes are read out of the label, so that polarity is decided; a channel without a unit is given none.
    assert yaml.safe_load(channels["EEG_C4"])[0]["derivation"] == "C4-M1" and "unit" not in channels["AIRFLOW"]


def test_thousands_of_names_take_a_moment(tmp_path):
    nights = [tmp_path / f"P{number:05d}_night1.edf" for number in range(3000)]
    (tmp_path / "t").mkdir()
    for night in nights:
        (tmp_path / "t" / f"{night.stem}_st.csv").touch()
    assert scoring_patterns(nights, tmp_path) == {"t/{stem}_st.csv": 3000}
