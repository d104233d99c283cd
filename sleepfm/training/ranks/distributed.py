"""Processes of one training job: who they are, how they start, agree and end."""

from __future__ import annotations

import datetime
import json
import logging
import math
import os
import re
import socket
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sleepfm.console import RED, coloured, say
from sleepfm.errors import ConfigError, LostRankError, SleepFMError, TrainingError
from sleepfm.extras import require
from sleepfm.heap import keep_freed_memory
from sleepfm.models.device import accelerator
from sleepfm.training.ranks.ending import end
from sleepfm.training.ranks.joining import cannot_join, join
from sleepfm.training.ranks.preemption import leave_with

T = TypeVar("T")

# The launcher ends every process as soon as one has failed; rank 0 gets this long to say why before
# another does.
_GRACE_SECONDS = 10.0
_NAMED_FAILURES = 4
# Rank 0 may be the one that is lost, and a restart waits.
_LOST_GRACE_SECONDS = 2.0


@dataclass(frozen=True)
class World:
    """This process among the others of its job."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The GPU of this process, or the CPU where there is none or ``DS_ACCELERATOR`` asks for it, as DeepSpeed does."""
        return torch.device("cuda", self.local_rank) if accelerator() == "cuda" else torch.device("cpu")

    @staticmethod
    def from_environment() -> World:
        """What the launcher says; a process without a launcher is a job of one.

        Raises:
            ConfigError: a launcher's variable that is not a number.
        """

        def number(name: str, default: int) -> int:
            text = os.environ.get(name, str(default))
            if not text.isdigit():
                raise ConfigError(f"environment variable {name}={text!r}: expected a number, as launchers set it")
            return int(text)

        return World(number("RANK", 0), number("WORLD_SIZE", 1), number("LOCAL_RANK", 0), number("LOCAL_SIZE", 1))


def import_deepspeed() -> ModuleType:
    """DeepSpeed, without the parts that only cost start-up time.

    Its autotuner would import MLflow (1.5 s in every process), and does without. Its ZeRO optimisers ask
    whether theirs is a Muon optimiser, whose module compiles kernels on import (1.5 s); an empty class of
    that name answers them. Its shared-memory collective serves inference only, but would be compiled on
    first use (a minute). Nothing here uses the three.

    Raises:
        DependencyError: it is not installed.
    """
    require("deepspeed")
    os.environ["DS_ACCELERATOR"] = accelerator()
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        import deepspeed
    finally:
        if hidden:
            del sys.modules["mlflow"]
    muon = ModuleType("deepspeed.runtime.zero.muon.muon_optimizer")
    muon.MuonWithAuxAdam = type("MuonWithAuxAdam", (), {})  # type: ignore[attr-defined]
    sys.modules.setdefault(muon.__name__, muon)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed calls collectives by names that torch is about to rename, and says so once a process.
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    return deepspeed


def start(world: World, timeout_seconds: float) -> None:
    """Divide the cores among the processes of this host, unless ``OMP_NUM_THREADS`` says how many threads each takes, and join
    the process group. Sums, and so losses, are the same bit for bit only with the same number of threads. On a CPU the
    process keeps the memory that its steps free (:mod:`sleepfm.heap`).

    A collective that waits longer than ``timeout_seconds`` for a rank fails instead of hanging.
    """
    stated = os.environ.get("OMP_NUM_THREADS", "")
    shared = len(os.sched_getaffinity(0)) // world.local_size
    torch.set_num_threads(max(1, int(stated) if stated.isdigit() else shared))
    if world.device.type == "cpu":
        keep_freed_memory()
    if world.size == 1 and "MASTER_ADDR" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    deepspeed = import_deepspeed()
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    timeout = datetime.timedelta(seconds=timeout_seconds)
    try:
        dist.init_process_group(backend, store=join(world), rank=world.rank, world_size=world.size, timeout=timeout)
        # DeepSpeed takes the group that is there.
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=timeout)
    except dist.DistError as error:
        raise cannot_join(world, str(error).splitlines()[0]) from error


def is_lost_contact(error: BaseException) -> bool:
    """Whether ``error`` says that another rank, or the device of this one, is gone.

    NCCL's and the store's errors are ``DistError``; gloo reports a closed connection as a plain RuntimeError.
    """
    lost = isinstance(error, dist.DistError | torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)
    return lost or (isinstance(error, RuntimeError) and "gloo" in str(error))


def free_port() -> str:
    """A TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def broadcast_json(world: World, value: Any) -> Any:
    """Rank 0's ``value`` (plain JSON types) on every rank."""
    if world.size == 1:
        return value
    payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(world.device)
    length = torch.tensor([len(payload)], device=world.device)
    dist.broadcast(length, src=0)
    if not world.is_main:
        payload = torch.empty(int(length), dtype=torch.uint8, device=world.device)
    dist.broadcast(payload, src=0)
    return json.loads(bytes(payload.cpu().tolist()))


def gather_json(world: World, value: Any) -> list[Any]:
    """Every rank's ``value`` (plain JSON types), in the order of ranks, on every rank."""
    if world.size == 1:
        return [value]
    payload = json.dumps(value).encode()
    lengths = [torch.zeros(1, dtype=torch.int64, device=world.device) for _ in range(world.size)]
    dist.all_gather(lengths, torch.tensor([len(payload)], device=world.device))
    longest = max(int(length) for length in lengths)
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    everyone = [torch.empty(longest, dtype=torch.uint8, device=world.device) for _ in range(world.size)]
    dist.all_gather(everyone, padded.to(world.device))
    return [json.loads(bytes(row[: int(length)].cpu().tolist())) for row, length in zip(everyone, lengths, strict=True)]


