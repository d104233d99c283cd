"""A data set of nights of noise, as large as a benchmark of reading wants it."""

from __future__ import annotations

import sys
from pathlib import Path

CHANNELS = ("EEG_C4", "EOG_L", "EMG_CHIN", "ECG")
EPOCHS = 120


def make_dataset(out: Path, recordings: int) -> None:
    """Nights of noise through the shard writer, one in memory at a time."""
    root = Path(__file__).resolve().parents[1]
    # Before this folder, whose shards.py would stand in for the package.
    sys.path[:0] = [str(root), str(root / "tests")]
    from made_nights import make_night, quantised

    from shards.build_config import identity, load_build_config
    from shards.manifest import write_manifest
    from shards.plan import Entry, Plan, ShardPlan, write_plan
    from shards.samples import QuantisedRecording
    from shards.task import write_shard
    from sleepfm.config import digest

    config = load_build_config(None, ["split.pretrain=1", "split.label=0", "split.val=0", "split.test=0"])
    entries = [Entry(f"n{number:05d}.edf", 1000, f"n{number:05d}") for number in range(recordings)]
    shards = [entries[begin : begin + config.recordings_per_shard] for begin in range(0, recordings, config.recordings_per_shard)]
    plan = Plan(identity(config), tuple(ShardPlan(f"shard-{n:06d}.tar", tuple(part)) for n, part in enumerate(shards)))
    (out / "shards").mkdir(parents=True)
    write_plan(out, plan)
    for shard in plan.shards:

        def night_of(entry: Entry) -> QuantisedRecording:
            return quantised(make_night(entry.record, EPOCHS, CHANNELS))

        write_shard(out, shard, night_of, config, digest(plan.identity), Path("/source"))
    write_manifest(out, plan)
