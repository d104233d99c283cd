"""Saving without stopping training: a copy in the host's memory, written by a thread while the next steps run.

What DeepSpeed would write itself is taken from it on the way to the disk. Each rank's thread writes its files into a hidden
folder, brings them to the disk and takes their SHA-256; when all ranks have done so, a thread of rank 0 publishes the checkpoint.
Ranks learn of it in a collective that every step makes anyway (:attr:`Writer.ready`), so that all go through the same stages at
the same step, and an error of one ends all.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sleepfm.console import warn
from sleepfm.errors import CheckpointError
from sleepfm.files import sync_file
from sleepfm.registry.package import save_weights
from sleepfm.training.ranks.distributed import World, gather_json, is_lost_contact
from sleepfm.training.state import checkpoint
from sleepfm.training.state.checkpoint import Written


class Snapshot:
    """States copied into the host's memory, by the file that they are for; the next snapshot of the same states reuses it."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, int], Tensor] = {}
        self.states: dict[Path, Any] = {}

    def take(self, state_dict: Any, path: str) -> None:
        """In the place of the method of DeepSpeed's checkpoint engine that writes ``state_dict`` to ``path``."""
        file = Path(path)
        self.states[file] = self._copy(state_dict, file.name, {})

    def complete(self) -> dict[Path, Any]:
        """The states taken since the last call, once their copies have arrived."""
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        taken, self.states = self.states, {}
        return taken

    def _copy(self, value: Any, file: str, seen: dict[Any, Tensor]) -> Any:
        if isinstance(value, Tensor):
            return self._host_copy(value.detach(), file, seen)
        if isinstance(value, dict):
            twin = copy.copy(value)
            twin.update({key: self._copy(inner, file, seen) for key, inner in value.items()})
            return twin
        if type(value) in (list, tuple):
            return type(value)(self._copy(inner, file, seen) for inner in value)
        return copy.deepcopy(value)

    def _host_copy(self, value: Tensor, file: str, seen: dict[Any, Tensor]) -> Tensor:
        # Tied parameters are one tensor under two names.
        place = (value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and place in seen:
            return seen[place]
        slot = (file, len(seen))
        buffer = self._buffers.get(slot)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            # Pinned memory, into which a GPU copies at full speed.
            buffer = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=value.is_cuda)
            self._buffers[slot] = buffer
        buffer.copy_(value, non_blocking=value.is_cuda)
        seen[place if value.numel() else slot] = buffer
        return buffer


