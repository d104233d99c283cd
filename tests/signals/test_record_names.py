"""What recordings are called whose files have the same names: two people's never alike, one night's in two formats as one's."""

from __future__ import annotations

from pathlib import Path

import pytest

from sleepfm.signals.cohorts.catalogue import load_cohort
from sleepfm.signals.cohorts.identity import identify
from sleepfm.signals.record_names import LONGEST_KEY, RecordName, name_persons, name_records, names_below


@pytest.mark.parametrize(
    ("paths", "records", "persons"),
    [
        # As ever, where no two files have one name.
        (["P1.edf", "nights/P2 a.edf"], ["P1", "P2-a"], ["P1", "P2-a"]),
        (["P1/psg.edf", "P2/psg.edf", "x.edf"], ["P1-psg-edf", "P2-psg-edf", "x"], ["P1-psg-edf", "P2-psg-edf", "x"]),
        # One night in two formats is one person's, whoever else has a file of that name.
        (["P1.bdf", "P1.edf"], ["P1-bdf", "P1-edf"], ["P1", "P1"]),
        (
            ["P1/psg.bdf", "P1/psg.edf", "P2/psg.edf"],
            ["P1-psg-bdf", "P1-psg-edf", "P2-psg-edf"],
            ["P1-psg-bdf", "P1-psg-bdf", "P2-psg-edf"],
        ),
        # What is safe in a file name may be equal where the names are not.
        (["P1/a b.edf", "P2/a-b.edf"], ["P1-a-b-edf", "P2-a-b-edf"], ["P1-a-b-edf", "P2-a-b-edf"]),
    ],
)
def test_a_name_that_several_folders_have_is_no_persons(paths, records, persons):
    named = name_records(paths, ())
    assert list(named) == paths and list(named.values()) == records
    assert list(name_persons(named).values()) == persons


def test_a_long_name_stays_a_persons_and_becomes_a_short_key():
    paths = [f"{folder}/{'n' * 80}.edf" for folder in "ab"]
    for some in (paths[:1], paths):
        records = name_records(some, ())
        persons = name_persons(records)
        assert all(len(key) <= LONGEST_KEY for key in records.values()) and len(set(persons.values())) == len(some)
        # A data set that was built before keeps its people.
        assert len(some) > 1 or list(persons.values()) == ["n" * 80]


def test_a_name_that_was_given_stays_when_others_come():
    """A plan's names are told before those of a later build."""
    records = {"P1/psg.edf": "psg", "P2/psg.edf": "P2-psg-edf"}
    assert name_persons(records) == records


def test_paths_are_named_below_their_folder():
    root = Path("somewhere/tree")
    paths = [root / "P2" / "psg.edf", root / "P1" / "psg.edf"]
    names = names_below(paths, root)
    assert names[paths[1]] == RecordName("P1/psg.edf", "P1-psg-edf", "P1-psg-edf") and set(names) == set(paths)
    # A recording that is given itself, and one of which no folder is known.
    assert (
        names_below(paths[:1], paths[0])
        == {paths[0]: RecordName.alone("psg.edf")}
        == {paths[0]: RecordName("psg.edf", "psg", "psg")}
    )


def test_a_pattern_with_a_slash_sees_folders_and_any_other_one_names_alone(tmp_path):
    def persons(pattern: str, *paths: str) -> list[tuple[str, str, bool]]:
        rules = tmp_path / f"lab{len(paths)}.yaml"
        rules.write_text(f"extends: generic.yaml\nname: lab\nsource: x\nidentity: {{pattern: '{pattern}', prefix: lab-}}\n")
        names = names_below([Path("tree", path) for path in paths], Path("tree"))
        found = [identify(path, load_cohort(str(rules)), name) for path, name in names.items()]
        return [(identity.subject, identity.visit, identity.read) for identity in found]

    nights = ("P1/night1/psg.edf", "P1/night2/psg.edf", "P2/night1/psg.edf", "psg.edf")
    assert persons(r"^(?P<subject>P\d+)/night(?P<visit>\d)/", *nights) == [
        ("lab-P1", "1", True),
        ("lab-P1", "2", True),
        ("lab-P2", "1", True),
        ("lab-psg-edf", "1", False),
    ]
    # As before: ^ is where the file's name begins.
    assert persons(r"^(?P<subject>P\d+)", "P1/P7.edf", "P2/x.edf") == [("lab-P7", "1", True), ("lab-x", "1", False)]
