"""The update of the weights, left out where the loss or a gradient of any rank is not finite, and decided on the device.

The host never learns of it in time: it has gone on to the next step. The fused AdamW takes a flag and a divisor that lie on the
device, which torch made for its gradient scaler: where ``found_inf`` is 1, weights, moments and the count of updates stay; else
gradients are divided by ``grad_scale``, which clips them on their way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sleepfm.training.ranks.distributed import World
from sleepfm.training.zero import leave_norm_and_clipping, wait_on_the_stream


class Update:
    """Norm, clipping and the decision for the steps of a DeepSpeed ``engine``, at any ZeRO stage alike.

    ``clip`` is the largest global norm of the gradients; 0 does not clip. Made once the engine's state is loaded.
    """

    def __init__(self, engine: Any, zero: int, clip: float, world: World) -> None:
        self._module, self._optimiser, self._clip, self._world = engine.module, engine.basic_optimizer, clip, world
        self._zero = engine.optimizer if zero else None
        if self._zero is not None:
            leave_norm_and_clipping(self._zero, clip)
            wait_on_the_stream(self._zero)
        for parameter, state in self._optimiser.state.items():
            if "step" in state:
                # Without the fused optimiser counts lay on the host.
                state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device)

    def squares(self) -> Tensor:
        """This rank's share, in fp64, of the sum of the squares of all gradients: the mean over ranks is that sum.

        Between the last backward pass of a step and its update.
        """
        if self._zero is None:
            # Every rank has the whole gradient.
            gradients = [parameter.grad for parameter in self._module.parameters() if parameter.grad is not None]
            share = 1
        else:
            gradients = [part for group in self._zero.averaged_gradients.values() for part in group]
            share = self._world.size
        return torch.stack(torch._foreach_norm(gradients)).double().square().sum() * share

    def decide(self, loss: Tensor, squares: Tensor) -> Tensor:
        """Whether the next update is left out, as a flag on the device; ``loss`` and ``squares`` are means over ranks."""
        norm = squares.sqrt()
        skip = ~(norm.isfinite() & loss.isfinite())
        self._optimiser.found_inf = skip.float()
        if self._clip:
            self._optimiser.grad_scale = ((norm + 1e-6) / self._clip).clamp(min=1).float()
        return skip
