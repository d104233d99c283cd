"""Whose a recording is, and what is said where its name does not tell."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from made_edf import Made, noise, write_edf

from sleepfm.cli import main
from sleepfm.errors import ConfigError
from sleepfm.signals.cohorts.catalogue import load_cohort, recognise_cohort
from sleepfm.signals.cohorts.identity import _EXAMPLE, UnreadNames, check_identity, identify
from sleepfm.signals.record_names import names_below

NIGHTS = ("P01_night1.edf", "P01_night2.edf", "P02 Night 1.edf", "plain.edf", "night1.edf")


def warning(*paths: str) -> str:
    """What is said of the names of these recordings."""
    unread = UnreadNames()
    for path in paths:
        unread.add(path, path)
    return unread.warning(len(paths))


def test_a_name_that_says_no_person_is_told_from_one_that_does(tmp_path):
    found = [identify(Path(name), load_cohort("generic")) for name in NIGHTS]
    assert [identity.read for identity in found] == [False] * 5 and len({identity.subject for identity in found}) == 5
    assert identify(Path("sub-7_ses-1_task-sleep_eeg.edf"), load_cohort("generic")).read
    # As the warning proposes.
    rules = tmp_path / "lab.yaml"
    proposed = warning("x", "y").split("identity: ")[1]
    rules.write_text(f"extends: generic.yaml\nname: lab\nsource: x\nidentity: {proposed}\n")
    first, again, other = (identify(Path(name), load_cohort(str(rules))) for name in (*NIGHTS[:2], "plain.edf"))
    assert first.read and first.subject == again.subject == "P01" and (first.visit, again.visit) == ("1", "2") and not other.read


def unread(*persons: str) -> UnreadNames:
    """Recordings ``a.edf``, ``b.edf``, … that count as ``persons``."""
    names = UnreadNames()
    for number, person in enumerate(persons):
        names.add(f"{'abc'[number]}.edf", person)
    return names


@pytest.mark.parametrize(
    ("persons", "total", "said", "apart"),
    [
        (
            ("a",),
            1,
            "the file name a.edf does not say whose recording it is by the identity rule of its cohort: it counts",
            True,
        ),
        (("a",), 4, "1 of 4 file names, a.edf, does not say whose recording it is by the identity rule of its cohort: it ", True),
        (("a", "b"), 2, "2 of 2 file names, such as a.edf, do not say", True),
        (
            ("a", "a", "b"),
            3,
            "they count as 2 persons, since files of one folder that differ in their ending alone",
            True,
        ),
        (
            ("a", "a"),
            2,
            "they count as 1 person, since they differ in their ending alone, and come into one split; say",
            False,
        ),
        (("a", "a"), 3, "and come into one split; another night of this person may come into another one; say in", True),
    ],
)
def test_what_is_said_of_the_splits_is_true_of_so_many_persons(
    persons: tuple[str, ...], total: int, said: str, apart: bool
) -> None:
    told = unread(*persons).warning(total)
    assert said in told
    assert ("different splits" in told or "may come into another" in told) == apart


def test_a_pattern_without_a_subject_or_that_fits_nothing_is_an_error(tmp_path):
    rules = tmp_path / "lab.yaml"
    rules.write_text('extends: generic.yaml\nname: lab\nsource: x\nidentity: {pattern: "^P(\\\\d+)_"}\n')
    with pytest.raises(ConfigError, match=r"identity\.pattern.*group `subject`"):
        load_cohort(str(rules))
    rules.write_text('extends: generic.yaml\nname: lab\nsource: x\nidentity: {pattern: "^Q(?P<subject>\\\\d+)_"}\n')
    cohort = load_cohort(str(rules))
    with pytest.raises(
        ConfigError, match=r"cohort lab: identity\.pattern .* fits none of the 5 file names here, such as 'P01_nig"
    ):
        check_identity(NIGHTS, cohort)
    check_identity([*NIGHTS, "Q7_x.edf"], cohort)
    # Shipped rules, and what extends them, are used for recordings of any name.
    for name in ("generic", "shhs1"):
        check_identity(["plain.edf"], load_cohort(name))


def test_the_doctor_warns_once(tmp_path, capsys):
    for name in ("P01_night1.edf", "P01_night2.edf", "sub-1_eeg.edf"):
        write_edf(tmp_path / name, [Made("C4-M1", noise(6000, 1), 100)])
    main(["doctor", str(tmp_path)])
    out = capsys.readouterr().out
    assert out.count("do not say whose recording it is") == 1 and "2 of 3 file names, such as P01_night1.edf" in out
    rules = tmp_path / "lab.yaml"
    rules.write_text('extends: generic.yaml\nname: lab\nsource: x\nidentity: {pattern: "^Q(?P<subject>\\\\d+)_"}\n')
    assert main(["doctor", str(tmp_path), "--cohort", str(rules)]) == 2
    assert "fits none of the 3 file names" in capsys.readouterr().err


def test_nchsdb_is_told_without_capnography():
    usual = ("EEG C3-M2", "EEG F3-M2", "EEG O1-M2", "EEG O2-M1", "EEG C4-M1", "EOG LOC-M2")
    assert recognise_cohort("12345_6789.edf", usual).name == "nchsdb"
    assert recognise_cohort("12345_6789.edf", ("EEG C3", "EEG M2", "EEG EKG1", "EEG EKG2", "EEG Chin1")).name == "nchsdb"
    assert recognise_cohort("12345_6789.edf", ("C3", "M2", "EKG2", "Chin1", "LOC", "ROC", "O1")).name == "nchsdb"
    first, again = (identify(Path(f"12345_{study}.edf"), load_cohort("nchsdb")) for study in (6789, 6790))
    assert first.subject == again.subject and first.read
    # Neither labels nor such a name is enough alone.
    assert recognise_cohort("P01_night1.edf", usual).name == "generic"
    assert recognise_cohort("12345_6789.edf", ("C3-M2", "C4-M1")).name == "generic"


@pytest.mark.parametrize(
    ("names", "persons"),
    [
        (("P01_night1.edf", "P01_night2.edf", "P12_night1.edf"), ["P01", "P01", "P12"]),
        (("7-1.edf", "7-2.edf", "12-1.edf"), ["7", "7", "12"]),
        (("pat 12 psg 1.bdf", "pat 12 psg 2.bdf", "pat 3 psg 1.bdf"), ["pat-12", "pat-12", "pat-3"]),
        (("o'k (4)_01b.2.edf", "o'k (4)_01b.3.edf", "o'k (5)_01b.2.edf"), ["o-k-4-_01b", "o-k-4-_01b", "o-k-5-_01b"]),
    ],
)
def test_the_warning_proposes_a_pattern_that_fits_the_names(tmp_path, names, persons):
    rules = tmp_path / "lab.yaml"
    proposed = warning(*(f"nights/{name}" for name in names)).split("identity: ")[1]
    rules.write_text(f"extends: generic.yaml\nname: lab\nsource: x\nidentity: {proposed}\n")
    found = [identify(Path(name), load_cohort(str(rules))) for name in names]
    assert [identity.subject for identity in found] == persons and all(identity.read for identity in found)
    assert found[0].visit != found[1].visit


MOST = tuple(f"Pat{number:03}_N1.edf" for number in range(1, 6))


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        # The first of them in the alphabet may be anything.
        (("Mustermann, Erika 1961-04-12.edf", *MOST), r"^(?P<subject>Pat\d+)_N(?P<visit>\d+)"),
        (("A1_1.edf", *MOST, "Z1_1.edf"), r"^(?P<subject>Pat\d+)_N(?P<visit>\d+)"),
        # One person's names, alone or most of all, and shapes that few names have.
        (("Mustermann, Erika 1961-04-12.edf",), ""),
        (("P1 Mustermann 1.edf", "P1 Mustermann 2.edf"), ""),
        (("Mustermann Erika 1 N1.edf", "Mustermann Erika 1 N2.edf", "x.edf"), ""),
        (("Mustermann 1-1.edf", "Musterfrau 1-1.edf", "Muster 2-1.edf"), ""),
        ((*MOST[:2], "a.edf", "b.edf"), ""),
        # Letters that are no name, or those of several persons.
        (("A7_n1.edf", "A7_n2.edf"), r"^(?P<subject>A\d+)_n(?P<visit>\d+)"),
        (("proband 1 nacht 1.edf", "proband 2 nacht 1.edf"), r"^(?P<subject>proband\ \d+)\ nacht\ (?P<visit>\d+)"),
    ],
)
def test_a_pattern_is_that_of_most_names_and_has_no_name_of_a_person_in_it(names, pattern):
    said = warning(*names)
    assert said.split("identity: ")[1] == f"{{pattern: '{pattern or _EXAMPLE}'}}"
    example = re.search(r"(?:such as|the file name) (.*?)(?:, do| does) not say", said)[1]
    assert example in names and (not pattern or re.search(pattern, example))


def test_the_doctor_proposes_it_of_a_folder_that_no_rule_reads(tmp_path, capsys):
    for name in ("A7_n1.edf", "A7_n2.edf"):
        write_edf(tmp_path / name, [Made("Ch 3 brain", noise(6000, 1), 100)])
    main(["doctor", str(tmp_path)])
    assert r"identity: {pattern: '^(?P<subject>A\d+)_n(?P<visit>\d+)'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("paths", "persons"),
    [
        (("P1/psg.edf", "P2/psg.edf"), ["P1", "P2"]),
        (("edf/P1/psg.edf", "edf/P2/psg.bdf"), ["P1", "P2"]),
        (("P1/night1/psg.edf", "P1/night2/psg.edf", "P2/night1/psg.edf"), ["P1", "P1", "P2"]),
        # The folders are nights.
        (("night1/A.edf", "night1/B.edf", "night2/A.edf", "night2/B.edf"), ["A", "B", "A", "B"]),
    ],
)
def test_the_warning_proposes_folders_where_these_tell_people_apart(tmp_path, paths, persons):
    rules = tmp_path / "lab.yaml"
    said = warning(*paths)
    assert "which part of the path (a pattern with a slash is searched below" in said
    proposed = said.split("identity: ")[1]
    # A folder may have a person's name.
    assert not re.search(r"P\d|night\d|edf/", proposed)
    rules.write_text(f"extends: generic.yaml\nname: lab\nsource: x\nidentity: {proposed}\n")
    names = names_below([tmp_path / path for path in paths], tmp_path)
    cohort = load_cohort(str(rules))
    check_identity(paths, cohort)
    found = [identify(tmp_path / path, cohort, names[tmp_path / path]) for path in paths]
    assert [identity.subject for identity in found] == persons and all(identity.read for identity in found)


def test_a_pattern_of_folders_that_fits_nothing_says_where_it_is_searched(tmp_path):
    rules = tmp_path / "lab.yaml"
    rules.write_text('extends: generic.yaml\nname: lab\nsource: x\nidentity: {pattern: "^(?P<subject>Q\\\\d)/"}\n')
    cohort = load_cohort(str(rules))
    with pytest.raises(ConfigError, match=r"none of the 2 file paths here, such as 'P1/psg.edf'; since it has a slash"):
        check_identity(["P1/psg.edf", "Q1.edf"], cohort)
    check_identity(["Q1/psg.edf"], cohort)


def test_the_doctor_counts_a_folder_a_person_and_one_night_in_two_formats_as_one_persons(tmp_path, capsys):
    files = ("P1/psg.edf", "P2/psg.edf", "P3/rec.edf", "P3/rec.bdf")
    for seed, name in enumerate(files):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_edf(tmp_path / name, [Made("C4-M1", noise(6000, seed), 100)])
    main(["doctor", str(tmp_path), "--json"])
    findings = {
        Path(finding["path"]).relative_to(tmp_path).as_posix(): finding for finding in json.loads(capsys.readouterr().out)
    }
    assert [findings[name]["subject"] for name in files] == ["P1-psg-edf", "P2-psg-edf", "rec", "rec"]
    assert [findings[name]["record"] for name in files] == ["P1-psg-edf", "P2-psg-edf", "P3-rec-edf", "P3-rec-bdf"]
    main(["doctor", str(tmp_path)])
    out = capsys.readouterr().out
    assert "subjects   3;" in out
    assert "4 of 4 file names" in out and "they count as 3 persons, since files of one folder that differ in" in out
    # A sample of the folder has the same people.
    main(["doctor", str(tmp_path), "--headers", "--sample", "1", "--json"])
    (one,) = json.loads(capsys.readouterr().out)
    assert one["subject"] == findings[Path(one["path"]).relative_to(tmp_path).as_posix()]["subject"]
