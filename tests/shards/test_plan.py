"""Splits and the plan: nobody is moved by who else is there."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.build_config import check_same, identity, load_build_config
from shards.plan import Plan, extend, read_plan, write_plan
from shards.split import split_of
from sleepfm.constants import SPLITS
from sleepfm.errors import ConfigError, DatasetError

subjects = st.text("abcdefgh0123456789-", min_size=1, max_size=12)
names = st.text("ab1._ é", min_size=1, max_size=6).filter(lambda name: name.strip("."))
paths = st.lists(names, min_size=1, max_size=3).map(lambda parts: "/".join(parts) + ".edf")


@given(st.sets(subjects, min_size=1), st.sets(subjects))
def test_a_subject_has_one_split_whoever_is_added(first, added):
    config = load_build_config().split
    before = {subject: split_of(subject, config) for subject in sorted(first)}
    after = {subject: split_of(subject, config) for subject in sorted(first | added, reverse=True)}
    assert before.items() <= after.items()
    assert set(after.values()) <= set(SPLITS)


def test_fractions_are_kept_and_a_split_of_nothing_stays_empty():
    config = load_build_config().split
    counts = Counter(split_of(f"s{n}", config) for n in range(20_000))
    for name in SPLITS:
        assert counts[name] / 20_000 == pytest.approx(getattr(config, name), abs=0.015)
    none = load_build_config(None, ["split.pretrain=0.75", "split.label=0"]).split
    assert "label" not in {split_of(f"s{n}", none) for n in range(2_000)}


def test_the_default_salt_spreads_the_first_synthetic_subjects():
    config = load_build_config().split
    for subjects in (16, 24, 32, 40):
        counts = Counter(split_of(f"shhs-{200_001 + n}", config) for n in range(subjects))
        for name in SPLITS:
            assert counts[name] >= 2
            assert abs(counts[name] / subjects - getattr(config, name)) < 0.07


def test_fractions_that_are_no_whole_are_refused():
    with pytest.raises(ConfigError, match=r"sum to 1\.2"):
        load_build_config(None, ["split.pretrain=0.7"])


@given(st.sets(paths, min_size=1, max_size=12), st.sets(paths, max_size=8), st.integers(1, 4))
def test_a_plan_holds_every_recording_once_under_a_unique_safe_key(first, added, size):
    plan = extend(Plan({}), dict.fromkeys(first, 1), size)
    grown = extend(plan, dict.fromkeys(first | added, 1), size)
    assert grown.shards[: len(plan.shards)] == plan.shards
    entries = list(grown.entries())
    assert sorted(entry.path for entry in entries) == sorted(first | added)
    keys = [entry.record for entry in entries]
    assert len(set(keys)) == len(keys)
    assert all("." not in key and "/" not in key and key.isascii() and 0 < len(key) <= 70 for key in keys)
    assert len({shard.name for shard in grown.shards}) == len(grown.shards)
    assert all(1 <= len(shard.entries) <= size for shard in grown.shards)
    assert extend(grown, dict.fromkeys(first | added, 1), size) == grown


def test_a_long_name_gets_a_short_key():
    (entry,) = extend(Plan({}), {"x" * 200 + ".edf": 1}, 8).entries()
    assert len(entry.record) <= 70


def test_a_plan_is_read_as_it_was_written(tmp_path):
    wanted = identity(load_build_config())
    plan = extend(read_plan(tmp_path, wanted), {"a/b.edf": 5, "a/c.edf": 7}, 1)
    write_plan(tmp_path, plan)
    assert read_plan(tmp_path, wanted) == plan


def test_another_configuration_is_refused_by_its_key(tmp_path):
    write_plan(tmp_path, Plan(identity(load_build_config())))
    with pytest.raises(ConfigError, match="segment_epochs=60, this one has segment_epochs=30"):
        read_plan(tmp_path, identity(load_build_config(None, ["segment_epochs=30"])))
    with pytest.raises(ConfigError, match=r"split\.salt"):
        read_plan(tmp_path, identity(load_build_config(None, ["split.salt=x"])))
    # How the work is spread is not what the data are.
    read_plan(tmp_path, identity(load_build_config(None, ["ray.retries=7"])))
    check_same({"a": {"b": 1}}, {"a": {"b": 1}}, tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.docx").write_text("precious")
    with pytest.raises(DatasetError, match="not a build of shards"):
        read_plan(tmp_path, {})
