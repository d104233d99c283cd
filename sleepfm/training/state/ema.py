"""Exponential moving average of the weights, which is what is validated, selected and exported when asked for.

Kept in fp32 by every rank. The running statistics of batch norms that train are averaged alike, so that they belong to the
averaged weights (Izmailov et al. 2018 computed them anew, which would take another pass over the data).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sleepfm.errors import CheckpointError
from sleepfm.training.ranks.distributed import World
from sleepfm.training.state.weights import average, named_running_statistics, whole_state

FILE = "ema.safetensors"


class Ema:
    """The average of the weights of ``engine``.

    After ``n`` steps the newest weights enter with ``1 - min(decay, (1 + n) / (10 + n))``, so that the initial ones do not
    linger in a short run.
    """

    def __init__(self, engine: Any, decay: float, world: World) -> None:
        self._engine, self._decay, self._world = engine, decay, world
        trained = {name: value for name, value in engine.module.named_parameters() if value.requires_grad}
        self._statistics = named_running_statistics(engine.module)
        self._sources = trained | self._statistics
        self._average = {name: value.detach().clone() for name, value in self._sources.items()}

    @torch.no_grad()
    def update(self, step: int, skipped: Tensor) -> None:
        """Take in the weights after ``step`` steps, unless ``skipped``, a flag on their device, says that the last was none."""
        decay = min(self._decay, (1 + step) / (10 + step))
        averages = [*self._average.values()]
        moves = torch._foreach_sub([value.detach() for value in self._sources.values()], averages)
        torch._foreach_mul_(moves, (1 - decay) * ~skipped)
        torch._foreach_add_(averages, moves)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the engine's module holds the average; afterwards its own weights again, to the bit."""
        average([self._average[name] for name in self._statistics], self._world)
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, value in self._sources.items():
            kept = value.detach().clone()
            value.copy_(self._average[name])
            self._average[name].copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """The whole average on rank 0 (elsewhere empty), for :data:`FILE`. Every rank calls this."""
        with self.in_place():
            whole = whole_state(self._engine.module, self._world)
            return {name: value.clone() for name, value in whole.items() if name in self._sources}

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Restore the average that :meth:`state` gave.

        Raises:
            CheckpointError: ``folder`` holds no average of these weights.
        """
        try:
            state: Mapping[str, Tensor] = load_file(folder / FILE)
        except OSError as error:
            raise CheckpointError(f"{folder / FILE}: cannot read the average of weights ({error.strerror or error})") from error
        if state.keys() != self._average.keys():
            other = sorted(state.keys() ^ self._average.keys())[0]
            raise CheckpointError(f"{folder / FILE}: holds averages of other weights ({other}); start over with --resume never")
        for name, value in state.items():
            self._average[name].copy_(value)
