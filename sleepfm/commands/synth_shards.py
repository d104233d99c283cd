"""A synthetic cohort straight into shards: a part of the recordings at a time, each removed once it is in the data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sleepfm.errors import DatasetError
from sleepfm.files import read_json, write_json
from sleepfm.lock import only_writer
from sleepfm.paths import config_root
from sleepfm.synthetic.cohort import write_cohort
from sleepfm.synthetic.faults.rates import FaultRates
from sleepfm.synthetic.variety.config import Variety
from sleepfm.synthetic.variety.recorder import varied_layout

RULES = "synthetic/cohort.yaml"
# Shards whose recordings lie on disk at a time.
SHARDS_AT_A_TIME = 4
JOURNAL = "in-shards.json"


@dataclass(frozen=True)
class People:
    """How many people have a night of how many hours, from which seed."""

    subjects: int
    hours: float
    seed: int


def stream_to_shards(
    recordings: Path,
    shards: Path,
    people: People,
    variety: Variety,
    rates: FaultRates | None = None,
    workers: int = 1,
    build_options: Sequence[str] = (),
) -> int:
    """Write recordings to ``recordings``, build ``shards`` from them and remove them, part after part; returns the exit status.

    The data set is that of a build from all recordings at once. A call that was ended goes on with its part. What stays in
    ``recordings`` is the truth of each, and which of them are in the data set.

    Args:
        build_options: ``key=value`` on top of ``configs/shards.yaml``.

    Raises:
        UsageError: a folder was made with other arguments, or holds what is not of this cohort.
        DatasetError: the data set lacks recordings that were removed: it is another one than before.
        Others as :func:`shards.build.build`.
    """
    from shards.build import build
    from shards.build_config import load_build_config
    from shards.summary import refused_lines
    from sleepfm.extras import require

    require("ray")
    config = load_build_config(None, [*build_options, f"cohort={config_root() / RULES}"])
    size = SHARDS_AT_A_TIME * config.recordings_per_shard
    with only_writer(recordings):
        done = _done(recordings)
        if done and not shards.is_dir():
            raise DatasetError(
                f"{shards}: is not there, and the first {done} recordings of {recordings} were removed after they "
                "came into it; bring it back, or start with two new folders"
            )
        # A call may have been ended before it removed those of its part.
        _remove(recordings, range(done))
        for first in range(done, people.subjects, size):
            part = range(first, min(first + size, people.subjects))
            write_cohort(
                recordings, people.subjects, people.hours, people.seed, workers=workers, rates=rates, variety=variety, part=part
            )
            result = build(recordings, shards, config, workers)
            counts = result.description["counts"]
            print(
                f"{part.stop} of {people.subjects} people: {counts['records']} recordings in {counts['shards']} shards",
                flush=True,
            )
            for line in refused_lines(result.quarantine, f"{shards}/manifest/quarantine.parquet"):
                print(line, flush=True)
            write_json(recordings / JOURNAL, {"recordings": part.stop})
            _remove(recordings, part)
    print(f"{shards}: whole")
    return 0


def _remove(recordings: Path, numbers: range) -> None:
    """Remove the EDF and the scoring of each, if they are there."""
    places = varied_layout({})
    for number in numbers:
        for path in places.place(recordings, number):
            path.unlink(missing_ok=True)


def _done(recordings: Path) -> int:
    """How many recordings, from the first on, are in the data set."""
    try:
        content = read_json(recordings / JOURNAL)
    except ValueError:
        content = None
    return int(content["recordings"]) if isinstance(content, dict) else 0
