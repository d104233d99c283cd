"""A folder for each person, with files of the same names in all of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made_edf import Made, noise, write_edf

from shards.plan import Entry, Plan, ShardPlan
from shards.whose import Whose, stored_subjects, whose_recordings


def psg(path: Path, seed: int) -> Path:
    """A recording at ``path``, just long enough to be known again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_edf(path, [Made("C4-M1", noise(72_000, seed), 100)])
    return path


def test_two_folders_are_two_people_and_stay_who_they_are(run, tmp_path):
    tree, out = tmp_path / "tree", tmp_path / "out"
    psg(tree / "P1/psg.edf", 1)
    build = ["build", tree, out, "recordings_per_shard=1"]
    assert run(build).returncode == 0
    assert stored_subjects(out) == {"P1/psg.edf": "psg"}
    # What was told of the first stays, in its key as in its person, also where a scoring comes and its shard is built again.
    psg(tree / "P2/psg.edf", 2)
    (tree / "P1/psg.csv").write_text("onset,duration,stage\n0,30,N2\n30,30,N2\n")
    result = run(build)
    assert "shard-000000.tar is built again" in result.stdout
    assert stored_subjects(out) == {"P1/psg.edf": "psg", "P2/psg.edf": "P2-psg-edf"}
    # A copy of a night in another folder is no third person.
    (tree / "P3").mkdir()
    shutil.copyfile(tree / "P1/psg.edf", tree / "P3/psg.edf")
    run(build)
    assert stored_subjects(out).keys() == {"P1/psg.edf", "P2/psg.edf"}
    assert pq.read_table(out / "manifest/quarantine.parquet").to_pylist()[0]["error"] == "DuplicateError"


@pytest.mark.parametrize("damage", ["cut short", "other bytes"])
def test_who_is_known_is_not_named_anew_where_the_manifest_is_damaged(run, tmp_path, digests, damage):
    """A build that converts known people again ends before it changes anything; one that adds others writes the table anew."""
    tree, out = tmp_path / "tree", tmp_path / "out"
    psg(tree / "P1/psg.edf", 1)
    build = ["build", tree, out, "recordings_per_shard=1"]
    assert run(build).returncode == 0
    table = out / "manifest/records.parquet"
    whole = table.read_bytes()
    # The second is a table that can be read, and names another person.
    table.write_bytes(whole[: len(whole) // 2] if damage == "cut short" else whole.replace(b"psg", b"gsp"))
    psg(tree / "P2/psg.edf", 2)
    (tree / "P1/psg.csv").write_text("onset,duration,stage\n0,30,N2\n30,30,N2\n")
    before = digests(out)
    result = run(build)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1, result.stderr
    assert f"{table}: cannot be read (" in result.stderr and "restore it from a copy" in result.stderr
    assert "--rebuild" in result.stderr and digests(out) == before
    # Without the scoring nobody who is known is converted again.
    scoring = (tree / "P1/psg.csv").rename(tmp_path / "psg.csv")
    assert run(build).returncode == 0
    scoring.rename(tree / "P1/psg.csv")
    assert run(build).returncode == 0
    assert stored_subjects(out) == {"P1/psg.edf": "psg", "P2/psg.edf": "P2-psg-edf"}
    assert run(["verify", out]).returncode == 0


def test_a_build_that_was_killed_before_its_first_manifest_goes_on(run, tmp_path, digests):
    tree, out = tmp_path / "tree", tmp_path / "out"
    for seed, name in enumerate(("P1/psg.edf", "P2/psg.edf")):
        psg(tree / name, seed)
    build = ["build", tree, out, "recordings_per_shard=1"]
    assert run(build).returncode == 0
    before = digests(out)
    for name in ("dataset.json", "wids.json", "shards/shard-000001.json"):
        (out / name).unlink()
    shutil.rmtree(out / "manifest")
    assert stored_subjects(out) == {}
    assert run(build).returncode == 0 and digests(out) == before
    # Of a damaged description nothing is told: the table itself is whole.
    (out / "dataset.json").write_bytes(b"damaged")
    (out / "shards/shard-000001.json").unlink()
    assert run(build).returncode == 0 and digests(out) == before


@pytest.mark.parametrize("names", ["keep", "digest"])
def test_a_build_counts_them_as_it_says_and_a_pattern_sees_the_folder(run, tmp_path, names):
    tree, out, ruled = tmp_path / "tree", tmp_path / "out", tmp_path / "ruled"
    for seed, name in enumerate(("P1/a/psg.edf", "P1/b/psg.edf", "P2/a/psg.edf")):
        psg(tree / name, seed)
    result = run(["build", tree, out, f"privacy.names={names}"])
    assert "3 of 3 file names" in result.stdout and "each counts as a separate person" in result.stdout
    assert len(set(stored_subjects(out).values())) == 3
    rules = tmp_path / "lab.yaml"
    rules.write_text("extends: generic.yaml\nname: lab\nsource: x\nidentity: {pattern: '^(?P<subject>[^/]+)/', prefix: lab-}\n")
    result = run(["build", tree, ruled, "--cohort", rules, f"privacy.names={names}"])
    assert result.returncode == 0 and "do not say whose" not in result.stdout
    assert len(set(stored_subjects(ruled).values())) == 2
    assert names == "digest" or set(stored_subjects(ruled).values()) == {"lab-P1", "lab-P2"}


def test_only_what_the_file_name_does_not_tell_is_handed_on():
    entries = (
        Entry("P1/psg.edf", 1, "psg"),
        Entry("P2/psg.edf", 1, "P2-psg-edf"),
        Entry("x.edf", 1, "x"),
        Entry("y.edf", 1, "y"),
    )
    plan = Plan({}, (ShardPlan("shard-000000.tar", entries[:3]), ShardPlan("shard-000001.tar", entries[3:])))
    files = {entry.path: entry.path for entry in entries}
    told = whose_recordings(plan, files, {"shard-000000.tar"}, {"x.edf": "p", "y.edf": "q"})
    assert told == {"P2/psg.edf": Whose("P2-psg-edf"), "x.edf": Whose("", "p")}
    # Where a plan has digests of the paths, it is told from the paths.
    hidden = Plan({}, (ShardPlan("shard-000000.tar", (Entry("t1", 1, "t1"), Entry("t2", 1, "t2"), Entry("t3", 1, "t3"))),))
    told = whose_recordings(hidden, {"t1": "P1/psg.edf", "t2": "P2/psg.edf", "t3": "x.edf"}, {"shard-000000.tar"}, {})
    assert told == {"t1": Whose("P1-psg-edf"), "t2": Whose("P2-psg-edf")}
