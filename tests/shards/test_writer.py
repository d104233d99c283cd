"""The tar: reproducible, atomic, readable by WebDataset, and with every member where the offsets say."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile

import numpy as np
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from made_nights import make_dataset, make_night

from shards.writer import ShardWriter
from sleepfm.data.format import MEMBERS

members = st.dictionaries(st.sampled_from(MEMBERS), st.binary(max_size=2000), min_size=1)


@given(st.lists(members, min_size=1, max_size=4))
def test_offsets_point_at_the_bytes(samples):
    file = io.BytesIO()
    writer = ShardWriter(file)
    offsets = [writer.write(f"record_{n:04d}", sample) for n, sample in enumerate(samples)]
    writer.close()
    content = file.getvalue()
    assert writer.bytes == len(content)
    for sample, places in zip(samples, offsets, strict=True):
        assert list(places) == list(sample)
        for name, place in places.items():
            assert content[place : place + len(sample[name])] == sample[name]
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        names = [member.name for member in archive]
        assert {member.mtime for member in archive.getmembers()} == {0}
    assert len(names) == sum(map(len, samples))


def test_webdataset_reads_what_was_written(tmp_path):
    dataset = make_dataset(tmp_path / "out", [make_night("a", 7, ("EEG_C4", "SPO2"))], overrides=["segment_epochs=3"])
    samples = list(webdataset.WebDataset(str(dataset.shard_paths[0]), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == ["a_0000", "a_0001", "a_0002"]
    night = make_night("a", 7, ("EEG_C4", "SPO2"))
    for sample in samples:
        header = sample["json"]
        begin = header["first_epoch"] - 1
        end = begin + header["epochs"]
        for channel in ("EEG_C4", "SPO2"):
            steps = sample[f"{channel.lower()}.npy"]
            assert steps.dtype == np.int16 and steps.shape == (end - begin, 3000) and header["rate"][channel] == 100
            found = steps.reshape(-1) * header["scale"][channel]
            original = night.channels[channel][begin * 3000 : end * 3000]
            assert np.abs(found - original).max() <= 0.51 * header["scale"][channel]
        assert sample["stage.npy"].dtype == np.int8 and sample["stage.npy"].tolist() == night.stage[begin:end].tolist()
    events = {(event["onset"], event["type"]) for sample in samples for event in sample["json"]["events"]}
    assert events == {(event.onset, event.type) for event in night.events}


def test_the_same_nights_give_the_same_bytes(tmp_path):
    def tars(name):
        dataset = make_dataset(tmp_path / name, [make_night("a", 5), make_night("b", 3)])
        return [path.read_bytes() for path in dataset.shard_paths], dataset.digest

    assert tars("one") == tars("two")


LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from made_nights import make_dataset, make_night
from sleepfm.errors import StorageError
make_night("a", 100)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    make_dataset(Path({out!r}), [make_night("a", 100)])
except StorageError as error:
    print(error)
"""


def test_a_full_disk_is_one_clear_line_and_leaves_nothing_half_written(tmp_path, request):
    script = LIMITED.format(tests=str(request.config.rootpath / "tests"), out=str(tmp_path / "out"))
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    said = "cannot be written (File too large); make room or repair the folder, then run the same command again"
    assert said in result.stdout, result.stderr
    assert list((tmp_path / "out" / "shards").iterdir()) == []
