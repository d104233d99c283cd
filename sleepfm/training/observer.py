"""What the engine tells of itself while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Observer:
    """Takes what the engine says and does nothing; a job puts its own in this place."""

    def at(self, place: str, patient: bool = False) -> None:
        """On every rank, whenever it goes on to something else; ``patient`` where that may take long."""

    def report(self, step: int, row: dict[str, Any]) -> None:
        """On rank 0, after every step (``loss``, ``parts``, ``lr`` …) and every validation (keys with a slash)."""

    def validated(
        self, step: int, figures: Mapping[str, float], module: nn.Module, state: Mapping[str, Tensor], best: bool
    ) -> None:
        """On rank 0 while the others wait, after every validation and before its report: ``module``, in eval mode, has the
        weights that were validated, ``state`` holds them on the CPU, and ``best`` says that they are kept as the best so far.
        """
