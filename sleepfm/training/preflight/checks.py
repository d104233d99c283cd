"""All checks of a job in their order: what every process finds by itself, what needs the others, what needs the stage."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch.distributed as dist

from sleepfm.console import warn
from sleepfm.errors import SleepFMError
from sleepfm.training import branch
from sleepfm.training.engine import total_steps
from sleepfm.training.folder import Resume, RunFolder
from sleepfm.training.preflight import disks, host
from sleepfm.training.preflight.configuration import doubts, faults_of_plan, split
from sleepfm.training.preflight.faults import Fault, fault_of, of_all_ranks, refuse
from sleepfm.training.preflight.parents import missing_parents
from sleepfm.training.preflight.store import faults_of_store, unreachable_store
from sleepfm.training.ranks.distributed import World, gather_json
from sleepfm.training.ranks.joining import PREDECESSOR_SECONDS
from sleepfm.training.run_config import RunConfig
from sleepfm.training.stage import Stage
from sleepfm.training.tracking.sizing import Size

ConfigT = TypeVar("ConfigT", bound=RunConfig)
_STORE_SECONDS = 300.0


class Preflight(Generic[ConfigT]):
    """The checks of one process. Every process makes one and calls the same methods in the same order.

    Args:
        config: of the job.
        world: this process.
        planned: the processes that the job is planned for; others than ``world`` where it is only tried on paper.
        store: the registry.
        resume: whether a run in ``train.output`` goes on.
        on_paper: whether the job is only tried: nothing is written, and a run that is done counts as any other.
        digest: gives the digest of the data set that this process sees.
    """

    def __init__(
        self,
        config: ConfigT,
        world: World,
        planned: World,
        store: str,
        resume: Resume,
        digest: Callable[[ConfigT], str],
        on_paper: bool = False,
    ) -> None:
        self._config, self._world, self._planned, self._store, self._resume = config, world, planned, store, resume
        self._on_paper = on_paper
        self._folder = RunFolder(config.train.output)
        self._faults: list[Fault] = []
        self.dataset_digest = ""
        self.done: dict[str, Any] | None = None
        """The result of this very run, if it was done before: then nothing else was checked."""
        self._faults += fault_of(lambda: self._see(digest))
        self._faults += fault_of(self._look_into_folder)
        self._sources: dict[str, str] = {}
        self._branch: dict[str, Any] | None = None
        """The checkpoint that this run will begin at, in another run."""
        if not self._faults:
            self._faults += fault_of(self._read_origin)

    def _see(self, digest: Callable[[ConfigT], str]) -> None:
        self.dataset_digest = digest(self._config)

    def _look_into_folder(self) -> None:
        if self.dataset_digest:
            done = self._folder.check(self._config, self.dataset_digest, self._resume)
            self.done = None if self._on_paper else done

    def _read_origin(self) -> None:
        goes_on = self._resume != "never" and self._folder.is_run()
        if goes_on:
            self._sources = self._folder.sources()
        elif self._config.branch_from:
            self._branch = branch.origin(self._config.branch_from)

    @property
    def has_faults(self) -> bool:
        """Whether :meth:`stage` will refuse the job, by what this process knows so far."""
        return bool(self._faults)

    def before_start(self) -> None:
        """What must be right for the processes to find each other.

        Where nothing else is wrong, a port that is taken is waited for: the job before this one may be saving.

        Raises:
            PreflightError: it is not; with everything else that this process knows by then.
        """
        network = host.interfaces(os.environ, self._world.size == self._world.local_size)
        of_store = faults_of_store(self._store, self._store_key) if self._world.is_main else []
        self._faults = [*faults_of_plan(self._config, self._planned), *of_store, *self._faults]
        network += host.port(self._world, os.environ, 0.0 if network or self._faults else PREDECESSOR_SECONDS)
        if network:
            refuse([*self._faults, *network])

    def stage(self, build: Callable[[], Stage]) -> Stage:
        """What ``build`` makes, if nothing is wrong with the job. The process group has started.

        Where the stage is built in seconds and its parents and data are there, it is built also when there are faults, to find
        those that only it can tell.

        Raises:
            PreflightError: the faults of all processes.
            SleepFMError: what ``build`` raises, if that is the only fault.
        """
        hosts, faults = self._of_hosts()
        missing = missing_parents(self._config.parents(), self._sources, self._store) if self._world.is_main else []
        faults = [*self._gather([*self._faults, *missing, *self._of_disks()], hosts), *faults]
        incomplete = any(gather_json(self._world, bool(missing) or not self.dataset_digest))
        if faults and (incomplete or not self._config.is_built_at_once()):
            refuse(faults)
        error: SleepFMError | None = None
        stage: Stage | None = None
        own: list[Fault] = []
        try:
            stage = build()
            own = self._of_stage(stage)
        except SleepFMError as raised:
            error, own = raised, [Fault.of(raised)]
        found = self._gather(own, hosts)
        if error is not None and not faults:
            raise error
        refuse([*faults, *found])
        assert stage is not None
        if self._world.is_main:
            for text in filter(None, [*doubts(self._config, stage), unreachable_store(self._store, self._store_key)]):
                warn(text)
        return stage

    @property
    def _store_key(self) -> str:
        """What states the store; the default one has no faults."""
        return "tracking.uri" if self._config.tracking.uri else "environment variable MLFLOW_TRACKING_URI"

    def _gather(self, own: list[Fault], hosts: list[str]) -> list[Fault]:
        everyone = gather_json(self._world, [[fault.text, fault.configured] for fault in own])
        return of_all_ranks([[Fault(*fault) for fault in found] for found in everyone], hosts)

    def _of_hosts(self) -> tuple[list[str], list[Fault]]:
        """Name of every rank's host, and the faults that show between hosts."""
        world = self._world
        if world.size == 1:
            return [socket.gethostname()], []
        own = {"host": socket.gethostname(), "first": world.rank - world.local_rank}
        faults: list[Fault] = []
        with closing(host.listener()) as listener:
            # Through the store, which all have reached: collectives would wait for what cannot be reached.
            everyone = _exchange(world, "host", own | {"address": host.address(), "port": listener.getsockname()[1]})
            names = {row["first"]: row["host"] for row in everyone}
            if len(set(names.values())) < len(names):
                names = {first: f"{name} (rank {first})" for first, name in names.items()}
            hosts = [names[row["first"]] for row in everyone]
            others = {
                names[row["first"]]: (row["address"], row["port"])
                for rank, row in enumerate(everyone)
                if rank == row["first"] and row["first"] != own["first"]
            }
            found = host.unreachable(others) if world.local_rank == 0 else []
            told = _exchange(world, "reached", [fault.text for fault in found])
        unreached = [Fault(f"{hosts[rank]} {text}", False) for rank, texts in enumerate(told) for text in texts]
        if unreached:
            refuse([*self._faults, *unreached])
        gather_json(world, None)
        times = gather_json(world, [time.time(), self.dataset_digest])
        faults += host.clocks([row[0] for row in times], hosts)
        path = getattr(getattr(self._config, "data", None), "path", "")
        faults += host.datasets([row[1] for row in times], hosts, path)
        return hosts, faults

    def _of_disks(self) -> list[Fault]:
        """What has no room on this node, of what is written before the stage is there and beside its output."""
        world = self._world
        wanted = disks.expected(self._config, self._sources, self._store) if world.is_main else disks.Expected({}, None)
        packages, embeddings = gather_json(world, [wanted.packages, wanted.embeddings])[0]
        # One for all ranks of a node.
        return disks.faults_of_disks(self._config, disks.Expected(packages, embeddings)) if world.local_rank == 0 else []

    def _of_stage(self, stage: Stage) -> list[Fault]:
        """What the stage tells: enough held-out items, and how many bytes the run writes."""
        train = self._config.train
        found = split(self._config, stage)
        steps = total_steps(self._config, stage)
        if self._branch is not None and steps <= self._branch["step"]:
            found.append(
                Fault(
                    f"branch_from={self._config.branch_from}: with {steps} steps nothing is left to train; raise train.steps, "
                    "or use an earlier checkpoint"
                )
            )
        if self._world.local_rank == 0:
            needed = Size.of(stage.module).bytes_written(self._config.deepspeed.zero, train.keep, train.ema > 0)
            found += disks.room_for_output(Path(train.output), needed)
        return found


def _exchange(world: World, key: str, value: Any) -> list[Any]:
    """Every rank's ``value`` (plain JSON types), through the store of the process group."""
    store = dist.distributed_c10d._get_default_store()
    names = [f"preflight/{key}/{rank}" for rank in range(world.size)]
    store.set(names[world.rank], json.dumps(value))
    store.wait(names, timedelta(seconds=_STORE_SECONDS))
    return [json.loads(store.get(name)) for name in names]
