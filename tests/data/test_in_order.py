"""Evaluation: every epoch of every recording exactly once, in order."""

from __future__ import annotations

import numpy as np
import pytest
from made_nights import make_dataset, make_night

from sleepfm.data.format import channel_member
from sleepfm.data.in_order import iter_eval, iter_record
from sleepfm.errors import DatasetError, ShardError

OVERRIDES = ["split.pretrain=0", "split.label=0", "split.val=0", "split.test=1", "segment_epochs=8"]


@pytest.mark.parametrize("length,windows", [(1, 64), (1, 5), (4, 2), (7, 64), (20, 1), (50, 3)])
def test_every_epoch_is_valid_once_and_in_order(tmp_path, length, windows):
    lengths = {"one": 1, "short": 5, "long": 43}
    dataset = make_dataset(
        tmp_path / "out", [make_night(name, n, ("EEG_C4", "ECG")) for name, n in lengths.items()], overrides=OVERRIDES
    )
    seen: dict[str, list[int]] = {}
    stages: dict[str, list[int]] = {}
    for batch in iter_eval(dataset, "test", ["EEG_C4", "ECG"], length, windows):
        assert len(batch) <= windows
        for row, record in enumerate(batch.record):
            chosen = batch.valid[row].numpy()
            epochs = int(batch.first_epoch[row]) + np.arange(length)
            seen.setdefault(record, []).extend(epochs[chosen].tolist())
            stages.setdefault(record, []).extend(batch.labels["stage"][row].numpy()[chosen].tolist())
    assert seen == {name: list(range(n)) for name, n in lengths.items()}
    for name, n in lengths.items():
        assert stages[name] == make_night(name, n, ("EEG_C4", "ECG")).stage.tolist()


def test_a_corrupt_epoch_is_never_left_out_in_silence(tmp_path):
    dataset = make_dataset(tmp_path / "out", [make_night("a", 10, ("ECG",))], overrides=OVERRIDES)
    path = dataset.shard_paths[0]
    content = bytearray(path.read_bytes())
    content[int(dataset.offsets(channel_member("ECG"))[0]) + 17] ^= 4
    path.write_bytes(content)
    with pytest.raises(ShardError, match="checksum"):
        list(iter_record(dataset, "a", ["ECG"]))
    with pytest.raises(DatasetError, match="no recording 'b'"):
        list(iter_record(dataset, "b", ["ECG"]))
