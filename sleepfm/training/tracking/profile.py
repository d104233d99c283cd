"""A trace of some steps by torch's profiler, in Chrome's format, for ``chrome://tracing``, Perfetto or TensorBoard."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from sleepfm.files import atomic_path, make_folder
from sleepfm.training.observer import Observer
from sleepfm.training.tracking.goodput import cause_of


class Profiler(Observer):
    """Records ``steps`` (from 1) of this rank and writes them to ``path`` when the last of them has ended.

    A step stands in the trace as ``ProfilerStep#N``, the name that torch's tools look for. A run that ends before leaves what it
    has.
    """

    def __init__(self, steps: range, path: Path) -> None:
        self._steps, self._path = steps, path
        self._profile: Any = None
        self._step = ExitStack()
        self._number = 0

    def begins(self, step: int) -> None:
        self._step.close()
        if step not in self._steps:
            self._finish()
            return
        if self._profile is None:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._profile = profile(activities=activities)
            self._profile.start()
        self._number = step
        self._step.enter_context(record_function(f"ProfilerStep#{step}"))

    def at(self, place: str, patient: bool = False) -> None:
        if self._profile is not None and cause_of(place) not in ("step", "data"):
            self._step.close()
            if self._number == self._steps[-1]:
                self._finish()

    def close(self) -> None:
        self._step.close()
        self._finish()

    def _finish(self) -> None:
        if self._profile is None:
            return
        finished, self._profile = self._profile, None
        finished.stop()
        make_folder(self._path.parent)
        with atomic_path(self._path) as temporary:
            finished.export_chrome_trace(str(temporary))
        print(f"train.profile: steps {self._steps[0]} to {self._number} are in {self._path}", flush=True)
