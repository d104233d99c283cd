"""Recordings that are excluded or gone stop no build, and come in when they are back; and with which status builds end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from shards.build import build
from shards.build_config import load_build_config
from shards.left_out import Exclusion
from shards.plan import Entry, ShardPlan
from shards.summary import refused_lines, status
from shards.task import build_shard
from sleepfm.data.dataset import Dataset
from sleepfm.errors import UsageError
from sleepfm.signals.refusals import ReasonCounts


@pytest.fixture
def source(cohort: Path, tmp_path: Path) -> Path:
    """Five recordings without scorings in two folders."""
    for number, edf in enumerate(sorted(cohort.rglob("*.edf"))[:5], start=1):
        place = tmp_path / "source" / ("late" if number == 5 else "early")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(edf, place / f"shhs1-{number}.edf")
    return tmp_path / "source"


def built(out: Path) -> tuple[set[str], dict[str, str]]:
    """Recordings of a data set, and those that it refuses, by the kind of refusal."""
    rows = pq.read_table(out / "manifest" / "quarantine.parquet").to_pylist()
    return {row.source for row in Dataset.open(out).records}, {row["source"]: row["error"] for row in rows}


def names(*numbers: int) -> set[str]:
    return {f"{'late' if number == 5 else 'early'}/shhs1-{number}.edf" for number in numbers}


def unfinish(out: Path, shard: str) -> None:
    """As a build is left that was killed before this shard was done."""
    for path in (out / "dataset.json", out / f"shards/{shard}.json", out / f"shards/{shard}.tar"):
        path.unlink()


def test_a_recording_that_is_gone_does_not_stop_a_build_and_comes_in_when_it_is_back(source, tmp_path, run, digests):
    out = tmp_path / "out"
    arguments = ["build", source, out, "--cohort", "shhs1", "recordings_per_shard=2"]
    assert run(arguments).returncode == 0
    whole = digests(out)
    unfinish(out, "shard-000001")
    hidden = (source / "early/shhs1-3.edf").rename(tmp_path / "shhs1-3.edf")
    result = run(arguments)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "refused early/shhs1-3.edf: was there when this build was planned and is gone" in result.stdout
    assert built(out) == (names(1, 2, 4, 5), {"early/shhs1-3.edf": "GoneError"})
    # One of five is a fifth.
    assert run([*arguments, "max_refused=0.2"]).returncode == 0
    hidden.rename(source / "early/shhs1-3.edf")
    assert run(arguments).returncode == 0
    assert built(out) == (names(1, 2, 3, 4, 5), {})
    assert "whole" in run(["verify", out]).stdout
    kept = {name for name in whole if name.startswith("shards/") and "000001" not in name}
    assert len(kept) == 4 and all(digests(out)[name] == whole[name] for name in kept)


def test_another_folder_is_not_taken_for_one_whose_recordings_are_gone(source, cohort, tmp_path, run, digests):
    out = tmp_path / "out"
    assert run(["build", source, out, "--cohort", "shhs1", "recordings_per_shard=2"]).returncode == 0
    unfinish(out, "shard-000001")
    before = digests(out)
    result = run(["build", cohort, out, "--cohort", "shhs1", "recordings_per_shard=2"])
    assert result.returncode == 1 and "none of the 5 recordings of this build is in the source" in result.stderr
    assert {name: value for name, value in digests(out).items() if name in before} == before


def test_a_shard_that_is_made_anew_does_not_lose_a_recording_whose_file_is_gone(source, tmp_path, run, digests, monkeypatch):
    out = tmp_path / "out"
    arguments = ["build", source, out, "--cohort", "shhs1", "recordings_per_shard=2"]
    assert run(arguments).returncode == 0
    before = digests(out)
    monkeypatch.setattr("shards.build_config.PROCESSING_VERSION", 1_000_000)
    (source / "early/shhs1-1.edf").rename(tmp_path / "shhs1-1.edf")
    result = run([*arguments, "--rebuild"])
    assert result.returncode == 1 and "early/shhs1-1.edf: is in shard-000000.tar, which must be made again" in result.stderr
    assert digests(out) == before


def test_what_is_excluded_is_left_out_before_and_after_it_was_converted(source, tmp_path, run, digests):
    out = tmp_path / "out"
    arguments = ["build", source, out, "--cohort", "shhs1", "recordings_per_shard=2"]
    (source / "early/shhs1-2.edf").write_bytes(b"")  # it is not even opened
    result = run([*arguments, "--exclude", "shhs1-2.edf", "--exclude", f"{source}/late"])
    assert result.returncode == 0, result.stderr
    assert built(out) == (names(1, 3, 4), {})
    # Converted already, it is taken out; what stands in other shards stays.
    before = digests(out)
    result = run([*arguments, "--exclude", "*/shhs1-[24].edf"])
    assert result.returncode == 0 and "shard-000001.tar is built again: without recordings that are excluded now" in result.stdout
    assert built(out) == (names(1, 3, 5), {"early/shhs1-4.edf": "ExcludedError"})
    assert "1 recording excluded" in result.stdout and "refused early" not in result.stdout
    told = run(["info", out]).stdout
    assert "; 0 refused, 1 excluded\n" in told and "\nexcluded early/shhs1-4.edf" in told and "\nrefused" not in told
    assert digests(out)["shards/shard-000000.tar"] == before["shards/shard-000000.tar"]
    # No longer excluded, it is converted; the empty file is refused now.
    assert run(arguments).returncode == 1
    assert built(out) == (names(1, 3, 4, 5), {"early/shhs1-2.edf": "RecordingError"})
    assert "whole" in run(["verify", out]).stdout


def test_what_its_caller_removes_is_not_told_as_gone(source, tmp_path, run, capsys):
    out = tmp_path / "out"
    assert run(["build", source, out, "--cohort", "shhs1", "recordings_per_shard=2"]).returncode == 0
    (source / "early/shhs1-4.edf").unlink()
    config = load_build_config(None, ["cohort=shhs1", "recordings_per_shard=2"])
    for intended in (True, False):
        build(source, out, config, workers=1, removal_intended=intended)
        assert ("gone from the source" in capsys.readouterr().out) != intended
    assert built(out) == (names(1, 2, 3, 4, 5), {})


def test_what_is_gone_from_the_source_is_told_and_can_be_taken_out(source, tmp_path, run):
    out = tmp_path / "out"
    arguments = ["build", source, out, "--cohort", "shhs1", "recordings_per_shard=2"]
    (source / "early/shhs1-2.edf").write_bytes(b"")
    assert run(arguments).returncode == 1
    (source / "early/shhs1-2.edf").unlink()
    (source / "early/shhs1-4.edf").unlink()
    result = run(arguments)
    assert "early/shhs1-4.edf has gone from the source: what was converted stays" in result.stdout
    # Who has removed a file that cannot be used has seen to it.
    assert "1 recording refused before, and no longer in the source: not counted" in result.stdout
    assert result.returncode == 0, result.stdout + result.stderr
    assert " refused, see" not in result.stdout
    assert built(out)[0] == names(1, 3, 4, 5)
    result = run([*arguments, "--exclude", "shhs1-[24].edf"])
    assert result.returncode == 0, result.stdout + result.stderr
    assert built(out) == (names(1, 3, 5), {f"early/shhs1-{number}.edf": "ExcludedError" for number in (2, 4)})
    assert "whole" in run(["verify", out]).stdout


def test_an_exclusion_that_fits_nothing_is_refused(source, tmp_path, run):
    result = run(["build", source, tmp_path / "out", "--exclude", "shhs1-7.edf"])
    assert result.returncode == 2 and "--exclude shhs1-7.edf: matches no recording of the source or the data set" in result.stderr
    result = run(["build", source, tmp_path / "out", "--exclude", "*.edf"])
    assert result.returncode == 1 and "every recording in this folder is excluded" in result.stderr
    assert not (tmp_path / "out").exists()


def test_names_that_are_digests_are_excluded_by_what_they_stand_for(source, tmp_path, run):
    out = tmp_path / "out"
    arguments = ["build", source, out, "--cohort", "shhs1", "recordings_per_shard=2", "privacy.names=digest"]
    assert run(arguments).returncode == 0
    result = run([*arguments, "--exclude", "early/shhs1-2.edf"])
    assert result.returncode == 0 and "shhs1-2" not in result.stdout + result.stderr
    kept, refused = built(out)
    assert len(kept) == 4 and list(refused.values()) == ["ExcludedError"]


def test_a_recording_that_is_removed_while_a_build_runs_is_gone_and_a_broken_link_is_not(tmp_path):
    (tmp_path / "out" / "shards").mkdir(parents=True)
    (tmp_path / "broken.edf").symlink_to("nowhere.edf")
    entries = tuple(Entry(f"{name}.edf", 1, name) for name in ("broken", "removed"))
    shard = ShardPlan("shard-000000.tar", entries)
    outcome = build_shard(tmp_path, tmp_path / "out", shard, load_build_config(), "build")
    assert {refusal.path: refusal.error for refusal in outcome.refusals} == {
        "broken.edf": "RecordingError",
        "removed.edf": "GoneError",
    }


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("a/b.edf", {"a/b.edf"}),
        ("./a/b.edf", {"a/b.edf"}),
        ("b.edf", {"a/b.edf", "b.edf"}),
        ("a", {"a/b.edf", "a/c[1].edf"}),
        ("a/", {"a/b.edf", "a/c[1].edf"}),
        ("s3://bucket/in/a/c[1].edf", {"a/c[1].edf"}),
        ("?.edf", {"a/b.edf", "b.edf"}),
        ("*", {"a/b.edf", "a/c[1].edf", "b.edf"}),
    ],
)
def test_exclusions_by_path_folder_and_pattern(pattern, fits):
    exclusion = Exclusion([pattern], Path("s3://bucket/in") if "s3" not in pattern else "s3://bucket/in")  # type: ignore[arg-type]
    for name in ("a/b.edf", "a/c[1].edf", "b.edf"):
        assert exclusion(name) == (name in fits)
    assert exclusion.names == fits
    exclusion.check()
    with pytest.raises(UsageError, match="nothing"):
        Exclusion(["nothing"], Path("/in")).check()


def test_the_status_follows_the_share_of_refused_recordings():
    rows = [{"error": "RecordingError"}] * 5
    assert status({"records": 95}, rows, 0, 0.05) == 0
    assert status({"records": 94}, rows, 0, 0.05) == 1
    # What a user leaves out is not refused; a scoring that is not used is.
    assert status({"records": 95}, rows + [{"error": "ExcludedError"}] * 50, 0, 0.05) == 0
    assert status({"records": 95}, rows, 1, 0.05) == 1
    assert status({"records": 95}, rows, 0, 0.0) == status({"records": 0}, rows, 0, 1.0) == 1
    assert status({"records": 95}, [], 0, 0.0) == 0
    removed = [{"error": "RecordingError", "source": name} for name in "abc"]
    assert status({"records": 95}, removed, 0, 0.0, {"a", "b", "c"}) == 0
    assert status({"records": 95}, removed, 0, 0.0, {"a", "b"}) == 1


def test_refused_recordings_are_counted_by_reason():
    rows = [
        {"error": "RecordingError", "reason": "not an EDF or BDF file: 49 bytes, shorter than the 256 of an EDF header"},
        {"error": "MontageError", "reason": "EEG_C4 is ambiguous: 'C4' and 'C4-A1'; say which in a cohort file"},
        {"error": "RecordingError", "reason": "not an EDF or BDF file: 7 bytes, shorter than the 256 of an EDF header"},
        {"error": "DuplicateError", "reason": "has the same signals as a/shhs1-1.edf; remove one of the two"},
        {"error": "DuplicateError", "reason": "has the same signals as a/shhs1-2.edf; remove one of the two"},
        {"error": "DuplicateError", "reason": "has the same signals as 0123456789abcdef; remove one of the two"},
        {"error": "InternalError", "reason": "ValueError in line 3"},
        {"error": "ExcludedError", "reason": "excluded"},
    ]
    assert refused_lines(rows, "there") == [
        "7 recordings refused, see there:",
        "       3  has the same signals as …; remove one of the two",
        "       2  not an EDF or BDF file: … bytes, shorter than the 256 of an EDF header",
        "       1  EEG_C4 is ambiguous: 'C4' and 'C4-A1'; say which in a cohort file",
        "       1  ValueError in line 3",
        "1 recording met a fault of this program; the table says where in the program: please report it; --retry-refused tries "
        "them again with another version",
        "1 recording excluded",
    ]


def test_reasons_beyond_those_that_are_shown_are_counted_together():
    reasons = ReasonCounts()
    for number in range(30):
        reasons.add(f"a reason {chr(97 + number % 26)}{'x' * (number // 26)}")
    assert reasons.lines()[-1] == "    10  for other reasons" and len(reasons.lines()) == 21
