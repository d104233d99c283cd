"""Mixtures of data sets: the items of each source in its own order, the same for any ranks, processes and restarts."""

from __future__ import annotations

import pickle
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_nights import make_dataset, make_night

from sleepfm.data.batch import Batch
from sleepfm.data.dataset import Dataset
from sleepfm.data.identity import DataDigest, Part, source_names
from sleepfm.data.interleave import Interleave
from sleepfm.data.mixed_shards import MixedShardStream
from sleepfm.data.mixed_stream import sources_of
from sleepfm.data.mixture import DataSource, Mixture, SourcePlan, read_digest
from sleepfm.data.people import COLUMNS, People
from sleepfm.data.persons import check_persons
from sleepfm.data.prefetch import Prefetcher
from sleepfm.data.stream import EpochStream, Reading, SequenceStream
from sleepfm.errors import ConfigError, DatasetError, EmptySplitError, ShardError
from sleepfm.models.noise import noise_for

ALL_PRETRAIN = ["split.pretrain=1", "split.label=0", "split.val=0", "split.test=0"]
# Channels, epochs in a segment, nights by their epochs.
SETS = {
    "large": (("EEG_C4", "ECG"), 6, (40, 25, 33, 12, 20)),
    "small": (("EEG_C4",), 5, (9, 14)),
    "other": (("ECG", "EOG_L"), 7, (30, 11, 7)),
}
CHANNELS = ("EEG_C4", "ECG")


def nights(name: str) -> list:
    channels, _, lengths = SETS[name]
    found = [make_night(f"{name}{index}", length, channels) for index, length in enumerate(lengths)]
    for night in found:
        night.quality[channels[0]][0] = 0
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mixture")
    for name, (_, segment, _) in SETS.items():
        make_dataset(made / name, nights(name), overrides=[*ALL_PRETRAIN, f"segment_epochs={segment}"])
    return made


def mixture(folder: Path, names: tuple[str, ...] = tuple(SETS), temperature: float = 1.0, **shares: float) -> Mixture:
    key = "epochs" if "epochs" in shares else "weight"
    shares.pop("epochs", None)
    plans = [SourcePlan(str(folder / name), **({key: shares[name]} if name in shares else {})) for name in names]  # type: ignore[arg-type]
    return Mixture.open(plans, temperature)


PLAIN = Reading(3, 2)


def sequences(data: Mixture, reading: Reading = PLAIN, length: int = 1) -> MixedShardStream:
    noise = partial(noise_for, shape=(2, 3), seed=7)
    make = partial(SequenceStream, split="pretrain", channels=CHANNELS, length=length, labels=("stage",))
    stream = data.stream(make, reading, noise)
    assert isinstance(stream, MixedShardStream)
    return stream


def keys(batch: Batch) -> list[tuple[str, int, int, bytes]]:
    assert batch.source is not None
    columns = zip(batch.record, batch.first_epoch.tolist(), batch.source.tolist(), batch.signals, strict=True)
    return [(record, first, source, signals.numpy().tobytes()) for record, first, source, signals in columns]


def named(source: DataSource, batch: Batch) -> list[str]:
    """Recordings of one source as a mixture names them."""
    return [f"{source.name}/{record}" for record in batch.record]


def test_items_are_those_of_the_sources_one_by_one(folder: Path) -> None:
    """Beside an independent way: every position by itself, its source and place counted from the beginning."""
    data = mixture(folder, large=1.0, small=2.0, other=0.5)
    stream = sequences(data)
    alone = {source.name: SequenceStream(source.dataset, "pretrain", CHANNELS, reading=Reading(3, 2)) for source in data.sources}
    counts = Interleave(stream.counts, 3)
    batch = stream.batch(0, 3 * len(stream))
    given = Counter[str]()
    for position in range(3 * len(stream)):
        name = stream.names[int(counts.places(position, 1)[0][0])]
        expected = alone[name].batch(given[name], 1)
        given[name] += 1
        assert batch.record[position] == f"{name}/{expected.record[0]}" and batch.first_epoch[position] == expected.first_epoch[0]
        assert torch.equal(batch.signals[position], expected.signals[0])
        assert torch.equal(batch.present[position], expected.present[0])
        assert torch.equal(batch.labels["stage"][position], expected.labels["stage"][0])
        assert stream.names[int(batch.source[position])] == name  # type: ignore[index]
    shares = {name: given[name] / (3 * len(stream)) for name in given}
    assert shares == pytest.approx({"large": 1 / 3.5, "small": 2 / 3.5, "other": 0.5 / 3.5}, abs=0.01)
    assert torch.equal(batch.item, torch.arange(3 * len(stream)))
    assert batch.noise is not None and torch.equal(batch.noise, noise_for(batch.item, (2, 3), 7))


