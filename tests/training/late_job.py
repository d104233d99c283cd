"""The toy's job where figures never arrive before they are waited for, as on a device that is busy with the next step.

``late_job.py CONFIG key=value ...``; writes ``late-RANK.json``: the steps in the order in which they were queued and learnt of.
For ``test_in_flight.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toy import ToyRunConfig, ToyStage

from sleepfm.training import job
from sleepfm.training.engine import _Run
from sleepfm.training.in_flight import Flight, Taken
from sleepfm.training.ranks.distributed import World


def main() -> None:
    order: list[tuple[str, int]] = []
    step: Any = _Run._step
    outcome = vars(Taken)["outcome"]
    inner = outcome.func

    def note(what: str, number: int) -> None:
        order.append((what, number))
        Path(f"late-{World.from_environment().rank}.json").write_text(json.dumps(order))

    def queued(run: _Run, *arguments: Any) -> Any:
        step(run, *arguments)
        note("queued", run.step)

    def learnt(taken: Taken) -> Any:
        note("learnt", taken.step)
        return inner(taken)

    Flight.arrived = property(lambda flight: False)  # type: ignore[method-assign, assignment]
    outcome.func = learnt
    _Run._step = queued  # type: ignore[assignment, method-assign]
    job.run(ToyRunConfig, ToyStage, lambda config: ToyStage.dataset_digest, "late")


if __name__ == "__main__":
    main()
