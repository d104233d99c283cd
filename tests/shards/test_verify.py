"""``verify`` finds whatever differs from what was built."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from made_nights import make_dataset, make_night

from shards.verify import verify
from sleepfm.errors import DatasetError


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    nights = [make_night(f"n{number}", 4, ("EEG_C4", "SPO2"), subject=f"s{number // 2}") for number in range(4)]
    make_dataset(out, nights)
    return out


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def faults(out: Path) -> list[str]:
    try:
        return list(verify(out))
    except DatasetError as error:
        return [str(error)]


def test_what_was_built_is_whole(whole):
    assert faults(whole) == []


def test_any_flipped_bit_in_any_file_is_found(copy):
    rng = random.Random(3)
    for path in sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size):
        content = path.read_bytes()
        for _ in range(12 if path.suffix != ".json" else 40):
            place, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
            path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            assert faults(copy), f"{path.name}, byte {place}, bit {bit}"
        path.write_bytes(content)
    assert faults(copy) == []


def test_missing_and_extra_files_are_named(copy):
    for path in sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size):
        moved = path.rename(path.with_name("moved"))
        found = faults(copy)
        assert any(path.name in line or path.stem in line for line in found), (path, found)
        moved.rename(path)
    for name in ("shard-000009.tar", "shard-000009.json", "notes.txt"):
        extra = copy / "shards" / name
        extra.write_bytes((copy / "shards" / "shard-000000.tar").read_bytes())
        assert [line for line in faults(copy) if name in line]
        extra.unlink()
    assert faults(copy) == []


def test_a_wrong_count_is_found(copy):
    path = copy / "dataset.json"
    original = json.loads(path.read_text())
    for group, key in [("counts", key) for key in original["counts"]] + [("split", key) for key in original["split"]]:
        changed = json.loads(path.read_text())
        if group == "counts":
            changed[group][key] += 1
        else:
            changed[group][key]["subjects"] += 1
        path.write_text(json.dumps(changed))
        assert any("dataset.json" in line for line in faults(copy)), key
        path.write_text(json.dumps(original))
    assert faults(copy) == []


def test_a_swapped_tar_of_the_right_size_is_found(copy):
    first, second = sorted((copy / "shards").glob("*.tar"))
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    second_size = second.stat().st_size
    second.write_bytes(bytes(content[:second_size]).ljust(second_size, b"\0"))
    assert any("SHA-256" in line and second.name in line for line in faults(copy))


def test_on_ray_the_same_faults_are_found_in_the_same_order(copy, run, connection, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", connection.address)
    assert run(["verify", copy]).stdout == f"{copy}: whole\n"
    first, second = sorted((copy / "shards").glob("*.tar"))
    second.unlink()
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    (copy / "shards" / "notes.txt").touch()
    alone = faults(copy)
    assert len(alone) == 4 and any("notes.txt" in line for line in alone)
    result = run(["verify", copy])
    assert (result.returncode, result.stdout.splitlines()) == (1, [*alone, f"{copy}: 4 faults found"])


def test_a_flipped_bit_of_a_tar_is_found_beside_a_damaged_table(copy):
    tar, table = copy / "shards/shard-000000.tar", copy / "manifest/subjects.parquet"
    for path in (tar, table):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    found = faults(copy)
    assert len(found) == 2 and str(table) in found[0] and f"{tar}: its SHA-256 is not the manifest's" in found[1], found


def test_counts_are_told_in_the_words_of_the_screen(copy):
    description = json.loads((copy / "dataset.json").read_text())
    description["counts"]["quarantined"] += 1
    (copy / "dataset.json").write_text(json.dumps(description))
    (told,) = [line for line in faults(copy) if "dataset.json says 1" in line]
    assert told == f"{copy / 'manifest'}: 0 refused, dataset.json says 1"
