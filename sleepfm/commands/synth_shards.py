"""A synthetic cohort straight into shards: a part of the recordings at a time, each removed once it is in the data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleepfm.errors import DatasetError
from sleepfm.files import read_json, sha256_file, write_json
from sleepfm.lock import only_writer
from sleepfm.paths import config_root
from sleepfm.synthetic.cohort import write_cohort
from sleepfm.synthetic.faults.rates import FaultRates
from sleepfm.synthetic.variety.config import Variety
from sleepfm.synthetic.variety.recorder import varied_layout
from sleepfm.wording import counted

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
    ``recordings`` is the truth of each, and which of them are in the data set. Nothing is removed but
    files that this wrote, as it wrote them: what is there before a part is begun is compared with what belongs there, and what
    changes later is left.

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
        journal = _journal(recordings)
        done = int(journal.get("recordings", 0))  # from the first on, in the data set
        if done and not shards.is_dir():
            raise DatasetError(
                f"{shards}: does not exist, but the first {counted(done, 'recording')} of {recordings} were removed after they "
                "were added to it; restore it, or start with two new folders"
            )
        # A call may have been ended before it removed those of its part.
        _remove(recordings, range(done), journal.get("files", {}))
        for first in range(done, people.subjects, size):
            part = range(first, min(first + size, people.subjects))
            write_cohort(
                recordings,
                people.subjects,
                people.hours,
                people.seed,
                workers=workers,
                rates=rates,
                variety=variety,
                part=part,
                compare=True,
            )
            written = {_name(recordings, path): sha256_file(path) for path in _places(recordings, part)}
            result = build(recordings, shards, config, workers, removal_intended=True)
            counts = result.description["counts"]
            print(
                f"{part.stop} of {counted(people.subjects, 'person')}: {counted(counts['records'], 'recording')} in "
                f"{counted(counts['shards'], 'shard')}",
                flush=True,
            )
            for line in refused_lines(result.quarantine, f"{shards}/manifest/quarantine.parquet"):
                print(line, flush=True)
            write_json(recordings / JOURNAL, {"recordings": part.stop, "files": written})
            _remove(recordings, part, written)
    print(f"{shards}: whole")
    return 0


def _places(recordings: Path, numbers: range) -> list[Path]:
    """The EDF and the scoring of each."""
    layout = varied_layout({})
    return [path for number in numbers for path in layout.place(recordings, number)]


def _name(recordings: Path, path: Path) -> str:
    return path.relative_to(recordings).as_posix()


def _remove(recordings: Path, numbers: range, written: Mapping[str, str]) -> None:
    """Remove the files of each that are ``written``, of this name and SHA-256."""
    for path in _places(recordings, numbers):
        digest = written.get(_name(recordings, path))
        if digest is not None and path.is_file() and sha256_file(path) == digest:
            path.unlink()


def _journal(recordings: Path) -> dict[str, Any]:
    """How many recordings are in the data set, and the SHA-256 by name of the files of the part that came last."""
    try:
        content = read_json(recordings / JOURNAL)
    except ValueError:
        content = None
    return content if isinstance(content, dict) else {}
