"""What the engine's feed gives its ranks from real shards, of which some cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_nights import make_dataset, make_night

from sleepfm.data.stream import EpochStream, Reading
from sleepfm.training.feed import Feed, Shares
from sleepfm.training.ranks.distributed import World


def test_ranks_stay_in_step_and_say_what_they_could_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lengths = [40, 3, 7, 25, 4, 11]
    nights = [make_night(f"n{index}", length, ("ECG",)) for index, length in enumerate(lengths)]
    overrides = ["split.pretrain=1", "split.label=0", "split.val=0", "split.test=0", "segment_epochs=10"]
    dataset = make_dataset(tmp_path / "out", nights, per_shard=1, overrides=overrides)
    dataset.shard_paths[2].unlink()
    whole = EpochStream(dataset, "pretrain", ["ECG"], Reading(1, 3, max_corrupt=0.5))
    shares, steps = Shares(global_batch=12, accumulation=2, micro_batch=2), 2 * len(whole) // 12
    given: dict[int, tuple[str, int]] = {}
    for rank in range(3):
        stream = EpochStream(dataset, "pretrain", ["ECG"], Reading(1, 3, max_corrupt=0.5))
        feed = Feed(stream, shares, World(rank, 3, rank, 3), 0, steps)
        for _ in range(steps * 2):
            batch = feed.next()
            assert len(batch) == 2
            given.update(zip(batch.item.tolist(), zip(batch.record, batch.first_epoch.tolist(), strict=True), strict=True))
        with pytest.raises(StopIteration):
            feed.next()
        feed.close()
        if stream.report.skipped:
            assert f"rank {rank}: " in caplog.text
            assert str(dataset.shard_paths[2]) in caplog.text
    batch = whole.batch(0, steps * 12)
    assert whole.report.skipped
    assert [given[position] for position in range(steps * 12)] == list(zip(batch.record, batch.first_epoch.tolist(), strict=True))
