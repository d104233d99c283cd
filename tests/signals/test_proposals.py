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
    assert re.findall(r"^ +files: (.*)  # 1 recording$", out, re.MULTILINE) == [json.dumps([pattern])]
    rules = tmp_path / "lab.yaml"
    channels = dict(re.findall(r"^ +(EEG_C4|AIRFLOW): (.*)  # 1 recording$", out, re.MULTILINE))
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


def nights(folder: Path, *montages: tuple[str, ...]) -> Path:
    """A recording of each of ``montages``, all signals of 200 Hz in uV."""
    folder.mkdir()
    for number, labels in enumerate(montages):
        write_edf(folder / f"P{number}.edf", [Made(label, noise(12_000, place), 200) for place, label in enumerate(labels)])
    return folder


def proposed(folder: Path, capsys) -> dict[str, str]:
    """Lines that the doctor proposes below `channels:`, by their channels, as often as it does."""
    main(["doctor", str(folder), "--headers"])
    lines = re.findall(r"^ +([A-Z0-9_]+: \[\{.*\}\])  #(.*)$", capsys.readouterr().out, re.MULTILINE)
    assert len({line.partition(":")[0] for line, _ in lines}) == len(lines)
    return dict(lines)


def test_proposals_for_one_channel_are_one_line_that_maps_all_its_recordings(tmp_path, capsys):
    """Pasted as two lines the last would be all that counts."""
    folder = nights(
        tmp_path / "nights",
        *[("Kanal 1 C3/A2", "Kanal 2 C4/A1")] * 2,
        ("Kanal 9 C3/A2", "Kanal 2 C4/A1"),
        ("C4-M1", "Kanal 9 C3/A2", "Kanal 1 C3/A2"),
    )
    found = proposed(folder, capsys)
    eeg = "EEG_C3: [{signal: [Kanal 1 C3/A2], derivation: C3-M2}, {signal: [Kanal 9 C3/A2], derivation: C3-M2}]"
    assert found[eeg] == " 3, 2 recordings, in this order"
    # One of the four has its C4 by the cohort's rules, which a line of one's own replaces.
    (other,) = found.keys() - {eeg}
    assert other == "EEG_C4: [{signal: [Kanal 2 C4/A1], derivation: C4-M1}]"
    assert found[other].startswith(" 3 recordings; 1 other has EEG_C4 by rules that this one replaces")
    rules = tmp_path / "lab.yaml"
    rules.write_text("\n".join(["extends: generic.yaml", "name: lab", "source: x", "channels:", f"  {eeg}", ""]))
    main(["doctor", str(folder), "--headers", "--cohort", str(rules)])
    assert re.search(r"^EEG_C3 +4 of 4$", capsys.readouterr().out, re.MULTILINE)


def test_a_recording_counts_once_however_many_signals_of_one_label_it_has(tmp_path, capsys):
    main(["doctor", str(nights(tmp_path / "nights", *[("C4-M1", "Rest", "Rest", "Rest")] * 2)), "--headers"])
    assert "'Rest'                       200 Hz   uV            2 of 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "label",
    [
        *("EMG RAT", "EMG LAT", "RAT EMG", "LTA EMG", "PLM EMG", "EMG Aux1", "EMG EKG", "Body movement", "Machine 2"),
        *("ECG HR", "EKG Rate", "ECG-RR", "EKG Freq", "ECG Beats", "SpO2 status", "Thor Rate"),
        *("CPAP Flow", "Flow Mask", "xPAP flow", "Leak flow", "Blood pressure", "Press", "Esoph Press", "Flow Lim"),
        *("Ch 2 C4-O1", "Ch 2 C3-C4", "Kanal 3 E1-E2", "C4-Cz", "Kanal 7 A1"),
    ],
)
def test_a_label_that_says_something_else_is_not_proposed(tmp_path, capsys, label):
    assert proposed(nights(tmp_path / "nights", (label,)), capsys) == {}


@pytest.mark.parametrize(
    ("label", "channel"),
    [
        *(("Kanal 5 EMG", "EMG_CHIN"), ("EMG 7", "EMG_CHIN"), ("Ch 5 submental", "EMG_CHIN"), ("My chin 7", "EMG_CHIN")),
        *(("ECG V5", "ECG"), ("Ch 6 EKG", "ECG"), ("Nas Press 2", "AIRFLOW"), ("Nasal flow X", "AIRFLOW")),
        *(("Ch 3 C4", "EEG_C4"), ("Ch 3 C4/M1", "EEG_C4"), ("Ch 1 EOG left", "EOG_L"), ("Ch 8 Chest", "THORAX")),
    ],
)
def test_a_label_that_says_it_with_words_of_its_own_is_proposed(tmp_path, capsys, label, channel):
    (line,) = proposed(nights(tmp_path / "nights", (label,)), capsys)
    assert line.startswith(f"{channel}: [{{signal: [{label}], derivation: ")


def test_an_electrode_alone_is_proposed_against_the_mastoid_that_is_there(tmp_path, capsys):
    labels = ("Kanal 1 C3", "Kanal 2 C4", "Kanal 7 A1", "Kanal 8 A2", "Kanal 9 E1", "Kanal 10 E2")
    found = proposed(nights(tmp_path / "nights", labels), capsys)
    assert found.keys() == {
        "EEG_C3: [{signal: [Kanal 1 C3], reference: [[Kanal 8 A2]], derivation: C3-M2}]",
        "EEG_C4: [{signal: [Kanal 2 C4], reference: [[Kanal 7 A1]], derivation: C4-M1}]",
        "EOG_L: [{signal: [Kanal 9 E1], reference: [[Kanal 8 A2]], derivation: E1-M2}]",
        "EOG_R: [{signal: [Kanal 10 E2], reference: [[Kanal 7 A1]], derivation: E2-M1}]",
    }
    rules = tmp_path / "lab.yaml"
    rules.write_text(
        "\n".join(["extends: generic.yaml", "name: lab", "source: x", "channels:", *(f"  {line}" for line in found), ""])
    )
    assert main(["doctor", str(tmp_path / "nights"), "--headers", "--cohort", str(rules)]) == 0
    assert "EEG_C4    Kanal 2 C4 - Kanal 7 A1, 200 Hz, uV, C4-M1" in capsys.readouterr().out
    # Of two of one label nobody knows which, and the message about the channel has the line that takes one of them.
    assert proposed(nights(tmp_path / "two", ("C3", "C4", "M1", "M1", "M2", "E1", "E2")), capsys) == {}


def test_thousands_of_names_take_a_moment(tmp_path):
    nights = [tmp_path / f"P{number:05d}_night1.edf" for number in range(3000)]
    (tmp_path / "t").mkdir()
    for night in nights:
        (tmp_path / "t" / f"{night.stem}_st.csv").touch()
    assert scoring_patterns(nights, tmp_path) == {"t/{stem}_st.csv": 3000}
