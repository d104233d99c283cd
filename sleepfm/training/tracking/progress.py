"""Progress of a run on the terminal: a line every few seconds, from rank 0."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Prints ``name step/steps loss lr epochs/s goodput left``."""

    def __init__(self, name: str, steps: int) -> None:
        self._name, self._steps = name, steps
        self._last_time = time.monotonic()
        self._last_step: int | None = None

    def stepped(self, row: Mapping[str, Any], goodput: float) -> None:
        """``goodput`` is the share of the run's wall time that went into steps."""
        step, now = row["step"], time.monotonic()
        if self._last_step is None:
            self._last_step = step - 1
        if row.get("skipped"):
            print(
                f"{self._name} step {step}: loss or gradient not finite, update skipped ({', '.join(row['recordings'])})",
                flush=True,
            )
        if now - self._last_time < _SECONDS_BETWEEN_LINES and step != self._steps:
            return
        per_step = (now - self._last_time) / max(1, step - self._last_step)
        left = (self._steps - step) * per_step
        print(
            f"{self._name} {step}/{self._steps}  loss {row['loss']:.4f}  lr {row['lr']:.2e}  "
            f"{row['epochs_per_s']:.0f} epochs/s  goodput {goodput:.0%}  {_clock(left)} left",
            flush=True,
        )
        self._last_time, self._last_step = now, step

    def validated(self, step: int, figures: Mapping[str, float]) -> None:
        text = "  ".join(f"{name} {value:z.4f}" for name, value in figures.items())
        print(f"{self._name} {step}/{self._steps}  {text}", flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
