"""Builds that go on after something has changed: a recording, the rules of a cohort, the code that made the shards."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from made_edf import Made, noise, write_edf
from made_nights import make_dataset, make_night

from shards import build_config
from shards.build_config import identity, load_build_config
from shards.plan import read_plan
from shards.stale import stale_shards
from sleepfm.data.dataset import Dataset
from sleepfm.signals.cohorts.catalogue import _load, load_cohort
from sleepfm.signals.cohorts.cohort import rules_digest

RELEASED = Path(__file__).parents[1] / "released" / "0.1.0"


def test_a_refused_recording_that_is_fetched_again_does_not_lock_the_folder(cohort, run, tmp_path, digests):
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(cohort, source)
    edf = source / "polysomnography/edfs/shhs1/shhs1-200002.edf"
    whole = edf.read_bytes()
    edf.write_bytes(whole[:1500])
    arguments = ["build", source, out, "--cohort", "shhs1", "recordings_per_shard=3"]
    assert run(arguments).returncode == 1
    edf.write_bytes(whole)
    assert run(arguments).returncode == 0
    before = digests(out)
    again = run(arguments)
    assert again.returncode == 0, again.stderr
    assert digests(out) == before and len(Dataset.open(out).records) == 6
    # The shard that refused it is made anew, and does not convert it a second time.
    (out / "shards" / "shard-000000.json").unlink()
    assert run(arguments).returncode == 0
    assert len({row.record for row in Dataset.open(out).records}) == len(Dataset.open(out).records) == 6
    assert run(["verify", out]).returncode == 0
    # One that was converted is still held to what it was.
    edf.write_bytes(whole + b"\0" * 100)
    changed = run(arguments)
    assert changed.returncode == 1 and "has changed since it was converted" in changed.stderr


def test_prose_changes_nothing_and_rules_are_rebuilt_where_that_is_asked_for(cohort, run, tmp_path, digests):
    rules, out = tmp_path / "mine.yaml", tmp_path / "out"
    rules.write_text("extends: shhs1.yaml\nname: mine\nsource: a note\n")
    assert run(["build", cohort, out, "--cohort", rules, "recordings_per_shard=3"]).returncode == 0
    before = digests(out)
    # Other prose, another way to recognise it, in another place.
    _load.cache_clear()
    moved = tmp_path / "moved.yaml"
    moved.write_text("extends: shhs1.yaml\nname: mine\nsource: a better note\nrecognise: {name: ^x}\n")
    assert run(["build", cohort, out, "--cohort", moved, "recordings_per_shard=3"]).returncode == 0
    assert digests(out) == before

    _load.cache_clear()
    moved.write_text("extends: shhs1.yaml\nname: mine\nsource: a note\nfilters: {ECG: {low: 5, high: 30}}\n")
    refused = run(["build", cohort, out, "--cohort", moved, "recordings_per_shard=3"])
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert "2 of its 2 shards" in refused.stderr and "rules of cohort mine that have changed" in refused.stderr
    assert "shard-000000.tar, shard-000001.tar" in refused.stderr and "--rebuild" in refused.stderr
    assert digests(out) == before

    rebuilt = run(["build", cohort, out, "--cohort", moved, "--rebuild", "recordings_per_shard=3"])
    assert rebuilt.returncode == 0 and "making 2 of 2 shards again" in rebuilt.stdout
    fresh = tmp_path / "fresh"
    assert run(["build", cohort, fresh, "--cohort", moved, "recordings_per_shard=3"]).returncode == 0
    assert digests(out) == digests(fresh) != before
    assert run(["build", cohort, out, "--cohort", moved, "recordings_per_shard=3"]).returncode == 0


def test_only_the_shards_of_a_changed_cohort_are_affected(tmp_path):
    config = load_build_config()
    nights = []
    for record, name, rules in (("a", "cfs", None), ("b", "cfs", None), ("c", "shhs1", "of before"), ("d", "gone", "of before")):
        rules = rules or rules_digest(load_cohort(name))
        nights.append(replace(make_night(record, 9), cohort=name, provenance={"cohort_rules": rules}))
    made = make_dataset(tmp_path / "out", nights)
    plan = read_plan(made.path, identity(config))
    assert stale_shards(made.path, plan, identity(config), config) == {
        "shard-000001.tar": "by rules of cohort gone, shhs1 that have changed"
    }
    assert set(json.loads((made.path / "dataset.json").read_text())["config"]["cohort_rules"]) == {"cfs", "shhs1", "gone"}


def test_the_digest_is_of_the_rules_that_were_used_and_of_what_they_do():
    cohort = load_cohort("shhs1")
    assert "cohort_rules" not in identity(load_build_config())
    assert rules_digest(cohort.model_copy(update={"source": "x"})) == rules_digest(cohort)
    other = load_cohort("wsc")
    for name in ("name", "identity", "scoring", "channels", "polarity"):
        assert rules_digest(cohort.model_copy(update={name: getattr(other, name)})) != rules_digest(cohort), name


def test_another_version_of_the_processing_is_not_mixed_with_an_earlier_one(tmp_path, monkeypatch):
    config = load_build_config()
    made = make_dataset(tmp_path / "out", [make_night(name, 9) for name in "abc"])
    monkeypatch.setattr(build_config, "PROCESSING_VERSION", 99)
    stale = stale_shards(made.path, read_plan(made.path, identity(config)), identity(config), config)
    assert list(stale) == ["shard-000000.tar", "shard-000001.tar"]
    assert all("processing_version=" in reason and "99 now" in reason for reason in stale.values())


@pytest.mark.parametrize("release", sorted(RELEASED.parent.glob("*/shards")), ids=lambda path: path.parent.name)
def test_a_build_of_a_release_says_what_to_do_and_is_rebuilt(release, run, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(release, out)
    arguments = ["build", release.parent / "night", out, "split.pretrain=1", "split.label=0", "split.val=0", "split.test=0"]
    # The release's source was the folder of the recordings themselves.
    arguments[1] = next((release.parent / "night").rglob("*.edf")).parent
    assert run(["verify", out]).returncode == 0
    refused = run(arguments)
    assert refused.returncode == 2 and "1 of its 1 shard" in refused.stderr and "earlier version" in refused.stderr
    assert "--rebuild" in refused.stderr and "can be read as it is" in refused.stderr
    assert Dataset.open(out).digest == json.loads((release / "dataset.json").read_text())["digest"]
    done = run([*arguments, "--rebuild"])
    assert done.returncode == 0, done.stderr
    assert run([*arguments]).returncode == 0 and run(["verify", out]).returncode == 0
    fresh = tmp_path / "fresh"
    assert run([arguments[0], arguments[1], fresh, *arguments[3:]]).returncode == 0
    assert Dataset.open(fresh).digest == Dataset.open(out).digest


def test_the_build_warns_once_of_names_that_say_no_person(run, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("P01_night1", "P01_night2", "sub-1_eeg"):
        write_edf(tmp_path / "in" / f"{name}.edf", [Made("C4-M1", noise(6000, 1), 100)])
    result = run(["build", tmp_path / "in", tmp_path / "out"])
    assert result.returncode == 0 and result.stdout.count("do not say whose recording it is") == 1
    assert "warning: 2 of 3 file names, such as P01_night1.edf" in result.stdout


def test_a_rebuild_after_another_version_makes_refused_shards_anew_too(faulty_cohort, run, tmp_path, digests, monkeypatch):
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    arguments = ["build", faulty_cohort, out, "--cohort", "shhs1", "recordings_per_shard=1"]
    monkeypatch.setattr(build_config, "PROCESSING_VERSION", 0)
    assert run(arguments).returncode == 1
    monkeypatch.undo()
    refused = run(arguments)
    assert refused.returncode == 2 and "7 of its 7 shards" in refused.stderr and "processing_version=0" in refused.stderr
    assert run([*arguments, "--rebuild"]).returncode == 1
    assert run(["build", faulty_cohort, fresh, *arguments[3:]]).returncode == 1
    assert digests(out) == digests(fresh)
    assert run(["verify", out]).returncode == 0
