"""One night under two names: found by its samples, whatever became of its header, and never in two splits."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_edf import Made, write_edf

from shards import manifest
from shards.__main__ import main as shards
from shards.build_config import identity, load_build_config
from shards.duplicates import Duplicates
from shards.info import info
from shards.manifest import write_manifest
from shards.plan import Entry, Plan, ShardPlan, read_plan, write_plan
from shards.task import build_shard
from shards.verify import verify
from sleepfm.config import digest
from sleepfm.data.dataset import Dataset
from sleepfm.data.in_order import iter_eval
from sleepfm.signals.edf.sample_digests import SampleDigests
from sleepfm.signals.recording import read_recording
from sleepfm.signals.scorings.writers.nsrr_xml import ScoredEvent, nsrr_xml
from sleepfm.signals.scorings.writers.texts import NSRR_STAGE

RATE, RECORDS = 125, 30 * 24
CONFIG = ["cohort=shhs1", "split.pretrain=1", "split.label=0", "split.val=0", "split.test=0"]


def night(seed: int, records: int = RECORDS) -> list[Made]:
    """Channels of SHHS with a signal of a quarter of an hour or so, and a light that is always off."""
    rng = np.random.default_rng(seed)

    def signal(label: str, unit: str, scale: float) -> Made:
        samples = np.cumsum(rng.normal(0, scale, records * RATE)) % 2000 - 1000 + rng.normal(0, 30, records * RATE)
        return Made(label, np.round(samples).astype(int), RATE, unit)

    signals = [signal(label, "uV", 40) for label in ("EEG", "EEG(sec)", "EMG")] + [signal("ECG", "mV", 60)]
    return [*signals, Made("LIGHT", np.zeros(records, int), 1, "", ("0", "1"), ("0", "1"))]


def cut(signals: list[Made], records: int) -> list[Made]:
    return [dataclasses.replace(made, digital=made.digital[: records * made.per_record]) for made in signals]


def build(source: Path, out: Path, shards: list[list[str]], add: bool = False) -> Dataset:
    """The shards by the task that a Ray worker runs, and the manifest, as a build does both."""
    config = load_build_config(None, CONFIG)
    plan = Plan(
        identity(config),
        tuple(
            ShardPlan(f"shard-{number:06d}.tar", tuple(Entry(f"{n}.edf", (source / f"{n}.edf").stat().st_size, n) for n in names))
            for number, names in enumerate(shards)
        ),
    )
    (out / "shards").mkdir(parents=True, exist_ok=add)
    write_plan(out, plan)
    for shard in plan.shards[-1:] if add else plan.shards:
        build_shard(source, out, shard, config, digest(plan.identity))
    write_manifest(out, plan)
    return Dataset.open(out)


UNSCORED = {"scored_epochs": 0, "has_events": False}


def dataset_rows(out: Path) -> list[dict[str, object]]:
    return pq.read_table(out / "manifest" / "records.parquet").to_pylist()


def aside(out: Path) -> dict[str, str]:
    return {row["source"]: row["reason"] for row in pq.read_table(out / "manifest" / "quarantine.parquet").to_pylist()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A night, the same one issued again in every way that should not hide it, and nights that are others."""
    folder = tmp_path / "source"
    folder.mkdir()
    signals = night(1)
    write_edf(folder / "shhs1-200001.edf", signals)
    # Another date, another order, other limits and labels of the same samples, and a signal less.
    again = [dataclasses.replace(made, physical=("-200", "200")) for made in reversed(signals[:3])]
    write_edf(folder / "shhs1-200002.edf", again, start=("02.03.99", "21.00.00"))
    write_edf(folder / "shhs1-200003.edf", cut(signals, RECORDS - 100))
    write_edf(folder / "shhs1-200004.edf", cut(signals, RECORDS // 2))
    write_edf(folder / "shhs1-200005.edf", night(5))
    # The same open input beside signals of its own.
    write_edf(folder / "shhs1-200006.edf", [*night(6)[:4], signals[4]])
    # One sample of each signal is another.
    changed = [dataclasses.replace(made, digital=np.r_[made.digital[:1] + 1, made.digital[1:]]) for made in signals[:4]]
    write_edf(folder / "shhs1-200007.edf", changed)
    return folder


def test_one_night_under_several_names_counts_once(source: Path, tmp_path: Path) -> None:
    names = [f"shhs1-20000{number}" for number in range(1, 8)]
    out = tmp_path / "out"
    dataset = build(source, out, [names[:3], names[3:5], names[5:]])
    assert set(aside(out)) == {f"{name}.edf" for name in names[1:4]}
    assert all(reason.startswith("has the same signals as shhs1-200001.edf") for reason in aside(out).values())
    assert dataset.names == [names[0], *names[4:]]
    assert dataset.description["counts"]["quarantined"] == 3
    assert list(verify(out)) == []
    assert "refused  shhs1-200003.edf: has the same signals as shhs1-200001.edf" in info(out)
    # What is set aside in the middle of a shard is passed over, and the rest is read and checked as always.
    read = [record for batch in iter_eval(dataset, "pretrain", ["ECG"]) for record in batch.record]
    assert set(read) == set(dataset.names) and len(read) == dataset.n_epochs.sum()


def test_verify_says_which_and_finds_no_fault_in_them(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    build(source, out, [["shhs1-200001"], ["shhs1-200002", "shhs1-200003"]])
    assert shards(["verify", str(out)]) == 0
    told = capsys.readouterr().out
    assert "set aside shhs1-200002.edf: has the same signals as shhs1-200001.edf" in told and "whole" in told
    tar = out / "shards" / "shard-000001.tar"
    content = bytearray(tar.read_bytes())
    content[2000] ^= 1
    tar.write_bytes(content)
    assert any("SHA-256" in fault for fault in verify(out))


def test_what_is_added_later_is_the_second_and_moves_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = build(source, out, [["shhs1-200003", "shhs1-200005"]])
    assert first.names == ["shhs1-200003", "shhs1-200005"]
    grown = build(source, out, [["shhs1-200003", "shhs1-200005"], ["shhs1-200001", "shhs1-200006"]], add=True)
    assert grown.names == ["shhs1-200003", "shhs1-200005", "shhs1-200006"]
    assert aside(out) == {"shhs1-200001.edf": aside(out)["shhs1-200001.edf"]}
    assert "shhs1-200003.edf" in aside(out)["shhs1-200001.edf"]
    assert list(verify(out)) == []


def test_of_one_night_the_name_with_the_scoring_counts(source: Path, tmp_path: Path) -> None:
    """In whatever order they come; and a scoring that comes later brings its night in."""
    stages = [ScoredEvent("Stages|Stages", NSRR_STAGE[2], 0.0, float(RECORDS))]
    (source / "shhs1-200002-nsrr.xml").write_text(nsrr_xml(stages, float(RECORDS), "02.03.99 21.00.00"))
    orders = ([["shhs1-200001", "shhs1-200002"]], [["shhs1-200003"], ["shhs1-200002", "shhs1-200001"]])
    for number, shards_of in enumerate(orders):
        out = tmp_path / f"out{number}"
        dataset = build(source, out, shards_of)
        assert dataset.names == ["shhs1-200002"]
        assert {row["source"] for row in dataset_rows(out)} == {"shhs1-200002.edf"}
        told = "has the same signals as shhs1-200002.edf, whose scoring says more, so it would be"
        assert aside(out).keys() == {f"{name}.edf" for shard in shards_of for name in shard} - {"shhs1-200002.edf"}
        assert all(reason.startswith(told) for reason in aside(out).values())
        assert dataset.description["split"]["pretrain"] == {"subjects": 1, "records": 1, "epochs": 24}
        assert list(verify(out)) == []


def test_a_manifest_with_a_night_twice_is_found(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def none(cls: type[Duplicates], sidecars: Iterable[object]) -> Duplicates:
        assert list(sidecars)
        return cls({})

    with monkeypatch.context() as patch:
        patch.setattr(Duplicates, "among", classmethod(none))
        build(source, out, [["shhs1-200001", "shhs1-200002"]])
    assert any("shhs1-200002.edf: has the same signals as shhs1-200001.edf" in fault for fault in verify(out))


def test_each_sidecar_is_read_few_times(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a cohort they are a gigabyte of JSON."""
    out, reads, read = tmp_path / "out", Counter[str](), manifest.read_sidecar
    build(source, out, [["shhs1-200001"], ["shhs1-200005"]])
    plan = read_plan(out, identity(load_build_config(None, CONFIG)))

    def counted(folder: Path, shard: ShardPlan, of: str) -> dict[str, object] | None:
        reads[shard.name] += 1
        return read(folder, shard, of)

    monkeypatch.setattr(manifest, "read_sidecar", counted)
    seen: list[str] = []
    write_manifest(out, plan, see=lambda sidecar: seen.append(sidecar["shard"]))
    assert set(reads.values()) == {2}
    (out / "dataset.json").unlink()
    write_manifest(out, plan)
    assert set(reads.values()) == {2 + 3} and seen == [shard.name for shard in plan.shards]


def test_recordings_of_an_earlier_version_are_compared_with_none(source: Path, tmp_path: Path) -> None:
    record = {**UNSCORED, "source": "a.edf", "provenance": {"channels": {"EEG_C4": {"signal": "EEG"}}}}
    known = {**UNSCORED, "source": "b.edf", "provenance": {"channels": {"EEG_C4": {"sample_digests": ["0f" * 8]}}}}
    found = Duplicates.among([{"records": [record, known]}, {"records": [{**known, "source": "c.edf"}]}])
    assert found.first == {"c.edf": "b.edf"} and found.unknown == 1


@pytest.mark.parametrize("seed", range(5))
def test_firsts_are_those_of_a_slow_search(seed: int) -> None:
    """Random recordings of three signals each, of which some are shared."""
    rng = np.random.default_rng(seed)
    of = [set(rng.integers(0, 60, 3).tolist()) for _ in range(40)]
    # What is scored comes before what is not, and events count beside stages; the first seed has no scoring at all.
    scored = rng.integers(0, 3 if seed else 1, 40).tolist()
    records = [
        {
            "source": str(n),
            "scored_epochs": 7 * (scored[n] > 0),
            "has_events": scored[n] > 1,
            "provenance": {"channels": {str(v): {"sample_digests": [f"{v:016x}"]} for v in values}},
        }
        for n, values in enumerate(of)
    ]
    found = Duplicates.among([{"records": records}])

    def before(m: int, n: int) -> bool:
        return (-scored[m], m) < (-scored[n], n)

    assert set(found.first) == {str(n) for n in range(40) if any(of[n] & of[m] and before(m, n) for m in range(40))}
    kept = [n for n in range(40) if str(n) not in found.first]
    assert all(not of[a] & of[b] for a in kept for b in kept if a != b)
    assert all(before(int(first), int(later)) and first not in found.first for later, first in found.first.items())
    assert found.unscored == {later for later, first in found.first.items() if scored[int(first)] > scored[int(later)]}


@pytest.mark.parametrize("bdf", [False, True])
def test_digests_are_of_samples_whatever_the_blocks(bdf: bool, tmp_path: Path) -> None:
    signals = night(3)
    path = tmp_path / f"night.{'bdf' if bdf else 'edf'}"
    write_edf(path, signals, bdf=bdf)
    recording = read_recording(path)
    for index, made in enumerate(signals):
        recording.read(index)
        width = 3 if bdf else 2
        whole = SampleDigests(width)
        content = made.digital.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :width]
        whole.add(np.ascontiguousarray(content))
        assert recording.sample_digests[index] == whole.kept
        # 90,000 samples have beginnings of 2 ** 15 and 2 ** 16; a light that is always off has none.
        assert len(whole.kept) == (2 if made.label != "LIGHT" else 0)
    assert json.dumps(recording.sample_digests)
