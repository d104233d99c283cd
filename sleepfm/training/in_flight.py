"""What the host will know of a step that it has queued: numbers on their way from the device while the next step runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sleepfm.training.figures import by_source


class Flight:
    """Numbers ``[N]`` on their way to the host, behind everything that was queued on the device before them."""

    def __init__(self, values: Tensor) -> None:
        self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
        self._host.copy_(values, non_blocking=values.is_cuda)
        # The host sleeps where it must wait, rather than take a core from what reads ahead.
        self._event = torch.cuda.Event(blocking=True) if values.is_cuda else None
        if self._event is not None:
            self._event.record()

    @property
    def at_once(self) -> bool:
        """Whether they are there already, as on the CPU always and on all ranks alike."""
        return self._event is None

    def read(self) -> list[float]:
        """The numbers, once they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        numbers: list[float] = self._host.tolist()
        return numbers


@dataclass(frozen=True)
class Outcome:
    """What became of a step.

    Attributes:
        figures: means over ranks, by name.
        gradient_norm: of all ranks, before clipping.
        votes: for each vote that ranks have in a step, the share of them that gave it.
        skipped: whether the update was left out.
        not_finite: recordings of the micro-steps whose loss was not finite on this rank.
    """

    figures: dict[str, float]
    gradient_norm: float
    votes: dict[str, float]
    skipped: bool
    not_finite: list[str]


class Taken:
    """A step that the host has queued.

    Args:
        step: from 1.
        rate: its learning rate.
        figures, votes: their names.
        records: names of the recordings of each micro-step on this rank.
        means: over ranks, of the figures, the squares of the gradients and the votes, on the device.
        skip: whether the update is left out, on the device.
        finite: of each micro-step whether its loss is finite on this rank, on the device.
    """

    def __init__(
        self,
        step: int,
        rate: float,
        figures: Sequence[str],
        votes: Sequence[str],
        records: Sequence[Sequence[str]],
        means: Tensor,
        skip: Tensor,
        finite: Sequence[Tensor],
    ) -> None:
        self.step, self.rate, self.records = step, rate, records
        self._figures, self._votes = figures, votes
        self._flight = Flight(torch.cat([means, torch.stack([skip, *finite]).double()]))

    @property
    def at_once(self) -> bool:
        """Whether :attr:`outcome` never waits for the device, on no rank."""
        return self._flight.at_once

    @cached_property
    def outcome(self) -> Outcome:
        """What became of it."""
        numbers = iter(self._flight.read())
        figures = {name: next(numbers) for name in self._figures}
        squares = next(numbers)
        votes = {name: next(numbers) for name in self._votes}
        skipped = bool(next(numbers))
        bad = [name for record in self.records if not next(numbers) for name in record]
        return Outcome(by_source(figures), math.sqrt(squares), votes, skipped, bad)
