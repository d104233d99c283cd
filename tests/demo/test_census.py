"""What a demo of one's own recordings says of them before it makes anything, and that it takes their cohort everywhere."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from made_nights import make_dataset, make_night
from own_laboratory import EVENT_WORDS, SIGNALS, TITLES, write_laboratory

from shards.build_config import load_build_config
from shards.split import split_of
from sleepfm.config import load_config
from sleepfm.constants import SPLITS
from sleepfm.demo.__main__ import main
from sleepfm.demo.census import LABELLED, Census, take_census
from sleepfm.demo.runner import Journal, Runner, Step
from sleepfm.demo.steps import MODALITIES, DemoConfig, Plan
from sleepfm.errors import DatasetError

CHANNELS = dict(
    zip(
        ("EOG_L", "EOG_R", "EEG_C4", "EEG_C3", "EMG_CHIN", "ECG", "AIRFLOW", "THORAX", "ABDOMEN", "SPO2"),
        SIGNALS,
        strict=False,
    )
)
EVENTS = {text: kind for kind, text in EVENT_WORDS.items()}


def rules(folder: Path, prefix: str = "ls-") -> Path:
    """The cohort file of the laboratory."""
    path = folder / "lakeside.yaml"
    columns = dict(zip(TITLES, ("onset", "duration", "event"), strict=True))
    lines = [
        "extends: generic.yaml\nname: lakeside\nsource: test",
        rf"identity: {{pattern: '^(?P<subject>P\d+)_night(?P<visit>\d+)', prefix: {prefix}}}",
        "scoring:\n  files: ['findings/{stem}_findings.csv']",
        f"  columns: {columns}\n  stages: {{dream: REM}}\n  events: {EVENTS}",
        "channels:",
        *(f"  {name}: [{{signal: [{label}]}}]" for name, label in CHANNELS.items()),
    ]
    path.write_text("\n".join([*lines, ""]))
    return path


def people_of(split: str, prefix: str = "ls-") -> list[int]:
    """Numbers of people of a split."""
    config = load_build_config().split
    return [number for number in range(1, 41) if split_of(f"{prefix}P{number:02d}", config) == split]


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people in `pretrain`, two in `label`, one in each of the others; the first night of each without a table is scored."""
    people = [*people_of("pretrain")[:2], *people_of("label")[:2], people_of("val")[0], people_of("test")[0]]
    return write_laboratory(tmp_path_factory.mktemp("lab"), people, hours=0.25, seed=3, unscored=3)


def census(folder: Path, cohort: Path, *settings: str) -> Census:
    return take_census(folder, load_build_config(None, [*settings, f"cohort={cohort}"]))


def demo(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["demo", "--config", "demo/miniature.yaml", "build=[]", *arguments])
    return main()


def test_recordings_and_people_of_each_split_are_counted(laboratory, tmp_path):
    found = census(laboratory, rules(tmp_path))
    kept = {name: (count.recordings, len(count.people), count.scored) for name, count in found.splits.items()}
    broken = split_of("ls-P91", load_build_config().split)
    expected = {"pretrain": (4, 2, 2), "label": (4, 2, 3), "val": (2, 1, 2), "test": (2, 1, 2)}
    # The one that was cut in the midst of the night can be used, and its table not.
    recordings, people, scored = expected[broken]
    assert kept == expected | {broken: (recordings + 1, people + 1, scored)} and found.refused == 2
    found.check(MODALITIES)
    assert any("13 recordings can be used, 4 of them have no scoring; 2 would be refused" in line for line in found.lines())


@pytest.mark.parametrize("split", LABELLED)
def test_a_split_without_scorings_or_people_is_too_little(laboratory, tmp_path, split):
    found = census(laboratory, rules(tmp_path))
    found.splits[split].with_events.clear()
    with pytest.raises(DatasetError, match=f"{split} has no recording with breathing events scored"):
        found.check(MODALITIES)
    found.splits[split].scored = 0
    with pytest.raises(DatasetError, match=f"{split} has no recording with a scoring"):
        found.check(MODALITIES)
    found.splits[split].modalities.discard("EMG")
    with pytest.raises(DatasetError, match=f"{split} has no recording with EMG"):
        found.check(MODALITIES)
    nobody = census(laboratory, rules(tmp_path), "scoring=ignore")
    with pytest.raises(DatasetError, match=r"label has no recording with a scoring; val has no .*; test has no"):
        nobody.check(MODALITIES)


