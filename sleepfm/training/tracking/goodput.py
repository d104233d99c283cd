"""Where the wall time of a run goes: into steps, or by cause into something else; of the job and its restarts, and of its ranks.

Clocks are those of hosts, nothing is asked of a device. Where a device works behind its host, what the host waits for shows at
the next place at which it waits: sums are right over many steps, not within one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from sleepfm.errors import CheckpointError, StorageError
from sleepfm.files import read_json, write_json
from sleepfm.training.folder import RunFolder
from sleepfm.training.observer import Observer
from sleepfm.training.ranks.distributed import World, gather_json

CAUSES = ("step", "data", "start", "validation", "saves", "restarts", "end", "other")
"""``step`` is what a run is for. ``start`` lasts from the start of rank 0's process to the first step; ``restarts`` are the steps
that were lost, the time until the job was there again, and its start; ``end`` is what comes after the last step.
"""
_SAVE = "saving"
# By what the engine and the job say of where they are.
_PLACES = (
    ("in the ", "step"),
    ("adding up the figures", "step"),
    ("waiting for data", "data"),
    ("validating", "validation"),
    (_SAVE, "saves"),
    ("waiting for the last checkpoint", "saves"),
    ("loading the best", "end"),
    ("exporting", "end"),
)
# More than the checkpoints that a run may go on from.
_SAVES_REMEMBERED = 16


def cause_of(place: str) -> str:
    """What time at ``place``, see :meth:`Observer.at`, counts as."""
    return next((cause for words, cause in _PLACES if place.startswith(words)), "other")


@dataclass
class StepTimes:
    """Steps of one rank: their number, their seconds, the squares of these, the longest; and the seconds that went by before the
    rank met the others: waiting for data, and with the forward pass.
    """

    steps: int = 0
    seconds: float = 0.0
    squares: float = 0.0
    longest: float = 0.0
    data: float = 0.0
    own: float = 0.0

    def add(self, seconds: float, data: float, own: float) -> None:
        self.steps += 1
        self.seconds += seconds
        self.squares += seconds * seconds
        self.longest = max(self.longest, seconds)
        self.data += data
        self.own += own


def compare_ranks(ranks: list[StepTimes]) -> dict[str, float]:
    """Figures of the steps of all ranks: mean seconds, their standard deviation between steps and the longest of any rank, which
    rank takes longest before it meets the others and for how long, and the largest share that any waits for data.
    """
    told = [rank for rank in ranks if rank.steps]
    if not told:
        return {}
    steps, seconds = sum(rank.steps for rank in told), sum(rank.seconds for rank in told)
    mean = seconds / steps
    slowest = max(range(len(ranks)), key=lambda number: ranks[number].own / max(1, ranks[number].steps))
    return {
        "ranks/step_seconds": mean,
        "ranks/step_seconds_std": math.sqrt(max(0.0, sum(rank.squares for rank in told) / steps - mean * mean)),
        "ranks/step_seconds_longest": max(rank.longest for rank in told),
        "ranks/slowest": float(slowest),
        "ranks/slowest_own_seconds": ranks[slowest].own / ranks[slowest].steps,
        "ranks/data_wait_largest": max(rank.data / max(rank.seconds, 1e-9) for rank in told),
    }


def read_sums(path: Path) -> dict[str, Any] | None:
    """What a job has kept in ``path``; None before it has.

    Raises:
        CheckpointError: it is not as a job writes it.
    """
    try:
        known = read_json(path)
        if known is None:
            return None
        sums = [known["seconds"], *known["saved"].values()]
        whole = all(part.keys() == set(CAUSES) and all(math.isfinite(seconds) for seconds in part.values()) for part in sums)
        if not (whole and math.isfinite(known["at"]) and isinstance(known["ended"], str) and 0 in map(int, known["saved"])):
            raise ValueError("not the sums of a job")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: is damaged") from error
    return dict(known)


class Goodput(Observer):
    """Sums up the wall time of a run, on every rank.

    Rank 0 keeps the sums of the job in ``goodput.json``, with those at each checkpoint, by which a restart knows what was lost.
    Before a validation ranks compare their steps, in a collective.
    """

    def __init__(
        self,
        world: World,
        folder: RunFolder,
        step: int,
        began: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``step`` is where the run goes on, ``began`` when this process started by ``clock``, which gives seconds since 1970."""
        self._world, self._path, self._clock = world, folder.goodput, clock
        self._since = psutil.Process().create_time() if began is None else began
        self._step, self._status = step, ""
        self._cause, self._stepping = "start", False
        self._seconds = dict.fromkeys(CAUSES, 0.0)
        self._saved = {0: dict(self._seconds)}
        if world.is_main and (known := read_sums(self._path)) is not None:
            self._take_up(known)
        self._place = ""
        self._own, self._current = StepTimes(), StepTimes()
        self._ranks: dict[str, float] = {}

    def _take_up(self, known: Mapping[str, Any]) -> None:
        """Go on with the sums of the processes before. What they did after the checkpoint that the run goes on from was lost."""
        self._saved = {int(step): sums for step, sums in known["saved"].items() if int(step) <= self._step}
        kept = self._saved[max(self._saved)]
        lost = sum(known["seconds"].values()) - sum(kept.values())
        if not known["ended"]:
            # Nobody asked it to leave: the job has been on its way back since.
            lost += max(0.0, self._since - known["at"])
        self._seconds = kept | {"restarts": kept["restarts"] + lost}
        self._cause = "restarts"

    def begins(self, step: int) -> None:
        self._account()
        self._end_step()
        before, self._cause = self._cause, "step"
        self._step, self._place, self._stepping = step, "", True
        if before not in ("step", "data"):
            # Not after every step: what is done from here on is lost in a kill, unless a checkpoint is written, and with it this.
            self._write()

    def at(self, place: str, patient: bool = False) -> None:
        self._account()
        self._place = place
        if self._cause in ("start", "restarts"):
            return
        self._cause = cause_of(place)
        if self._cause in ("step", "data"):
            return
        self._end_step()
        if self._cause == "validation":
            self._ranks = compare_ranks([StepTimes(**row) for row in gather_json(self._world, asdict(self._own))])
            self._own = StepTimes()
        self._write()

    def ended(self, status: str) -> None:
        self._status = status

    def close(self) -> None:
        self._account()
        # Where there is no room, what ended the run has said so.
        with suppress(StorageError):
            self._write()

    def share(self) -> float:
        """The share of the job's wall time until now that went into steps."""
        self._account()
        return self._seconds["step"] / max(sum(self._seconds.values()), 1e-9)

    def figures(self) -> dict[str, float]:
        """The share of every cause in the job's wall time until now, and what ranks said of their steps before a validation."""
        self._account()
        whole = max(sum(self._seconds.values()), 1e-9)
        return {f"goodput/{cause}": seconds / whole for cause, seconds in self._seconds.items()} | self._ranks

    def describe(self) -> str:
        """In words, with the causes that took a hundredth and more."""
        share, whole = self.share(), max(sum(self._seconds.values()), 1e-9)
        others = sorted(((seconds / whole, cause) for cause, seconds in self._seconds.items() if cause != "step"), reverse=True)
        named = ", ".join(f"{cause} {part:.0%}" for part, cause in others if part >= 0.01)
        return f"goodput {share:.0%}" + (f" ({named})" if named else "")

    def summary(self) -> dict[str, Any]:
        """For the result of the run: the share in steps, and the seconds of every cause."""
        return {"share": round(self.share(), 4), "seconds": {cause: round(value, 1) for cause, value in self._seconds.items()}}

    def _account(self) -> None:
        """Count the time since the last call to where this rank has been."""
        now = self._clock()
        # A clock may be set back.
        seconds, self._since = max(0.0, now - self._since), now
        self._seconds[self._cause] += seconds
        if self._place.startswith(_SAVE):
            self._saved[self._step] = dict(self._seconds)
        if self._stepping:
            waits = self._cause == "data"
            alone = waits or self._place.startswith("in the forward")
            self._current.add(seconds, seconds * waits, seconds * alone)

    def _end_step(self) -> None:
        if self._stepping:
            step = self._current
            self._own.add(step.seconds, step.data, step.own)
        self._current, self._stepping = StepTimes(), False

    def _write(self) -> None:
        if not self._world.is_main:
            return
        newest = sorted(self._saved)[-_SAVES_REMEMBERED:]
        saved = {step: self._saved[step] for step in sorted({0, *newest})}
        write_json(self._path, {"seconds": self._seconds, "at": self._since, "ended": self._status, "saved": saved})