def test_channels_that_a_source_lacks_are_absent(folder: Path) -> None:
    stream = sequences(mixture(folder))
    batch = stream.batch(0, len(stream))
    held = {"large": (True, True), "small": (True, False), "other": (False, True)}
    for row, source in enumerate(batch.source.tolist()):  # type: ignore[union-attr]
        for column, there in enumerate(held[stream.names[source]]):
            assert there or not batch.present[row, 0, column]
        assert batch.present[row].any()
    assert {stream.names[number] for number in batch.source.tolist()} == set(SETS)  # type: ignore[union-attr]
    pooled = mixture(folder).stream(partial(EpochStream, split="pretrain", channels=("EEG_C4", "ECG")), Reading(0))
    assert len(pooled) == sum(
        len(EpochStream(source.dataset, "pretrain", ("EEG_C4", "ECG"), Reading(0))) for source in mixture(folder).sources
    )
    with pytest.raises(EmptySplitError, match=r"other: no recording of split 'pretrain' has any of EEG_C4"):
        mixture(folder).stream(partial(EpochStream, split="pretrain", channels=("EEG_C4",)), Reading(0))


@settings(max_examples=20, deadline=None)
@given(
    ranks=st.sampled_from([1, 2, 3]),
    partitions=st.sampled_from([1, 2, 3]),
    weights=st.tuples(st.floats(0.1, 5), st.floats(0.1, 5), st.floats(0.1, 5)),
    start=st.integers(0, 20),
    data=st.data(),
)
def test_any_ranks_and_restarts_give_the_one_order(folder, ranks, partitions, weights, start, data) -> None:
    """Steps of 12 items; every rank a stream of its own, taken up anew at any step with another number of ranks."""
    mixed = mixture(folder, **dict(zip(SETS, weights, strict=True)))
    reading = Reading(1, 2, partitions, 12 // partitions)
    whole = keys(sequences(mixed, reading).batch(12 * start, 60))
    found: dict[int, tuple] = {}
    restart = data.draw(st.integers(0, 5))
    for step in range(5):
        if step == restart:
            ranks = data.draw(st.sampled_from([1, 2, 3]))
        for rank in range(ranks):
            size = 12 // ranks
            part = sequences(mixed, reading).batch(12 * (start + step) + rank * size, size)
            found.update(zip(part.item.tolist(), keys(part), strict=True))
    assert [found[position] for position in sorted(found)] == whole


@pytest.mark.parametrize("partitions", [1, 3])
def test_a_pass_by_size_gives_every_item_of_every_source_once(folder: Path, partitions: int) -> None:
    data = mixture(folder)
    stream = sequences(data, Reading(5, 2, partitions, 4))
    whole = Counter(key[:2] for key in keys(stream.batch(0, len(stream) * partitions)))
    once: Counter[tuple[str, int]] = Counter()
    for source in data.sources:
        own = SequenceStream(source.dataset, "pretrain", CHANNELS)
        batch = own.batch(0, len(own))
        once.update(zip(named(source, batch), batch.first_epoch.tolist(), strict=True))
    if partitions == 1:
        assert whole == once
    else:
        # As often as the passes that were begun, but for what the partitions are ahead of one another.
        assert whole.keys() == once.keys() and all(abs(whole[key] - 3 * once[key]) <= 2 * once[key] for key in once)


def test_epochs_are_passes_over_a_source(folder: Path) -> None:
    stream = sequences(mixture(folder, epochs=1, large=1.0, small=3.0, other=0.5))
    seen = Counter(key[0] for key in keys(stream.batch(0, len(stream))))
    sizes = {name: len(SequenceStream(Dataset.open(folder / name), "pretrain", CHANNELS)) for name in SETS}
    of_source = {name: sum(count for record, count in seen.items() if record.startswith(name)) for name in SETS}
    assert of_source == {"large": sizes["large"], "small": 3 * sizes["small"], "other": round(sizes["other"] / 2)}
    small = Counter(key[:2] for key in keys(stream.batch(0, len(stream))) if key[0].startswith("small"))
    assert all(count % 3 == 0 for count in small.values())


def test_temperature_evens_out_the_sizes(folder: Path) -> None:
    plain, warm = sequences(mixture(folder)).counts, sequences(mixture(folder, temperature=5)).counts
    assert max(warm) - min(warm) < max(plain) - min(plain) and sum(warm) == sum(plain)


def test_the_order_in_which_sources_are_listed_does_not_matter(folder: Path) -> None:
    one = mixture(folder, ("large", "small"), large=2.0, small=1.0)
    other = mixture(folder, ("small", "large"), large=2.0, small=1.0)
    assert (one.digest, one.digest.mixture) == (other.digest, other.digest.mixture)
    assert keys(sequences(one).batch(0, 50)) == keys(sequences(other).batch(0, 50))
    weighted = mixture(folder, ("small", "large"), large=1.0, small=1.0).digest
    assert weighted == one.digest and weighted.mixture != one.digest.mixture


def test_of_one_data_set_it_is_that_data_set(folder: Path) -> None:
    data = mixture(folder, ("large",))
    make = partial(SequenceStream, split="pretrain", channels=CHANNELS)
    stream = data.stream(make, Reading(3, 2))
    assert type(stream) is SequenceStream and sources_of(stream) == ()
    assert data.digest == Dataset.open(folder / "large").digest == data.digest.mixture
    assert stream.batch(0, 5).source is None and data.digest.tags() == {} and data.digest.to_record() == {}
    assert data.find("large1") == (data.sources[0].dataset, data.sources[0].dataset.index_of("large1"))


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_carry_mixtures(folder: Path, workers: int) -> None:
    stream = sequences(mixture(folder, large=1.0, small=1.0, other=1.0))
    plan = [(start, 9) for start in range(0, 90, 18)]
    alone = pickle.loads(pickle.dumps(sequences(mixture(folder, large=1.0, small=1.0, other=1.0))))
    with Prefetcher(stream, plan, workers=workers) as batches:
        for (start, count), batch in zip(plan, batches, strict=True):
            expected = alone.batch(start, count)
            assert keys(batch) == keys(expected) and torch.equal(batch.noise, expected.noise)
    assert stream.report.items == alone.report.items == 45


def test_urls_and_folders_mix(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLEEPFM_CACHE", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    files.put(str(folder / "small"), "/mixed-small", recursive=True)
    try:
        data = Mixture.open([SourcePlan(str(folder / "large")), SourcePlan("memory://mixed-small", "small")])
        assert keys(sequences(data).batch(0, 60)) == keys(sequences(mixture(folder, ("large", "small"))).batch(0, 60))
        assert data.digest == read_digest([SourcePlan(str(folder / "large")), SourcePlan("memory://mixed-small", "small")])
    finally:
        files.rm("/mixed-small", recursive=True)


def test_what_is_corrupt_is_counted_over_all_sources_and_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    stream = sequences(mixture(tmp_path / "copy"), Reading(3, 8, max_corrupt=0))
    for path in (tmp_path / "copy" / "other" / "shards").glob("*.tar"):
        content = bytearray(path.read_bytes())
        for offset in range(512, len(content), 900):
            content[offset] ^= 1
        path.write_bytes(content)
    with pytest.raises(ShardError, match=r"mixture of|items are corrupt") as raised:
        for start in range(0, 10 * len(stream), 20):
            stream.batch(start, 20)
    assert "other/shards" in str(raised.value)


def test_a_source_that_joins_lets_the_others_go_on(folder: Path) -> None:
    """From a position on more is mixed in: what the run had of a source it goes on with, and what is done again is the same."""
    before, after = mixture(folder, ("large", "small")), mixture(folder, large=1.0, small=2.0, other=1.0)
    history = [(0, before.digest), (36, after.digest)]
    first, stream = sequences(before), sequences(after)
    stream.follow(history)
    assert [key[:2] + key[3:] for key in keys(stream.batch(0, 36))] == [key[:2] + key[3:] for key in keys(first.batch(0, 36))]
    alone = {source.name: SequenceStream(source.dataset, "pretrain", CHANNELS, reading=Reading(3, 2)) for source in after.sources}
    batch = stream.batch(0, 120)
    for name, own in alone.items():
        rows = [row for row, number in enumerate(batch.source.tolist()) if stream.names[number] == name]  # type: ignore[union-attr]
        expected = own.batch(0, len(rows))
        assert [batch.record[row] for row in rows] == [f"{name}/{record}" for record in expected.record]
        assert torch.equal(batch.signals[rows], expected.signals) and (name != "other" or min(rows) >= 36)
    # Also over the border, and in a process of its own.
    worn = pickle.loads(pickle.dumps(stream))
    assert keys(worn.batch(30, 12)) == keys(batch)[30:42]
    # A run of one data set, which has no mixture yet.
    single = Mixture.open([SourcePlan(str(folder / "large"))])
    joined = sequences(before)
    joined.follow([(0, DataDigest([Part("", str(single.digest))])), (24, before.digest)])
    plain = single.stream(partial(SequenceStream, split="pretrain", channels=CHANNELS), Reading(3, 2)).batch(0, 24)
    assert torch.equal(joined.batch(0, 24).signals, plain.signals)


@pytest.mark.parametrize("partitions", [1, 2])
def test_partitions_go_on_too(folder: Path, partitions: int) -> None:
    before, after = mixture(folder, ("large", "small")), mixture(folder)
    reading = Reading(3, 2, partitions, 12 // partitions)
    stream, first = sequences(after, reading), sequences(before, reading)
    stream.follow([(0, before.digest), (48, after.digest)])
    found, old = keys(stream.batch(0, 48)), keys(first.batch(0, 48))
    assert [key[:2] for key in found] == [key[:2] for key in old]
    taken = Counter(key[:2] for key in keys(stream.batch(0, 72)))
    # Nothing twice (but what stands in the place of a dead epoch) before everything of its source was there once.
    for source in after.sources:
        own = SequenceStream(source.dataset, "pretrain", CHANNELS, reading=Reading(3, 2))
        batch = own.batch(0, len(own))
        once = Counter(zip(named(source, batch), batch.first_epoch.tolist(), strict=True))
        of_source = {key: count for key, count in taken.items() if key[0].startswith(source.name)}
        assert sum(of_source.values()) < len(own) and all(count <= once[key] for key, count in of_source.items())


def test_the_same_person_in_different_splits_is_refused(tmp_path: Path) -> None:
    def made(name: str, salt: str, *persons: str) -> Path:
        found = [make_night(f"{name}-{person}", 6, subject=person) for person in persons]
        make_dataset(tmp_path / name, found, overrides=[f"split.salt={salt}", "split.pretrain=0.5", "split.val=0.5", *NO_OTHERS])
        return tmp_path / name

    people = [f"p{number}" for number in range(12)]
    one, again = made("one", "a", *people), made("again", "a", *people, "p99")
    resalted, others = made("resalted", "b", *people[3:]), made("others", "b", "q1", "q2", "q3")
    # Visits of the same people, split by the same salt, and other people by another one.
    assert len(Mixture.open([SourcePlan(str(path)) for path in (one, again, others)]).sources) == 3
    with pytest.raises(DatasetError) as raised:
        Mixture.open([SourcePlan(str(path)) for path in (one, others, resalted)])
    text = str(raised.value)
    assert f"one ({one})" in text and f"resalted ({resalted})" in text and "of cohort made is in split" in text
    splits = [dict(zip(found.subjects, found.split_of.tolist(), strict=True)) for found in map(Dataset.open, (one, resalted))]
    moved = [person for person in people[3:] if splits[0][person] != splits[1][person]]
    assert moved and all(person in text for person in moved[:1]) and "same split.salt" in text
    assert all(person not in text.split(" and ")[0] for person in set(people) - set(moved))


def test_a_family_in_different_splits_is_refused(tmp_path: Path) -> None:
    found = {}
    for name, split in (("old", "pretrain"), ("new", "val")):
        others = [f"split.{other}=0" for other in ("pretrain", "label", "val", "test") if other != split]
        make_dataset(
            tmp_path / name, [make_night(f"{name}-1", 6, subject=f"{name}-person")], overrides=[f"split.{split}=1", *others]
        )
        found[name] = Dataset.open(tmp_path / name)
    check_persons(found)
    for name, dataset in found.items():
        row = dict.fromkeys(COLUMNS) | {"subject": f"{name}-person", "visit": "1", "cohort": "made", "family": "family-7"}
        # What the manifest of a cohort with families says.
        dataset.__dict__["people"] = People([(f"{name}-person", "1", "made")], [row | {"more": "{}", "sources": "{}"}])
    with pytest.raises(DatasetError, match=r"new-person, of family family-7, .* in split val of new and in pretrain of old"):
        check_persons(found)


NO_OTHERS = ("split.label=0", "split.test=0")


def test_people_whose_keys_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    paths = []
    for name, overrides in (
        ("plain", []),
        ("digests", ["privacy.names=digest"]),
        ("salted", ["privacy.names=digest", "privacy.salt=pepper"]),
    ):
        make_dataset(tmp_path / name, [make_night(f"{name}{n}", 5) for n in range(2)], overrides=[*ALL_PRETRAIN, *overrides])
        paths.append(SourcePlan(str(tmp_path / name)))
    for pair in (paths[:2], paths[1:], paths[::2]):
        with pytest.raises(DatasetError, match=r"both hold people of cohort made: their keys are written in different ways"):
            Mixture.open(pair)
    with pytest.raises(DatasetError) as raised:
        Mixture.open(paths)
    assert str(raised.value).count("both hold people of cohort made") == 3


@pytest.mark.parametrize("read", [Mixture.open, read_digest])
def test_every_source_that_cannot_be_read_is_named(folder: Path, tmp_path: Path, read) -> None:
    (tmp_path / "unfinished").mkdir()
    wrong = [str(tmp_path / "nowhere"), str(tmp_path / "unfinished"), "unheard://of/it"]
    with pytest.raises(DatasetError) as raised:
        read([SourcePlan(str(folder / "large")), *map(SourcePlan, wrong)])
    text = str(raised.value)
    assert text.startswith("3 of 4 sources cannot be read: ") and "large" not in text
    assert all(told in text for told in (*wrong[:2], "unheard://"))
    with pytest.raises(ConfigError, match=r"^unheard://.*not a protocol"):
        read([SourcePlan(str(folder / "large")), SourcePlan(wrong[2])])


def test_names_and_wrong_lists_of_sources(folder: Path) -> None:
    assert source_names([("", "a/shhs/shards"), ("", "b/mesa/shards"), ("x", "c")]) == ["shhs-shards", "mesa-shards", "x"]
    assert source_names([("", "s3://bucket/shhs"), ("", "/data/MESA 2/")]) == ["shhs", "MESA-2"]
    with pytest.raises(ConfigError, match=r"two of them are called 'x'"):
        source_names([("x", "a"), ("x", "b")])
    with pytest.raises(ConfigError, match=r"are the same data set"):
        Mixture.open([SourcePlan(str(folder / "large"), "a"), SourcePlan(f"{folder}/large/", "b")])
    with pytest.raises(ConfigError, match=r"are the same data set"):
        read_digest([SourcePlan(str(folder / "large"), "a"), SourcePlan(f"{folder}/large/", "b")])
    twice = [
        SourcePlan(f"{folder}/{name}{slash}", f"{name}{2 if slash else 1}") for name in ("large", "small") for slash in ("", "/")
    ]
    with pytest.raises(ConfigError, match=r"are the same data set .*; .*are the same data set"):
        read_digest(twice)
    with pytest.raises(DatasetError, match=r"small0'?.*sources are|no recording"):
        mixture(folder).find("nowhere/small0")
    data = mixture(folder)
    source = next(source for source in data.sources if source.name == "small")
    assert data.find(data.label(source, "small1")) == (source.dataset, source.dataset.index_of("small1"))


def test_a_record_and_a_digest_say_the_same(folder: Path) -> None:
    digest = mixture(folder, large=1.0, small=2.0, other=0.5).digest
    again = DataDigest.from_record({"dataset_digest": str(digest)} | digest.to_record())
    assert again == digest and again.mixture == digest.mixture and again.parts == digest.parts
    tags = digest.tags()
    assert tags["mixture_digest"] == digest.mixture and tags["source.small"].endswith(" weight 2")
    assert {tags[f"source.{name}"].split()[0] for name in SETS} == {Dataset.open(folder / name).digest for name in SETS}
    assert digest.mixture in digest.describe() and all(name in digest.describe() for name in SETS)
    assert np.unique([len(str(digest)), len(digest.mixture)]).tolist() == [64]
