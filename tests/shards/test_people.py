"""Who is in a data set, what is known of them, and that nobody who belongs together comes into two splits."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_nights import make_dataset, make_night

from shards.build_config import BuildConfig, SplitConfig, check_same, identity, load_build_config
from shards.info import info
from shards.manifest import write_manifest
from shards.people import SUBJECTS, Tables, check_moves, people_lines, read_stored
from shards.plan import read_plan
from shards.privacy import token
from shards.split import empty_splits, split_of, splits_of
from shards.verify import verify
from sleepfm.constants import SPLITS
from sleepfm.data.cache import BlockCache
from sleepfm.data.dataset import Dataset
from sleepfm.errors import ConfigError, DatasetError
from sleepfm.signals.people import NOBODY
from sleepfm.signals.prepare import PreparedRecording

COLUMNS = ("age", "male", "bmi", "ahi_a0h3a")
TITLES = f"nsrrid,familyi,{','.join(COLUMNS)}"
PEOPLE = 24


def night(number: int) -> PreparedRecording:
    made = make_night(f"cfs-visit5-{800000 + number}", 4, ("EEG_C4",), subject=f"cfs-{800000 + number}")
    return replace(made, visit="5", cohort="cfs")


def rows(families: int = 3) -> list[str]:
    """Of each person number, family, age, sex, BMI and AHI; the last person is in no family."""
    people = range(1, PEOPLE + 1)
    return [f"{800000 + n},{'' if n == PEOPLE else n // families},{20 + 3 * n},{n % 2},{20 + n},{2 * n}" for n in people]


def write_table(source: Path, lines: list[str]) -> Path:
    path = source / "datasets" / "cfs-visit5-dataset-0.7.0.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([TITLES, *lines]) + "\n")
    return path


def config(*overrides: str) -> BuildConfig:
    return load_build_config(None, ["cohort=cfs", *overrides])


def write(out: Path, source: Path, *overrides: str, move: bool = False) -> Dataset:
    """What a build does with people: read their tables, check that nobody moves, and write the manifest."""
    settings = config(*overrides)
    tables = Tables.read(source, settings, move)
    check_moves(out, settings.split, tables)
    write_manifest(out, read_plan(out, identity(settings)), tables)
    assert list(verify(out)) == []
    return Dataset.open(out)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_table(tmp_path / "source", rows())
    return tmp_path / "source"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A data set of 24 people that was built without their table."""
    nights = [night(number) for number in range(1, PEOPLE + 1)]
    return make_dataset(tmp_path / "out", nights, per_shard=6, overrides=["cohort=cfs"]).path


def splits(dataset: Dataset) -> dict[str, str]:
    return {row.subject: row.split for row in dataset.records}


def test_what_the_table_says_is_in_the_manifest_and_families_are_together(out: Path, source: Path) -> None:
    dataset = write(out, source, move=True)
    people = dataset.people
    assert len(people) == PEOPLE
    for index, record in enumerate(dataset.records):
        number = int(record.subject.removeprefix("cfs-8"))
        person = people.of(index)
        assert (person.age, person.sex, person.bmi, person.ahi) == (
            90 if 20 + 3 * number > 89 else 20 + 3 * number,
            "male" if number % 2 else "female",
            20 + number,
            2 * number,
        )
        family = "" if number == PEOPLE else f"cfs-family-{number // 3}"
        assert person.family == family and people.family(record.subject) == (family or record.subject)
        assert record.split == split_of(family or record.subject, config().split)
    by_family: dict[str, set[str]] = {}
    for subject, split in splits(dataset).items():
        by_family.setdefault(people.family(subject), set()).add(split)
    assert all(len(found) == 1 for found in by_family.values()) and len(by_family) == 9
    assert "people   age      of 24 of 24 people (cfs-visit5-dataset-0.7.0.csv: age)" in info(out)
    assert "people   family   of 23 of 24 people, 8 families" in info(out)


