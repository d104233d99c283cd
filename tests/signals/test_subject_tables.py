"""What cohorts' tables say of people: every documented layout, and tables with every fault that one can have."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from made_edf import Made, noise, write_edf

from sleepfm.cli import main
from sleepfm.errors import ConfigError, SubjectTableError
from sleepfm.signals.cohorts.catalogue import load_cohort
from sleepfm.signals.cohorts.cohort import Cohort
from sleepfm.signals.cohorts.identity import identify
from sleepfm.signals.cohorts.subject_rules import SubjectTable
from sleepfm.signals.people import NOBODY, KnownPeople, read_people
from sleepfm.synthetic.layout import layout_names, load_layout
from sleepfm.synthetic.subject import draw_subject
from sleepfm.synthetic.subject_table import row_of, write_table

TABLED = [name for name in layout_names() if load_layout(name).table]
TITLES = "nsrrid,comments,gender,age_s1,bmi_s1,ahi_a0h3a\n"


def write(folder: Path, rows: str, name: str = "datasets/shhs1-dataset-0.21.0.csv", titles: str = TITLES) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((titles + rows).encode("latin-1"))
    return path


def read(folder: Path, *cohorts: str) -> KnownPeople:
    return read_people(folder, [load_cohort(name) for name in cohorts or ("shhs1",)])


def told(known: KnownPeople) -> str:
    return "\n".join(line for report in known.reports for line in report.lines())


@pytest.mark.parametrize("name", TABLED)
def test_the_documented_table_of_a_cohort_is_joined_to_its_recordings(name: str, tmp_path: Path) -> None:
    layout = load_layout(name)
    assert layout.table is not None
    write_table(tmp_path / layout.table.path, layout.table, layout.first, 12, seed=3)
    cohort = load_cohort(name)
    known = read_people(tmp_path, [cohort])
    for number in range(12):
        row = row_of(draw_subject(3, number), layout.first + number)
        identity = identify(layout.place(tmp_path, number)[0], cohort)
        person = known.of(name, identity.subject, identity.visit)
        columns = layout.table.columns.values()
        assert person.age == pytest.approx(round(row.age), abs=0.5)
        assert person.sex == (row.sex if any(isinstance(text, dict) for text in columns) else {"sof": "female"}.get(name, "male"))
        assert person.bmi == (pytest.approx(row.bmi, abs=0.01) if row.bmi and any("{bmi" in text for text in columns) else None)
        assert person.ahi == (pytest.approx(row.ahi, abs=0.01) if any("{ahi" in text for text in columns) else None)
        assert bool(person.family) == (name == "cfs")
        assert all(text.startswith(Path(layout.table.path).name) for text in person.sources.values())
    assert told(known).count("not known") == 0


def test_a_cohort_whose_documentation_names_a_table_has_a_layout_of_it() -> None:
    # The children's tables are as the others; invented people are grown up.
    assert {name for name in layout_names() if load_cohort(name).subjects} - set(TABLED) == {"ccshs", "chat", "nchsdb"}


def test_what_is_missing_or_not_understood_stays_unknown_and_is_told_by_its_line(tmp_path: Path) -> None:
    write(
        tmp_path,
        "200001,caf\xe9,1,55,21.7,3.5\n"
        "200002,,2,.,NA,NaN\n"
        "200003,,3,400,fat,-1\n"
        "200004,Mrs Smith,02,90,1e9,12\n"
        "200005,,1.0,89,30,\n",
    )
    known = read(tmp_path)
    people = {number: known.of("shhs1", f"shhs-20000{number}", "1") for number in range(1, 7)}
    assert (people[1].age, people[1].sex, people[1].bmi, people[1].ahi) == (55, "male", 21.7, 3.5)
    assert (people[2].age, people[2].sex, people[2].bmi, people[2].ahi) == (None, "female", None, None)
    assert people[3] == people[6] == NOBODY
    assert (people[4].age, people[4].sex, people[4].bmi) == (90, "female", None)
    assert (people[5].age, people[5].sex) == (89, "male")
    lines = told(known)
    for problem in (
        "gender has codes that the rule does not list (1 cell, first in line 4)",
        "age_s1 has values outside of 0 to 120 years (1 cell, first in line 4)",
        "bmi_s1 has texts that are no number (1 cell, first in line 4)",
        "bmi_s1 has values outside of 5 to 150 kg/m2 (1 cell, first in line 5)",
        "ahi_a0h3a has values outside of 0 to 300 events/h (1 cell, first in line 4)",
    ):
        assert problem in lines
    assert "fat" not in lines and "Smith" not in lines + repr(people)


def test_ages_above_89_are_one_category_as_nsrr_codes_them(tmp_path: Path) -> None:
    write(tmp_path, "1,89\n2,89.4\n3,104\n", "cfs-visit5-dataset-0.7.0.csv", "nsrrid,age,familyi\n")
    with pytest.raises(SubjectTableError, match="line 2 has 2 cells, but its first line has 3"):
        read(tmp_path, "cfs")
    write(tmp_path, "1,89,7\n2,89.4,7\n3,104,\n", "cfs-visit5-dataset-0.7.0.csv", "nsrrid,age,familyi\n")
    known = read(tmp_path, "cfs")
    assert [known.of("cfs", f"cfs-{number}", "5").age for number in (1, 2, 3)] == [89, 90, 90]
    assert known.families == {"cfs-1": "cfs-family-7", "cfs-2": "cfs-family-7"}
    assert "has no column male, and says nothing of sex" in told(known)


def test_the_last_version_counts_and_the_others_are_named(tmp_path: Path) -> None:
    write(tmp_path, "200001,,1,50,,\n", "datasets/shhs1-dataset-0.9.0.csv")
    write(tmp_path, "200001,,1,51,,\n", "datasets/shhs1-dataset-0.21.0.csv")
    write(tmp_path, "200001,,1,49,,\n", "datasets/shhs1-eeg-band-summary-dataset-0.9.0.csv")
    known = read(tmp_path)
    assert known.of("shhs1", "shhs-200001", "1").age == 51
    assert "not read, since of several versions the last counts: datasets/shhs1-dataset-0.9.0.csv" in told(known)


@pytest.mark.parametrize("place", ["", "datasets/", "shhs/datasets/"])
def test_tables_are_found_where_a_download_has_them(place: str, tmp_path: Path) -> None:
    write(tmp_path, "200001,,1,51,,\n", f"{place}shhs1-dataset-0.21.0.csv")
    assert read(tmp_path).of("shhs1", "shhs-200001", "1").age == 51
    write(tmp_path, "200001,,1,52,,\n", "elsewhere/shhs1-dataset-0.22.0.csv")
    found = read_people(tmp_path, [load_cohort("shhs1")], folder=tmp_path / "elsewhere")
    assert found.of("shhs1", "shhs-200001", "1").age == 52
    with pytest.raises(SubjectTableError, match="does not contain any table of people that a cohort file names"):
        read_people(tmp_path, [load_cohort("cfs")], folder=tmp_path / "elsewhere")


def test_of_two_tables_the_first_that_knows_counts_and_visits_are_kept_apart(tmp_path: Path) -> None:
    write(tmp_path, "200001,,1,51,,\n")
    write(
        tmp_path,
        "200001,1,60,female,30\n200001,2,66,male,31\n200002,1,44,not reported,\n",
        "datasets/shhs-harmonized-dataset-0.21.0.csv",
        "nsrrid,visitnumber,nsrr_age,nsrr_sex,nsrr_bmi\n",
    )
    known = read(tmp_path, "shhs1", "shhs2")
    first = known.of("shhs1", "shhs-200001", "1")
    assert (first.age, first.sex, first.bmi) == (51, "male", 30)
    assert first.sources["bmi"] == "shhs-harmonized-dataset-0.21.0.csv: nsrr_bmi"
    assert known.of("shhs2", "shhs-200001", "2").age == 66
    other = known.of("shhs1", "shhs-200002", "1")
    assert (other.age, other.sex) == (44, None)


def test_rows_that_contradict_one_another_say_nothing(tmp_path: Path) -> None:
    write(tmp_path, "200001,,1,51,20,\n200001,,1,52,,4\n200001,,1,51,20,4\n")
    known = read(tmp_path)
    person = known.of("shhs1", "shhs-200001", "1")
    assert (person.age, person.sex, person.bmi, person.ahi) == (None, "male", 20, 4)
    assert "two rows of one person and visit differ in age" in told(known)


def test_a_table_of_one_visit_is_of_no_other(tmp_path: Path) -> None:
    write(tmp_path, "300001,5.25,1,16,2\n", "chat-baseline-dataset-0.14.0.csv", "nsrrid,child_age,male,ant5,ahi_a0h3a\n")
    write(tmp_path, "300001,5.75,1,17,1\n", "chat-followup-dataset-0.14.0.csv", "nsrrid,child_age,male,ant5,ahi_a0h3a\n")
    known = read(tmp_path, "chat")
    assert [known.of("chat", "chat-300001", visit).age for visit in ("baseline", "followup", "nonrandomized")] == [
        5.25,
        5.75,
        None,
    ]
    write(tmp_path, "7,1,3653,M,18\n7,2,4018,UN,\n", "nchsdb-dataset-0.3.0.csv", NCHSDB)
    known = read(tmp_path, "nchsdb")
    assert [known.of("nchsdb", "nchsdb-7", visit).age for visit in ("1", "2", "3")] == [10.0, 11.0, None]


NCHSDB = "study_pat_id,sleep_study_id,age_at_sleep_study_days,pcori_gender_cd,bmi\n"


@pytest.mark.parametrize(
    ("titles", "rows", "reason"),
    [
        ("id,familyi\n", "1,2\n", "has no column 'nsrrid', which cohort cfs names as its key"),
        ("nsrrid,age\n", "1,2\n", "has no column 'familyi', which cohort cfs names as its family"),
        ("nsrrid,familyi\n", "1,2\n2,2\n1,3\n", "line 4 gives a person another family than an earlier line"),
        ("nsrrid,familyi\n", '1,"2\n', "line 2 is not a row of a table"),
        ("", "", "is empty"),
    ],
)
def test_a_table_that_could_part_a_family_is_refused(titles: str, rows: str, reason: str, tmp_path: Path) -> None:
    write(tmp_path, rows, "cfs-visit5-dataset-0.7.0.csv", titles)
    with pytest.raises(SubjectTableError, match=reason) as error:
        read(tmp_path, "cfs")
    assert str(error.value).startswith("cfs-visit5-dataset-0.7.0.csv: ")


def test_a_byte_order_mark_and_capitals_in_titles_are_no_other_column(tmp_path: Path) -> None:
    path = write(tmp_path, "200001,,1,51,,\n", titles=TITLES.upper())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(tmp_path).of("shhs1", "shhs-200001", "1").age == 51


def test_keys_are_told_apart_as_file_names_have_them(tmp_path: Path) -> None:
    write(tmp_path, "AA0001,1,70,2\nAA0010,1,71,2\n", "mros-visit1-dataset-0.6.0.csv", "nsrrid,visit,vsage1,gender\n")
    write(tmp_path, "1,60,1\n10,61,0\n", "mesa-sleep-dataset-0.7.0.csv", "mesaid,sleepage5c,gender1\n")
    known = read(tmp_path, "mros1", "mesa")
    assert [known.of("mros1", f"mros-{key}", "1").age for key in ("aa0001", "aa0010", "aa0100")] == [70, 71, None]
    assert [known.of("mesa", f"mesa-{key}", "1").age for key in ("0001", "0010", "0100")] == [60, 61, None]


def own(**changes: object) -> Cohort:
    table = {"files": ["people.csv"], "key": "person", "columns": {"age": {"column": "age"}}, **changes}
    return load_cohort("shhs1").model_copy(update={"name": "own", "subjects": (SubjectTable.model_validate(table),)})


def test_what_else_is_asked_for_is_kept_by_its_codes_and_free_text_never(tmp_path: Path) -> None:
    titles = ["person", "age", "race", "sites", "remark"]
    with (tmp_path / "people.csv").open("w", newline="") as file:
        csv.writer(file).writerows([titles, ["1", "20", "2", "03", "knows Dr Jones"], ["2", "21", "9", "x", "17"]])
    columns = {
        "age": {"column": "age"},
        "race": {"column": "race", "codes": {"1": "white", "2": "black"}},
        "site": {"column": "sites"},
        "remark": {"column": "remark"},
    }
    known = read_people(tmp_path, [own(columns=columns)])
    assert known.of("own", "shhs-1", "1").more == {"race": "black", "site": "3"}
    assert known.of("own", "shhs-2", "1").more == {"remark": "17"}
    assert "Jones" not in told(known)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"columns": {"age": {"column": "a", "unit": "weeks"}}}, "columns.age: is a number in one of years, months, days"),
        ({"columns": {"sex": {"column": "a"}}}, "columns.sex: needs codes"),
        ({"columns": {"sex": {"column": "a", "codes": {"1": "man"}}}}, "columns.sex: needs codes"),
        ({"columns": {"Age": {"column": "a"}}}, "columns.Age: use only lower-case letters"),
        ({"columns": {"race": {"column": "a", "unit": "years"}}}, "columns.race: only age, bmi, ahi have a unit"),
        ({"key_pattern": "x(\\d+)"}, "has no group `subject`"),
        ({"key_pattern": "("}, "not a regular expression"),
        ({"visit_codes": {"1": "2"}}, "visit_codes needs the column `visit`"),
        ({"files": []}, "at least 1 item"),
    ],
)
def test_a_wrong_rule_is_refused_by_name(changes: dict[str, object], reason: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=reason.replace("(", "\\(") if "regular" not in reason else reason):
        own(**changes)


def test_the_doctor_says_which_table_there_is_and_whom_it_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edfs = tmp_path / "polysomnography" / "edfs" / "shhs1"
    edfs.mkdir(parents=True)
    signals = [Made(label, noise(300 * 125, seed), 125) for seed, label in enumerate(("EEG", "EEG(sec)", "EMG"))]
    for number in (1, 2, 4):
        write_edf(edfs / f"shhs1-20000{number}.edf", signals if number != 4 else [Made("EEG", noise(300 * 125, 9), 125)])
    write(tmp_path, "200001,,1,51,,\n200004,,1,,,\n200009,,2,80,,\n")
    assert main(["doctor", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "people     datasets/shhs1-dataset-0.21.0.csv (cohort shhs1): 3 people; age, sex, bmi, ahi known of them" in said
    assert "people     3 of the 3 here are of a cohort with a table; known: age of 1, sex of 2" in said
    assert "people     1 of them, at this visit, is in no table" in said
    assert f"warning    {edfs / 'shhs1-200002.edf'} has the same signals as {edfs / 'shhs1-200001.edf'}" in said
    (tmp_path / "datasets" / "shhs1-dataset-0.21.0.csv").unlink()
    assert main(["doctor", str(tmp_path), "--headers"]) == 0
    looked = "looked for shhs1-dataset-[0-9]*.csv, shhs-harmonized-dataset-[0-9]*.csv"
    assert f"people     cohort shhs1: no table of its people was found ({looked})" in capsys.readouterr().out
    write(tmp_path, "200001,,1\n")
    assert main(["doctor", str(tmp_path), "--json", "--headers"]) == 1
    done = capsys.readouterr()
    assert len(json.loads(done.out)) == 3
    assert "warning: datasets/shhs1-dataset-0.21.0.csv: line 2 has 3 cells, but its first line has 6" in done.err
