"""Which task runs next: as many as the cluster has room for, and what becomes of a shard whose task dies.

Ray's own retries are off. A node that is lost says nothing of its tasks, which run again. A worker that dies may have died of a
recording: its shard waits until all others are done; then each of its recordings is tried in a process of its own
(:mod:`shards.attempt`), and the shard is built without those that end theirs time and again.

A task may leave the end of its upload to the driver (:mod:`shards.completing`). Where that fails, the shard's task runs again and
does all of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from shards.attempt import attempt
from shards.build_config import BuildConfig
from shards.capacity import Capacity
from shards.completing import Completing
from shards.faults import NO_MEMORY, NODE_FULL, fault_of, is_of_memory
from shards.lease import Builder
from shards.memory import BASE_BYTES, measure
from shards.names import shown
from shards.plan import Entry, ShardPlan
from shards.task import Failure, Outcome, Refusal
from shards.time_limit import time_limit
from shards.whose import Whose
from sleepfm.errors import FatalRecordingError, ShardError, SleepFMError
from sleepfm.signals.discover import Discovered
from sleepfm.wording import counted

# Enough to keep every worker busy while a finished task is replaced; the rest waits in the driver as plain names.
IN_FLIGHT_PER_CPU = 2
# Nodes that may be lost under one task before its recordings are suspected.
_NODES_LOST = 5
# So many recordings that end their processes, and none that does not, are a fault of the cluster.
_FATAL_ALONE = 16

# What became of a shard, a line for the user, or None: time has passed.
News = Outcome | Failure | str | None


@dataclass(frozen=True)
class Work:
    """What all tasks of a build have in common; as for :func:`shards.task.build_shard`."""

    source: Path
    out: Path
    config: BuildConfig
    build: str
    known: Mapping[str, Discovered]
    files: Mapping[str, str]
    refused: Mapping[str, Refusal]
    builder: Builder | None = None
    whose: Mapping[str, Whose] = field(default_factory=dict)

    def file(self, entry: Entry) -> str:
        """Path of the recording relative to the source."""
        return self.files.get(entry.path, entry.path)


@dataclass
class _Shard:
    """A shard on its way. ``handed`` is what is known of its recordings, None until their headers are read."""

    plan: ShardPlan
    refused: dict[str, Refusal]
    memory: int = 0
    handed: dict[str, Discovered] | None = None
    alone: bool = False
    """Its task ends its upload itself."""
    deaths: list[str] = field(default_factory=list)
    nodes_lost: int = 0
    untried: int = 0

    @property
    def entries(self) -> list[Entry]:
        """Recordings that are not refused yet."""
        return [entry for entry in self.plan.entries if entry.path not in self.refused]


@dataclass
class _Attempt:
    """A recording of a suspected shard that is tried alone."""

    shard: _Shard
    entry: Entry
    deaths: list[str] = field(default_factory=list)
    nodes_lost: int = 0


@dataclass(frozen=True)
class _Job:
    """What one task does: read the headers of a shard, build it, or try one recording. ``memory`` in bytes."""

    kind: Literal["headers", "build", "attempt"]
    item: _Shard | _Attempt
    memory: int


def read_headers(
    source: Path, paths: list[str], known: Mapping[str, Discovered], config: BuildConfig
) -> tuple[int, dict[str, Discovered]]:
    """:func:`shards.memory.measure` within ``ray.task_timeout_s``; what a Ray task runs."""
    with time_limit(config.ray.task_timeout_s):
        return measure(source, paths, known, config)


class Schedule:
    """The tasks of one build on a cluster.

    Args:
        run_task: builds a shard.
        report: gets what became of every shard as it is known, lines for the user, and None about once a second.
    """

    def __init__(self, ray: Any, work: Work, run_task: Callable[..., Outcome], report: Callable[[News], object]) -> None:
        self._ray, self._work, self._report = ray, work, report
        options = {"num_cpus": 1, "max_retries": 0}
        self._tasks = {
            kind: ray.remote(**options)(function)
            for kind, function in (("headers", read_headers), ("build", run_task), ("attempt", attempt))
        }
        settings = work.config.ray
        self._asked = settings.task_memory_mb
        least = self._asked * 2**20 if isinstance(self._asked, int) else BASE_BYTES
        self._least = least
        self._capacity = Capacity(ray, least, self._asked, settings.wait_for_nodes_s, report)
        self._most_deaths = max(1, settings.retries)
        self._waiting: Iterator[ShardPlan] = iter(())
        self._again: deque[_Job] = deque()
        self._running: dict[Any, tuple[_Job, int]] = {}
        self._suspects: list[_Shard] = []
        self._failed: list[Failure] = []
        self._stop: SleepFMError | None = None
        self._fatal = self._lived = 0
        self._completing = Completing[tuple[_Job, Outcome]](work.out, work.builder)

    def run(self, shards: Iterable[ShardPlan]) -> None:
        """Build ``shards``. Raises as :func:`shards.cluster.run_shards`."""
        self._waiting = iter(shards)
        try:
            self._run()
        finally:
            self._completing.close()
        if self._stop is not None:
            raise self._stop
        if self._failed:
            raise ShardError(
                f"{counted(len(self._failed), 'shard')} failed, the others are finished and kept; run the same command to try "
                f"again; the first, with its cause:\n{self._failed[0].shard}: {self._failed[0].reason}"
            )

    def _run(self) -> None:
        while True:
            self._capacity.look()
            self._cancel_what_fits_nowhere()
            self._submit()
            if not self._running and not self._completing:
                if not self._suspects or self._stop is not None:
                    return
                self._try_suspects()
                continue
            for reference in self._ready():
                job, memory = self._running.pop(reference)
                self._settle(job, memory, reference)
            for (job, outcome), end in self._completing.ended(0.0 if self._running else 1.0):
                self._end(job, outcome, end)
            self._report(None)

    def _ready(self) -> list[Any]:
        if not self._running:
            return []
        ready, others = self._ray.wait(list(self._running), num_returns=1, timeout=1.0)
        if ready and others:
            more, _ = self._ray.wait(others, num_returns=len(others), timeout=0)
            ready += more
        return list(ready)

    def _submit(self) -> None:
        limit = max(1, IN_FLIGHT_PER_CPU * self._capacity.cpus)
        while (
            self._stop is None and len(self._running) < limit and not self._completing.full and (job := self._next()) is not None
        ):
            work, item = self._work, job.item
            memory = min(job.memory, self._capacity.memory or job.memory)
            arguments: tuple[Any, ...]
            if isinstance(item, _Attempt):
                arguments = (work.source, item.entry, work.file(item.entry), work.config)
            else:
                paths = [work.file(entry) for entry in item.entries]
                if job.kind == "headers":
                    known = {path: work.known[path] for path in paths if path in work.known}
                    arguments = (work.source, paths, known, work.config)
                else:
                    files = {entry.path: work.files[entry.path] for entry in item.plan.entries if entry.path in work.files}
                    arguments = (work.source, work.out, item.plan, work.config, work.build, item.handed, files, item.refused)
                    whose = {entry.path: work.whose[entry.path] for entry in item.plan.entries if entry.path in work.whose}
                    arguments += (work.builder, whose, not item.alone)
            self._running[self._tasks[job.kind].options(memory=memory).remote(*arguments)] = job, memory

    def _next(self) -> _Job | None:
        if self._again:
            return self._again.popleft()
        plan = next(self._waiting, None)
        if plan is None:
            return None
        refused = self._work.refused
        return self._begin(_Shard(plan, {entry.path: refused[entry.path] for entry in plan.entries if entry.path in refused}))

    def _begin(self, shard: _Shard) -> _Job:
        """The next task of ``shard``: its headers are read where that is needed, else it is built."""
        work = self._work
        if shard.handed is None:
            paths = [work.file(entry) for entry in shard.entries]
            known = {path: work.known[path] for path in paths if path in work.known}
            if isinstance(self._asked, int) or not paths:
                shard.memory, shard.handed = self._least, known
            elif all(path in known and known[path].seconds is not None for path in paths):
                shard.memory, shard.handed = measure(work.source, paths, known, work.config)
            else:
                return _Job("headers", shard, BASE_BYTES)
        return _Job("build", shard, shard.memory)

    def _cancel_what_fits_nowhere(self) -> None:
        """Tasks that ask for more than any node has since a larger one left; they come again as lost, and ask for less."""
        most = self._capacity.memory
        for reference, (_, memory) in self._running.items():
            if most >= self._least and memory > most:
                self._ray.cancel(reference)

    def _settle(self, job: _Job, memory: int, reference: Any) -> None:
        """See to a task that has ended, which had asked for so many bytes of ``memory``."""
        errors = self._ray.exceptions
        try:
            result = self._ray.get(reference)
        except errors.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, SleepFMError):
                # What is at work may finish, so that nothing is written once this has returned.
                self._stop = self._stop or cause
            elif isinstance(cause, MemoryError):
                self._died(job, memory, " ".join([NO_MEMORY, *getattr(cause, "__notes__", ())]))
            else:
                self._fail(job, str(error))
        except errors.OutOfMemoryError:
            self._died(job, memory, NODE_FULL)
        except errors.WorkerCrashedError:
            self._died(job, memory, "its worker died")
        except (errors.NodeDiedError, errors.LocalRayletDiedError, errors.ObjectLostError, errors.TaskCancelledError):
            self._lost(job, memory)
        except errors.RayError as error:
            self._fail(job, str(error))
        else:
            self._done(job, memory, result)

    def _done(self, job: _Job, memory: int, result: Any) -> None:
        item = job.item
        if isinstance(item, _Attempt):
            if result:
                self._died(job, memory, result)
            else:
                self._lived += 1
                # What it needed, its shard needs.
                item.shard.memory = max(item.shard.memory, job.memory)
                self._tried(item.shard)
        elif job.kind == "headers":
            item.memory, item.handed = result
            self._again.append(self._begin(item))
        else:
            self._lived += 1
            if result.left is None:
                self._report(result)
            else:
                self._completing.begin((job, replace(result, left=None)), result.left)

    def _end(self, job: _Job, outcome: Outcome, end: Future[bool]) -> None:
        """What the end of an upload, which the driver has seen to, came to."""
        assert isinstance(job.item, _Shard)
        try:
            whole = end.result()
        except SleepFMError as error:
            self._stop = self._stop or error
        except Exception as error:
            self._fail(job, fault_of(error))
        else:
            if whole:
                self._report(outcome)
            else:
                job.item.alone = True
                self._again.append(job)

    def _lost(self, job: _Job, memory: int) -> None:
        """The task's node is gone."""
        job.item.nodes_lost += 1
        if job.item.nodes_lost % _NODES_LOST == 0:
            self._died(job, memory, "its node was lost")
        else:
            self._again.append(job)

    def _died(self, job: _Job, memory: int, why: str) -> None:
        item = job.item
        if is_of_memory(why):
            why += f" (its task had asked for {memory / 2**20:.0f} MB)"
        item.deaths.append(why)
        if isinstance(item, _Attempt):
            if len(item.deaths) < self._most_deaths:
                # Maybe the header says too little of what it needs.
                self._again.append(replace(job, memory=2 * job.memory))
                return
            self._refuse(item, memory)
            return
        if len(item.deaths) > self._most_deaths:
            self._fail(job, self._shard_death(item, memory))
            return
        self._suspects.append(item)
        self._report(f"{item.plan.name}: {why}; its recordings are tried one by one when the other shards are done")

    def _shard_death(self, shard: _Shard, memory: int) -> str:
        """What to say of a shard whose task died time and again, the last time with so many bytes asked for."""
        count, why = len(shard.deaths), "; ".join(dict.fromkeys(shard.deaths))
        sound = "although each of its recordings can be converted by itself"
        if not all(map(is_of_memory, shard.deaths)):
            return f"{why}, {count} times in all, {sound}"
        return f"its task ran out of memory {count} times, {sound} ({why}); {self._more_memory(memory)}"

    def _more_memory(self, asked: int) -> str:
        """What to change where ``asked`` bytes were not enough."""
        if asked >= self._capacity.memory:
            return f"no node offers a task more than these {asked / 2**20:.0f} MB; add a node with more memory"
        return (
            f"run fewer tasks at once on a node: let each ask for more (ray.task_memory_mb above {asked / 2**20:.0f}), or offer "
            "fewer CPUs (--workers, ray start --num-cpus)"
        )

    def _fail(self, job: _Job, reason: str) -> None:
        shard = job.item.shard if isinstance(job.item, _Attempt) else job.item
        if not any(failure.shard == shard.plan.name for failure in self._failed):
            self._failed.append(Failure(shard.plan.name, tuple(entry.path for entry in shard.plan.entries), reason))
            self._report(self._failed[-1])

    def _try_suspects(self) -> None:
        suspects, self._suspects = self._suspects, []
        for shard in suspects:
            memory = shard.memory or self._capacity.memory or BASE_BYTES
            shard.untried = len(shard.entries)
            self._again += [_Job("attempt", _Attempt(shard, entry), memory) for entry in shard.entries]
            if not shard.untried:
                self._again.append(self._begin(shard))

    def _tried(self, shard: _Shard) -> None:
        """One more recording of ``shard`` is judged; after the last it is built without those that are refused."""
        shard.untried -= 1
        if not shard.untried:
            self._again.append(self._begin(shard))

    def _refuse(self, item: _Attempt, memory: int) -> None:
        """Leave out a recording whose attempts all ended their process, the last with so many bytes asked for."""
        entry, why = item.entry, "; ".join(dict.fromkeys(item.deaths))
        attempts = f"{len(item.deaths)} of {len(item.deaths)} attempts: {why}"
        if all(map(is_of_memory, item.deaths)):
            reason = (
                "as far as can be told, memory ran out whenever it was converted by itself, which may be no fault of the "
                f"recording ({attempts}); {self._more_memory(memory)}, then try it again with --retry-refused"
            )
        else:
            reason = (
                f"ends the process that converts it, even when it is converted by itself ({attempts}); --retry-refused tries it "
                "again"
            )
        item.shard.refused[entry.path] = Refusal(entry.path, entry.size, FatalRecordingError.__name__, reason)
        self._fatal += 1
        if self._fatal >= _FATAL_ALONE and not self._lived:
            self._stop = self._stop or ShardError(
                f"none of {self._fatal} recordings could be converted, the last ({shown(entry.path)}): {why}; see the logs of "
                "Ray's workers (ray logs), repair the nodes and run the same command again"
            )
        self._tried(item.shard)
