"""A recording is opened once from discovery to samples, and its header asked for once; counted where files are read."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile
from made_edf import Made, noise, tal, write_edf

from sleepfm.signals.cohorts.catalogue import load_cohort
from sleepfm.signals.discover import discover
from sleepfm.signals.examine import examine
from sleepfm.signals.files import location
from sleepfm.signals.prepare import prepare
from sleepfm.signals.recording import read_edf_header, read_recording
from sleepfm.signals.scorings.reader import read_scoring


class CountedFile(AbstractBufferedFile):
    """A file of fsspec's memory of which every range that is asked for is a request, as in an object store."""

    requests: ClassVar[list[tuple[str, int, int]]] = []

    def _fetch_range(self, start: int, end: int) -> bytes:
        self.requests.append((Path(self.path).name, start, end))
        return bytes(self.fs.store[self.path].getbuffer()[start:end])


@pytest.fixture
def requests(monkeypatch) -> list[tuple[str, int, int]]:
    """Name, begin and end of every range that was asked of fsspec's file system in memory."""
    plain = MemoryFileSystem._open

    def counted(self, path, mode="rb", **settings):
        return CountedFile(self, path, mode, **settings) if mode == "rb" else plain(self, path, mode, **settings)

    monkeypatch.setattr(MemoryFileSystem, "_open", counted)
    monkeypatch.setattr(CountedFile, "requests", [])
    return CountedFile.requests


@contextmanager
def opened() -> Iterator[Counter[str]]:
    """How often files are opened in this block, by name."""
    counts: Counter[str] = Counter()
    counting = True

    def hook(event: str, arguments: tuple) -> None:
        if counting and event == "open":
            counts[Path(str(arguments[0])).name] += 1

    # A hook stays for good; it does nothing after the block.
    sys.addaudithook(hook)
    try:
        yield counts
    finally:
        counting = False


def sleep_edf(folder: Path, variant: str = "") -> Path:
    """A night of five minutes by the names of Sleep-EDF, and its hypnogram in a file of annotations."""
    signals = [Made(label, noise(100 * 300, n), 100) for n, label in enumerate(["EEG Fpz-Cz", "EEG Pz-Oz", "EOG horizontal"])]
    stamps = [tal(f"+{second}") for second in range(300)] if variant else None
    write_edf(folder / "SC4001E0-PSG.edf", signals, variant=variant, stamps=stamps)
    stages = tal("+0") + b"".join(tal(f"+{30 * n}", "30", "Sleep stage W") for n in range(10))
    write_edf(folder / "SC4001EC-Hypnogram.edf", [], variant="EDF+C", seconds="0", stamps=[stages])
    return folder / "SC4001E0-PSG.edf"


@pytest.mark.parametrize(("variant", "times"), [("", 1), ("EDF+C", 2)])
@pytest.mark.parametrize("cohort", [None, "sleep-edf"])
def test_a_header_is_read_once_from_discovery_to_examination(tmp_path, variant, times, cohort):
    """The time stamps of an EDF+ are read once as well, when it is its turn."""
    edf = sleep_edf(tmp_path, variant)
    rules = load_cohort(cohort) if cohort else None
    with opened() as counts:
        found = discover(tmp_path, rules)
        examination = examine(read_recording(edf, found[edf].header), rules, tmp_path, found[edf].scoring)
    assert list(found) == [edf] and counts[edf.name] == times
    assert examination.scoring is not None and len(examination.scoring.stages) == 10 and examination.cohort.name == "sleep-edf"


def test_header_and_time_stamps_are_one_opening(tmp_path):
    edf = sleep_edf(tmp_path, "EDF+C")
    hypnogram = tmp_path / "SC4001EC-Hypnogram.edf"
    with opened() as counts:
        recording = read_recording(edf)
        scoring = read_scoring(hypnogram, recording.start)
    assert (recording.duration, len(scoring.stages)) == (300, 10)
    assert (counts[edf.name], counts[hypnogram.name]) == (1, 1)


@pytest.mark.parametrize("variant", ["", "EDF+C"])
@pytest.mark.parametrize("cohort", [None, "sleep-edf"])
@pytest.mark.parametrize("large", [False, True])
def test_a_remote_header_is_two_requests_on_the_whole_way(tmp_path, requests, monkeypatch, variant, cohort, large):
    edf = sleep_edf(tmp_path, variant)
    rules = load_cohort(cohort) if cohort else None
    if large:  # so that a folder is listed without its header, unless the scoring of a recording cannot be found without
        monkeypatch.setattr("sleepfm.signals.discover._LARGEST_ANNOTATIONS", edf.stat().st_size - 1)
    for path in tmp_path.iterdir():
        MemoryFileSystem().pipe_file(f"/{tmp_path.name}/{path.name}", path.read_bytes())
    root = location(f"memory://{tmp_path.name}")
    ((path, found),) = discover(root, rules).items()
    remote = prepare(read_recording(path, found.header), rules, root=root, scoring=found.scoring)
    local = prepare(edf, root=tmp_path)
    for channel, samples in local.channels.items():
        np.testing.assert_array_equal(remote.channels[channel], samples)
    asked = [(start, end) for name, start, end in requests if name == edf.name]
    # The fixed part of the header, that of its signals, and the one range of its records: for stamps and samples alike.
    data = read_edf_header(edf).data_offset
    assert asked == [(0, 256), (256, data), (0, edf.stat().st_size)]
    # A hypnogram is read whole when its turn comes; until then its header tells what it is and whose.
    assert sum(name.endswith("Hypnogram.edf") and end > 512 for name, _, end in requests) == 1


def test_a_file_that_has_changed_since_has_its_header_read_again(tmp_path):
    edf = sleep_edf(tmp_path)
    header = read_edf_header(edf)
    write_edf(edf, [Made("EEG Fpz-Cz", noise(100 * 400), 100)])
    assert read_recording(edf, header).duration == 400


def test_headers_beyond_a_number_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("sleepfm.signals.discover._MOST_HEADERS", 2)
    for name in "abc":
        write_edf(tmp_path / f"{name}.edf", [Made("EEG", noise(40 * 4), 4)])
    assert [found.header is not None for found in discover(tmp_path).values()] == [True, True, False]