def test_too_few_are_refused_in_a_line_before_anything_is_made(laboratory, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    cohort = rules(tmp_path)
    few = tmp_path / "few"
    few.mkdir()
    for night in (1, 2):
        name = f"P{people_of('pretrain')[0]:02d}_night{night}.edf"
        (few / name).symlink_to(laboratory / name)
    assert demo(monkeypatch, "--data", "few", "--cohort", str(cohort)) == 1
    out, err = capfd.readouterr()
    assert "2 recordings can be used, 2 of them have no scoring; 0 would be refused" in out
    assert err.startswith("error: too few recordings for the demo: label has no recording; val has no recording; ")
    assert err.count("\n") == 1 and not (tmp_path / "runs").exists()
    # Nothing is recognised without the rules.
    assert demo(monkeypatch, "--data", str(laboratory)) == 1
    out, err = capfd.readouterr()
    assert "0 recordings can be used, 0 of them have no scoring; 15 would be refused" in out
    assert "too few recordings for the demo: pretrain has no recording" in err and not (tmp_path / "runs").exists()
    # An earlier demo stays in its place.
    Journal.open(tmp_path / "runs" / "demo", "another").save()
    assert demo(monkeypatch, "--data", "few", "--cohort", str(cohort), "--fresh") == 1
    assert (tmp_path / "runs" / "demo" / "demo.json").exists()


def test_another_salt_lets_other_people_come_into_the_splits(laboratory, tmp_path, monkeypatch, capfd):
    """As the line about too few says; 0 would be a number, and is taken for the word that it is here."""
    monkeypatch.chdir(tmp_path)
    arguments = ("--data", str(laboratory), "--cohort", str(rules(tmp_path)))
    tables = []
    for salt in ("0", "1"):
        split = load_build_config(None, [f"split.salt='{salt}'"]).split
        expected = [split_of(f"ls-P{number:02d}", split) for number in people_of("pretrain")[:2]]
        assert demo(monkeypatch, *arguments, "--salt", salt) == 1
        out, err = capfd.readouterr()
        assert "make demo SALT=word" in err and "--salt word" in err
        counts = {line.split()[0]: int(line.split()[2]) for line in out.splitlines() if line.split()[0] in SPLITS}
        assert all(counts[name] >= expected.count(name) for name in expected) and sum(counts.values()) == 7
        tables.append(counts)
    assert tables[0] != tables[1]


def test_a_cohort_that_is_wrong_or_of_nothing_is_an_error(laboratory, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert demo(monkeypatch, "--cohort", "shhs1") == 2
    assert "--cohort is for your own recordings" in capfd.readouterr().err
    assert demo(monkeypatch, "--data", str(laboratory), "--cohort", "nowhere.yaml") == 2
    assert "nowhere.yaml" in capfd.readouterr().err
    other = rules(tmp_path)
    other.write_text(other.read_text().replace("^(?P<subject>P", "^(?P<subject>Q"))
    assert demo(monkeypatch, "--data", str(laboratory), "--cohort", str(other)) == 2
    assert "fits none of the" in capfd.readouterr().err


def test_every_step_takes_the_cohort(laboratory, tmp_path):
    cohort = str(rules(tmp_path))
    plan = Plan(load_config(DemoConfig, "demo/miniature.yaml"), tmp_path / "demo", 1, laboratory, cohort)
    command = plan.build().command
    assert command[command.index("--cohort") + 1] == cohort
    name = f"P{people_of('val')[0]:02d}_night1"
    assert plan.scoring_file(laboratory / f"{name}.edf") == laboratory / "findings" / f"{name}_findings.csv"


def test_a_log_of_ones_own_recordings_keeps_no_text_that_is_quoted(tmp_path):
    line = "  warning: 'Jo Doe, born 1961' (1) not understood, 'Lights off' left out"
    runner = Runner(tmp_path / "demo", Journal.open(tmp_path / "demo", "same"), lambda: 2)
    for name, kept in (("with", True), ("without", False)):
        runner.run(Step(name, [sys.executable, "-c", f"print({line!r})"], texts_in_log=kept))
    with_texts, without = ((tmp_path / "demo" / "logs" / name).read_text() for name in ("01-with.log", "02-without.log"))
    assert with_texts == line + "\n"
    assert "Jo Doe" not in without and "'Lights off'" in without and "text-" in without


def test_events_are_found_in_breathing_where_every_split_recorded_it(tmp_path):
    """Before the shards are made nobody knows; without airflow and effort apneas are probed for in the paper's four channels."""
    people = {split: f"ls-P{people_of(split)[0]:02d}" for split in SPLITS}
    nights = [make_night(f"n{number}", 3, subject=person) for number, person in enumerate(people.values())]
    config = load_config(DemoConfig, "demo/miniature.yaml")
    for folder, lacking, jobs in (
        ("all", (), ["probe-stage", "events-apnea", "events-hypopnea", "finetune-stage"]),
        ("some", ("test",), ["probe-stage", "probe-apnea", "probe-hypopnea", "finetune-stage"]),
    ):
        plan = Plan(config, tmp_path / folder, 1, tmp_path)
        assert plan.judged[1] == "events-apnea"
        for night, split in zip(nights, people, strict=True):
            if split in lacking:
                del night.channels["AIRFLOW"], night.quality["AIRFLOW"]
        make_dataset(plan.shards, nights)
        assert plan.judged == jobs and ("pretrain-resp" in plan.trained) == (not lacking)
        # Shards, four or five networks and the one over them, the judged ones, a scored night.
        assert plan.n_steps == 1 + 5 + (not lacking) + 4 + 1
    synthetic = Plan(config, tmp_path, 1, None)
    assert synthetic.n_steps == 13 and synthetic.breathes