def gather_tensors(world: World, own: Sequence[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """The tensors of all ranks on the CPU of rank 0, in the order of ranks and bit for bit; on the others nothing."""
    if world.size == 1:
        return list(own)
    shapes = gather_json(world, [[(str(t.dtype).removeprefix("torch."), list(t.shape)) for t in item] for item in own])
    sizes = [
        [[math.prod(shape) * getattr(torch, dtype).itemsize for dtype, shape in item] for item in of_rank] for of_rank in shapes
    ]
    longest = max(sum(map(sum, of_rank)) for of_rank in sizes)
    parts = [t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for item in own for t in item]
    joined = torch.cat([torch.empty(0, dtype=torch.uint8), *parts])
    # Collectives take the same length from every rank.
    payload = torch.nn.functional.pad(joined, (0, longest - len(joined))).to(world.device)
    rows = [torch.empty_like(payload) for _ in range(world.size)] if world.is_main else None
    if longest:
        dist.gather(payload, rows, dst=0)
    found = []
    for row, of_rank, lengths in zip(rows or [], shapes, sizes, strict=rows is not None):
        pieces = iter(row.cpu()[: sum(map(sum, lengths))].split([length for item in lengths for length in item]))
        for item in of_rank:
            # A piece of its own memory begins where any type may.
            found.append(tuple(next(pieces).clone().view(getattr(torch, dtype)).reshape(shape) for dtype, shape in item))
    return found


def on_main(world: World, work: Callable[[], T]) -> T:
    """Run ``work`` on rank 0 while the others wait; its result (plain JSON types), or its error, on
    every rank.

    Rank 0 may use all cores of its host meanwhile.
    """
    outcome: dict[str, Any] = {}
    failure: SleepFMError | None = None
    if world.is_main:
        threads = torch.get_num_threads()
        torch.set_num_threads(threads * world.local_size)
        try:
            outcome["value"] = work()
        except SleepFMError as error:
            failure = error
            outcome["error"] = str(error)
        finally:
            torch.set_num_threads(threads)
    outcome = broadcast_json(world, outcome)
    if failure is not None:
        raise failure
    if "error" in outcome:
        raise TrainingError(outcome["error"])
    return outcome["value"]


def on_every_node(world: World, work: Callable[[], T]) -> T:
    """This rank's result of ``work``, which the first rank of every node does first and the others then find done.

    Where one fails, all end with its error.

    Raises:
        SleepFMError: what ``work`` raised here, or :class:`TrainingError` where it raised elsewhere, naming hosts.
    """
    result: list[T] = []
    for first in (True, False):
        failure: SleepFMError | None = None
        if (world.local_rank == 0) == first:
            try:
                result = [work()]
            except SleepFMError as error:
                failure = error
        agree(world, failure)
    return result[0]


def agree(world: World, failure: SleepFMError | None) -> None:
    """Every rank says whether it has failed; where one has, all end with its error.

    Raises:
        SleepFMError: ``failure``, or :class:`TrainingError` where another rank has failed, naming hosts.
    """
    if world.size == 1:
        if failure is not None:
            raise failure
        return
    own = f"host {socket.gethostname()} (rank {world.rank}): {failure}" if failure is not None else ""
    said = [text for text in gather_json(world, own) if text]
    if said:
        more = f"; and {len(said) - _NAMED_FAILURES} other ranks" if len(said) > _NAMED_FAILURES else ""
        message = "; ".join(said[:_NAMED_FAILURES]) + more
        raise (TrainingError(message) if failure is None else type(failure)(message)) from failure


def assert_agreement(world: World, facts: dict[str, str]) -> None:
    """Refuse to start when a rank has another configuration, data set or weights than rank 0.

    ``facts`` maps what is compared to a hexadecimal SHA-256.

    Raises:
        TrainingError: naming the ranks and what differs.
    """
    if world.size == 1:
        return
    own = torch.tensor([list(bytes.fromhex(value)) for value in facts.values()], dtype=torch.uint8)
    own = own.to(world.device)
    everyone = [torch.empty_like(own) for _ in range(world.size)]
    dist.all_gather(everyone, own)
    problems = [
        f"rank {rank} has another {name}"
        for rank, theirs in enumerate(everyone)
        for row, name in enumerate(facts)
        if not torch.equal(theirs[row], everyone[0][row])
    ]
    if problems:
        raise TrainingError(f"processes disagree: {'; '.join(problems)} than rank 0; start all processes with the same files")


def exit_ranked(command: Callable[[], int]) -> NoReturn:
    """End this process with the status of ``command``; an expected error is one line, from rank 0 where
    it can be.

    The other ranks hold their line back until rank 0 has had time to print its own, which is nearly
    always the same; the launcher ends them meanwhile.
    """
    rank = os.environ.get("RANK", "0")
    try:
        status = _with_lost_contact(command, rank)
    except SleepFMError as error:
        status = error.exit_status
        leave_with(status)
        if rank == "0":
            say(f"{coloured('error:', RED, sys.stderr)} {error}")
        else:
            time.sleep(_LOST_GRACE_SECONDS if isinstance(error, LostRankError) else _GRACE_SECONDS)
            print(f"error (rank {rank}): {error}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        status = 130
    end(status)


def _with_lost_contact(command: Callable[[], int], rank: str) -> int:
    """What ``command`` gives; whatever a collective says of a lost rank, anywhere in it, is a :class:`LostRankError`."""
    try:
        return command()
    except (dist.DistError, RuntimeError) as error:
        if not is_lost_contact(error):
            raise
        reason = re.sub(r"^\[[^]]*\]\s*", "", str(error).splitlines()[0]).split(". ")[0]
        raise LostRankError(f"rank {rank} lost contact with another rank: {reason}") from error