def test_tables_that_are_read_in_parts_say_the_same(out: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(out, source, move=True)
    tables = Tables.read(source, config(), move=False)
    whole = read_stored(out, config().split), people_lines(out, tables)
    assert len(whole[0].people) == len(whole[0].splits) == PEOPLE and whole[0].people["cfs-800001", "5", "cfs"].age == 23
    monkeypatch.setattr("shards.people._ROWS_AT_ONCE", 5)
    assert (read_stored(out, config().split), people_lines(out, tables)) == whole


def test_what_is_said_of_people_takes_no_room_for_each(tmp_path: Path) -> None:
    (tmp_path / "manifest").mkdir()
    peaks = []
    for count in (10_000, 40_000):
        values = {"subject": [f"cfs-{n}" for n in range(count)], "cohort": ["cfs"] * count, "family": [""] * count}
        others = {name: [None] * count for name in SUBJECTS.names if name not in values}
        pq.write_table(pa.table(values | others, schema=SUBJECTS), tmp_path / "manifest" / "subjects.parquet")
        del values, others
        tracemalloc.start()
        people_lines(tmp_path, Tables())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_a_table_that_comes_later_changes_no_shard_and_moves_nobody_unasked(out: Path, source: Path) -> None:
    before = splits(Dataset.open(out))
    assert Dataset.open(out).people.of(0) == NOBODY
    told, (warning,) = people_lines(out, Tables.read(out, config(), move=False))
    table, harmonised = "cfs-visit5-dataset-[0-9]*.csv", "cfs-visit5-harmonized-dataset-[0-9]*.csv"
    assert told == [f"cohort cfs: no table of its people was found (looked for {table}, {harmonised})"]
    assert warning.startswith(f"cohort cfs: the table that names families was not found (looked for {table})")
    stamps = {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    with pytest.raises(DatasetError, match=r"\d+ people would move to another split, for example cfs-8.*--rebuild"):
        write(out, source)
    assert splits(Dataset.open(out)) == before
    moved = write(out, source, move=True)
    assert people_lines(out, Tables.read(out, config(), move=False))[1] == []
    assert splits(moved) != before
    assert {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()} == stamps
    # A table without families changes nothing but what is known.
    digest = moved.digest
    write_table(source, [line.replace(",90,", ",,") for line in rows()])
    assert write(out, source).digest == digest


def test_what_was_known_stays_known_without_the_table_and_not_where_it_is_ignored(out: Path, source: Path) -> None:
    known = write(out, source, move=True)
    write_table(source, rows()).unlink()
    again = write(out, source)
    assert splits(again) == splits(known) and again.people.of(3) == known.people.of(3) != NOBODY
    with pytest.raises(DatasetError, match="would move to another split"):
        write(out, source, "subjects.use=ignore")
    assert write(out, source, "subjects.use=ignore", move=True).people.lines() == []


def test_another_folder_may_hold_the_table(out: Path, tmp_path: Path, source: Path) -> None:
    (tmp_path / "empty").mkdir()
    dataset = write(out, tmp_path / "empty", f"subjects.folder={source}", move=True)
    assert dataset.people.of(0).age is not None


def test_a_data_set_of_before_opens_without_the_table_and_a_build_adds_it(out: Path, source: Path) -> None:
    table, description = out / "manifest" / "subjects.parquet", out / "dataset.json"
    content = json.loads(description.read_text())
    del content["tables"]["subjects"]
    table.unlink()
    description.write_text(json.dumps(content))
    assert list(verify(out)) == []
    old = Dataset.open(out)
    assert old.people.of(0) == NOBODY and old.people.families == {}
    (source / "datasets" / "cfs-visit5-dataset-0.7.0.csv").unlink()
    assert write(out, source).digest == old.digest
    assert table.is_file()


def test_a_damaged_table_moves_nobody_and_is_written_anew(out: Path, source: Path) -> None:
    dataset = write(out, source, move=True)
    path = out / "manifest" / "records.parquet"
    found = pq.read_table(path)
    place = found.schema.get_field_index("split")
    pq.write_table(found.set_column(place, found.schema.field(place), [found["split"].to_pylist()[::-1]]), path)
    assert any("records.parquet" in fault for fault in verify(out))
    again = write(out, source)
    assert again.digest == dataset.digest and splits(again) == splits(dataset)
    assert again.people.of(3) == dataset.people.of(3)


def test_verify_finds_a_family_in_two_splits_and_a_person_in_none(out: Path, source: Path) -> None:
    write(out, source, move=True)
    for name, change in (("records", "split"), ("subjects", "subject")):
        path = out / "manifest" / f"{name}.parquet"
        content = path.read_bytes()
        found = pq.read_table(path)
        values = found[change].to_pylist()
        values[0] = next(split for split in SPLITS if split != values[0]) if change == "split" else "cfs-1"
        place = found.schema.get_field_index(change)
        pq.write_table(found.set_column(place, found.schema.field(place), [values]), path)
        _describe_as_found(out)
        faults = "\n".join(verify(out))
        assert ("its family's is" if change == "split" else "its subject is not in subjects.parquet") in faults
        path.write_bytes(content)
        _describe_as_found(out)
    assert list(verify(out)) == []


def _describe_as_found(out: Path) -> None:
    from shards.manifest import table_digests

    content = json.loads((out / "dataset.json").read_text())
    (out / "dataset.json").write_text(json.dumps({**content, "tables": table_digests(out)}))


def test_names_are_digests_where_privacy_says_so(tmp_path: Path, source: Path) -> None:
    """Sidecars have digests in the place of names then, and the table is joined by the same."""
    private = config("privacy.names=digest").privacy
    subjects = [token(f"cfs-{800000 + number}", private) for number in (1, 2, 3)]
    nights = [replace(night(number), subject=subject) for number, subject in enumerate(subjects, start=1)]
    overrides = ["cohort=cfs", "privacy.names=digest"]
    out = make_dataset(tmp_path / "private", nights, overrides=overrides).path
    people = write(out, source, *overrides[1:], move=True).people
    assert [people.of(index).age for index in range(3)] == [23, 26, 29]
    families = [token(f"cfs-family-{number}", private) for number in (0, 0, 1)]
    assert [people.family(subject) for subject in subjects] == families
    assert people.of(0).sources == dict(zip(("age", "sex", "bmi", "ahi"), COLUMNS, strict=True))
    assert "cfs-family" not in repr(pq.read_table(out / "manifest" / "subjects.parquet").to_pydict())


def family_of(subject: str) -> str:
    return subject.partition("-")[0]


def test_a_split_with_a_share_and_nobody_in_it_is_told() -> None:
    split = config("split.stratify=[sex]", "split.val=0", "split.test=0.25").split
    counts = {name: {"subjects": count} for name, count in (("pretrain", 5), ("label", 2), ("val", 0), ("test", 0))}
    (told,) = empty_splits(counts, split)
    assert told.startswith("nobody is in test (split.test=0.25 of 7 people, in groups of like sex)") and "split.salt" in told
    (told,) = empty_splits(counts, split.model_copy(update={"val": 0.1, "stratify": []}))
    assert told.startswith("nobody is in val or test (split.val=0.1, split.test=0.25 of 7 people)")
    assert empty_splits({name: {"subjects": 1} for name in counts}, split) == []
    assert empty_splits({name: {"subjects": 0} for name in counts}, split) == []


@pytest.mark.parametrize("stratify", [[], ["sex"]])
def test_nobody_moves_when_others_are_added_and_families_are_together(stratify: list[str]) -> None:
    settings = SplitConfig(**{**config().split.model_dump(), "stratify": stratify})
    everybody = [f"f{number // 4}-{number}" for number in range(400)]
    sex = {subject: str(number % 2) for number, subject in enumerate(everybody)}
    before: dict[str, str] = {}
    for count in (40, 41, 173, 400):
        now = splits_of(everybody[:count], family_of, settings, sex.__getitem__, before)
        assert before.items() <= now.items() and len(now) == count
        # The order in which they are met plays no part.
        assert now == splits_of(reversed(everybody[:count]), family_of, settings, sex.__getitem__, before)
        assert all(len({now[s] for s in now if family_of(s) == family}) == 1 for family in map(family_of, now))
        before = now


def test_strata_are_spread_more_evenly_than_hashes_alone() -> None:
    plain = config().split
    stratified = SplitConfig(**{**plain.model_dump(), "stratify": ["ahi"]})
    people = [f"p{number}" for number in range(300)]
    stratum = {person: str(number % 5) for number, person in enumerate(people)}

    def worst(settings: SplitConfig) -> float:
        found = splits_of(people, str, settings, stratum.__getitem__)
        counts = Counter((stratum[person], split) for person, split in found.items())
        return max(abs(counts[name, split] - 60 * getattr(settings, split)) for name in set(stratum.values()) for split in SPLITS)

    assert worst(stratified) <= 2 < worst(plain)


def test_stratified_splits_are_kept_in_the_manifest_alone_and_not_lost_with_it(out: Path, source: Path, tmp_path: Path) -> None:
    nights = [night(number) for number in range(1, PEOPLE + 1)]
    made = make_dataset(tmp_path / "stratified", nights, per_shard=6, overrides=["cohort=cfs", "split.stratify=[sex]"]).path
    dataset = write(made, source, "split.stratify=[sex]", move=True)
    assert splits(write(made, source, "split.stratify=[sex]")) == splits(dataset)
    (made / "manifest" / "records.parquet").write_bytes(b"lost")
    for damage in (lambda path: path.write_bytes(b"lost"), Path.unlink):
        damage(made / "manifest" / "records.parquet")
        with pytest.raises(DatasetError, match="only this table says which person is in which split; restore it"):
            write(made, source, "split.stratify=[sex]")
    with pytest.raises(ConfigError, match=r"split\.stratify"):
        check_same(identity(config()), identity(config("split.stratify=[sex]")), out)
    assert "stratify" not in identity(config())["split"]


def test_a_data_set_of_before_opens_behind_a_url(out: Path, tmp_path: Path) -> None:
    content = json.loads((out / "dataset.json").read_text())
    del content["tables"]["subjects"]
    (out / "dataset.json").write_text(json.dumps(content))
    (out / "manifest" / "subjects.parquet").unlink()
    old = Dataset.open(f"file://{out}", BlockCache(tmp_path / "cache", 1 << 30))
    assert old.people.of(0) == NOBODY and len(old.people) == PEOPLE


def test_a_build_joins_the_table_that_the_source_holds(built: Path, cohort: Path) -> None:
    dataset = Dataset.open(built)
    table = {line["nsrrid"]: line for line in csv.DictReader((cohort / "datasets/shhs1-dataset-0.21.0.csv").open())}
    for index, record in enumerate(dataset.records):
        line, person = table[record.subject.removeprefix("shhs-")], dataset.people.of(index)
        assert person.age == float(line["age_s1"]) and person.sex == {"1": "male", "2": "female"}[line["gender"]]
        assert person.ahi == pytest.approx(float(line["ahi_a0h3a"]), abs=0.01)
        assert record.split == split_of(record.subject, config().split)
