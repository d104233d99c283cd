"""A model of the time of a whole run: steps with stragglers and waits for data, validations, saves, faults.

:func:`sleepfm.training.tracking.step_time.step_seconds` gives the step. What a run meets is stated in :class:`Conditions`, some
of it assumed and some measured, as docs/scaling.md says.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Conditions:
    """What a run meets.

    Attributes:
        spread: standard deviation of a rank's step from one step to the next, as a share of it.
        data: share of a step that a rank waits for data.
        validation_s, validate_every: seconds of a validation, and steps between two.
        save_s, save_every: seconds that training waits for a checkpoint, and steps between two.
        gpu_mtbf_h: mean time between failures of one GPU with its share of a node, in hours.
        restart_s: from a failure to the first new step.
        start_s, end_s: before the first step, and after the last.
    """

    spread: float = 0.01
    data: float = 0.005
    validation_s: float = 0.0
    validate_every: float = float("inf")
    save_s: float = 0.0
    save_every: float = float("inf")
    gpu_mtbf_h: float = 50_000.0
    restart_s: float = 180.0
    start_s: float = 60.0
    end_s: float = 30.0


def expected_maximum(count: int) -> float:
    """Expected largest of ``count`` standard normal numbers (Blom 1958: the quantile of (n - 0.375) / (n + 0.25))."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25)) if count > 1 else 0.0


def run_seconds(step_s: float, steps: int, processes: int, conditions: Conditions) -> dict[str, float]:
    """Seconds of a run of ``steps`` steps of ``step_s``, by cause, their sum ``all``, and ``goodput``, the share in steps.

    A step ends with its slowest rank. A fault costs the restart and half of the steps between two checkpoints, with what is
    between them; faults come at a constant rate, also while the run makes up for others.
    """
    slowed = step_s * (1 + conditions.spread * expected_maximum(processes))
    seconds = {
        "step": steps * slowed,
        "data": steps * slowed * conditions.data,
        "validation": steps / conditions.validate_every * conditions.validation_s,
        "saves": steps / conditions.save_every * conditions.save_s,
    }
    going = sum(seconds.values())
    # Of a run that is shorter than the interval, all may be lost.
    between = going * min(1.0, conditions.save_every / steps)
    rate = processes / (conditions.gpu_mtbf_h * 3600)
    restarts = going * rate * (conditions.restart_s + between / 2)
    # What is done a second time may fail as well.
    seconds["restarts"] = restarts / max(1e-9, 1 - rate * (conditions.restart_s + between / 2))
    seconds |= {"start": conditions.start_s, "end": conditions.end_s}
    whole = sum(seconds.values())
    return seconds | {
        "stragglers": steps * (slowed - step_s),
        "all": whole,
        "goodput": seconds["step"] / whole,
        # Without start and end, which a long run does not notice.
        "steady": steps * step_s / (whole - conditions.start_s - conditions.end_s),
    }