class Writer:
    """Saves ``engine`` in ``root`` and keeps the newest ``keep`` checkpoints; every rank has one and calls it alike.

    ``model`` is :func:`sleepfm.training.state.checkpoint.model_digest`. One checkpoint is written at a time. The memory that it
    takes is that of what this rank writes: with ZeRO 1 and ``P`` trained parameters on ``N`` ranks 12 P / N bytes, and on rank 0
    4 bytes more for each parameter. ``published`` is told on rank 0, by the thread, the step of each that is whole on the disk.
    """

    def __init__(
        self,
        engine: Any,
        world: World,
        root: Path,
        zero: int,
        keep: int,
        model: str,
        published: Callable[[int], None] = lambda step: None,
    ) -> None:
        self._engine, self._world, self._root, self._keep, self._published = engine, world, root, keep, published
        self._facts = {"processes": world.size, "zero": zero, "model": model}
        self._snapshot = Snapshot()
        engine.checkpoint_engine.save = self._snapshot.take
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._step = 0
        self._job: Future[dict[str, Any]] | None = None
        self._publishing = False

    @property
    def ready(self) -> bool:
        """Whether this rank's part of the present stage is done, so that :meth:`advance` does not wait for it."""
        return self._job is not None and self._job.done()

    def save(self, step: int, extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Copy the state of ``step`` and have it written; waits for the write before, if that is still going on.

        ``extra`` are tensors in the host's memory, which rank 0 adds by name of a safetensors file.

        Raises:
            CheckpointError: the write before failed, or this one cannot begin; the checkpoints before it are untouched.
        """
        self.finish()
        self._step = step
        unfinished = checkpoint.unfinished_of(self._root, step)
        try:
            if self._world.is_main:
                checkpoint.remove_unfinished(self._root)
                unfinished.mkdir(parents=True)
            # Begins with a barrier: from then on every rank finds the folder.
            self._engine.save_checkpoint(str(self._root), tag=unfinished.name, client_state={"step": step}, save_latest=False)
        except (OSError, RuntimeError) as error:
            if is_lost_contact(error):
                raise
            raise self._failure(_reason(error)) from error
        states = self._snapshot.complete()
        self._begin(lambda: self._write(states, extra if self._world.is_main else {}))

    def advance(self) -> None:
        """Go on to the next stage of the save, when all ranks are ready for it; else this waits for them.

        Raises:
            CheckpointError: a rank could not write; the checkpoints before this one are untouched.
        """
        if self._job is None:
            return
        outcome: dict[str, Any]
        try:
            outcome = {"files": self._job.result()}
        except (OSError, RuntimeError) as error:
            outcome = {"error": _reason(error)}
        self._job = None
        everyone = gather_json(self._world, outcome)
        for rank, other in enumerate(everyone):
            if "error" in other:
                raise self._failure(other["error"] if rank == 0 else f"rank {rank}: {other['error']}")
        if not self._publishing:
            files = {name: Written(**written) for other in everyone for name, written in other["files"].items()}
            self._begin(lambda: self._publish(files) if self._world.is_main else {}, publishing=True)
        else:
            self._publishing = False

    def finish(self) -> None:
        """Wait until the checkpoint that is being written is published. Raises as :meth:`advance`."""
        while self._job is not None:
            self.advance()

    def rescue(self) -> None:
        """After an error of one process that trains alone: finish the checkpoint that is being written, or say why not.

        Several ranks cannot: the error may be one rank's, and the others do not come here.
        """
        if self._world.size == 1:
            try:
                self.finish()
            except CheckpointError as error:
                warn(str(error))

    def _begin(self, work: Callable[[], dict[str, Any]], publishing: bool = False) -> None:
        self._publishing = publishing
        self._job = self._pool.submit(work)

    def _write(self, states: Mapping[Path, Any], extra: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
        """This rank's files, on the disk."""
        unfinished = checkpoint.unfinished_of(self._root, self._step)
        for path, state in states.items():
            torch.save(state, path)
            sync_file(path)
        for name, tensors in extra.items():
            save_weights(unfinished / name, tensors)
        paths = [*states, *(unfinished / name for name in extra)]
        return {str(path.relative_to(unfinished)): vars(Written.of(path)) for path in paths}

    def _publish(self, files: dict[str, Written]) -> dict[str, Any]:
        unfinished = checkpoint.unfinished_of(self._root, self._step)
        for path in sorted(unfinished.rglob("*")):
            # DeepSpeed copies parameters that it has offloaded to NVMe there by itself.
            name = str(path.relative_to(unfinished))
            if path.is_file() and name not in files:
                sync_file(path)
                files[name] = Written.of(path)
        checkpoint.publish(self._root, self._step, files, self._facts)
        self._published(self._step)
        checkpoint.prune(self._root, self._keep)
        return {}

    def _failure(self, reason: str) -> CheckpointError:
        free = shutil.disk_usage(self._root.parent).free
        return CheckpointError(
            f"{checkpoint.unfinished_of(self._root, self._step)}: cannot save step {self._step} ({reason}; "
            f"{free / 1e6:.1f} MB are free there); earlier checkpoints remain"
        )


def _reason(error: BaseException) -> str:
    # torch's writer does not say why its bytes did not arrive.
    return (str(error) or repr(error)).splitlines()[0]
