"""A job whose steps are watched for what waits for the device; writes ``reads-RANK.json``. For ``test_reads.py``.

``reads_job.py [OPTION ...] toy CONFIG key=value ...`` or with ``launch.pretrain`` and its arguments. Left out are the toy's loss,
which looks at its items, the next batch, and the reading of figures that have arrived. Options:

* ``--streams``: ZeRO's reductions run as on a device with streams, which stand for them and note what waits for what;
* ``--cuda``: on a CUDA device, which refuses what waits for it;
* ``--plant``: one line of the update asks for a number;
* ``--host-waits``: the host waits for the reductions, as DeepSpeed has it;
* ``--norms``: DeepSpeed looks at its own norm.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from engine_reads import Waits
from toy import ToyRunConfig, ToyStage

from sleepfm.training import job, update
from sleepfm.training.engine import _Run
from sleepfm.training.feed import Feed
from sleepfm.training.in_flight import Taken
from sleepfm.training.ranks.distributed import World, import_deepspeed
from sleepfm.training.update import Update


class Stream:
    """Stands for a stream of a device."""

    notes: list[str] = []

    def __init__(self, name: str = "reduction") -> None:
        self.name = name

    def wait_stream(self, other: Stream) -> None:
        Stream.notes.append(f"{self.name} waits for {other.name}")


def with_streams() -> None:
    """DeepSpeed's accelerator of the CPU says that work is queued on streams."""
    from deepspeed.accelerator import get_accelerator

    accelerator, own = get_accelerator(), Stream("own")
    accelerator.is_synchronized_device = accelerator.resolves_data_dependency = lambda: False
    accelerator.current_stream = lambda *_: own
    type(accelerator).Stream = property(lambda _: Stream)
    torch.Tensor.record_stream = lambda self, stream: None  # type: ignore[method-assign, assignment]


@contextmanager
def refused_by_cuda() -> Iterator[None]:
    """An error of CUDA where an operation waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def watch(waits: Waits, options: set[str]) -> None:
    """Every step of the engine in this process is watched."""
    step: Any = _Run._step
    decide, outcome = Update.decide, vars(Taken)["outcome"]

    def watched(run: _Run, *arguments: Any) -> Any:
        with waits, refused_by_cuda() if "--cuda" in options else nullcontext():
            return step(run, *arguments)

    def planted(update: Update, loss: torch.Tensor, squares: torch.Tensor) -> Any:
        if loss > 1e9:
            raise AssertionError
        return decide(update, loss, squares)

    _Run._step = watched  # type: ignore[assignment, method-assign]
    if "--plant" in options:
        Update.decide = planted  # type: ignore[assignment, method-assign]
    if "--host-waits" in options:
        update.wait_on_the_stream = lambda zero: None
    if "--norms" in options:
        update.leave_norm_and_clipping = lambda zero, clip: setattr(zero, "check_grad_overflow", True)
    ToyStage.loss = waits.passing(ToyStage.loss)  # type: ignore[method-assign]
    Feed.next = waits.passing(Feed.next)  # type: ignore[method-assign]
    outcome.func = waits.passing(outcome.func)
    # What rank 0 does with figures of the host, and the stages of a save.
    for owner, name in ((_Run, "_tell"), (_Run, "_skip")):
        setattr(owner, name, waits.passing(getattr(owner, name)))


def main(*arguments: str) -> None:
    """Run the job, and write what was found."""
    waits, rank = Waits(), World.from_environment().rank
    options = {argument for argument in arguments if argument.startswith("--")}
    module, *rest = (argument for argument in arguments if argument not in options)
    import_deepspeed()
    if "--streams" in options:
        with_streams()
    watch(waits, options)
    ended = job.exit_ranked

    def write_and_end(command: Any) -> Any:
        def wrapped() -> int:
            status: int = command()
            Path(f"reads-{rank}.json").write_text(json.dumps({"found": [*map(str, waits.found)], "streams": Stream.notes}))
            return status

        return ended(wrapped)

    job.exit_ranked = write_and_end
    sys.argv = [module, *rest]
    if module == "toy":
        job.run(ToyRunConfig, ToyStage, lambda config: ToyStage.dataset_digest, "reads")
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    # The node launcher names the rank first.
    main(*(argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")))
