"""Parameter counts and memory per rank by ZeRO stage, for ``--dry-run``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

_BYTES = 4  # parameters, gradients, and each of master copy, first and second moment are fp32


@dataclass(frozen=True)
class Size:
    """Numbers of parameters."""

    total: int
    trainable: int

    @staticmethod
    def of(module: nn.Module) -> Size:
        sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
        return Size(sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains))

    def bytes_per_rank(self, zero: int, processes: int, ema: bool = False) -> int:
        """Bytes of parameters, gradients and optimiser state on one rank (Rajbhandari et al. 2020, figure 1).

        ZeRO 1 shards the optimiser state (with its master copy), 2 also gradients. Activations are not counted.
        """
        gradients = self.trainable / (processes if zero == 2 else 1)
        moments = 2 * self.trainable if zero == 0 else 3 * self.trainable / processes
        average = self.trainable if ema else 0
        return round(_BYTES * (self.total + gradients + moments + average))

    def bytes_written(self, zero: int, keep: int, ema: bool = False) -> int:
        """The most bytes that a run has on disk at once: ``keep`` checkpoints and the one being written, and five times the
        weights: the best and those that take their place, what waits for its export, its package and the one that it replaces.

        A checkpoint holds parameters, optimiser state with its master copy, and the average of the weights, by all ranks.
        """
        state = (2 if zero == 0 else 3) * self.trainable
        checkpoint = self.total + state + (self.trainable if ema else 0)
        return _BYTES * ((keep + 1) * checkpoint + 5 * self.total)

    def describe(self, processes: int, ema: bool = False) -> str:
        """Lines for a person; ``ema`` says whether a moving average of the weights is kept."""
        lines = [f"parameters: {self.total:,}, of which {self.trainable:,} train"]
        for zero in range(3):
            gib = self.bytes_per_rank(zero, processes, ema) / 2**30
            note = ", with the average of the weights" if ema else ""
            lines.append(f"ZeRO {zero} on {processes} processes: {gib:.3f} GiB a rank without activations{note}")
        return "\n".join(lines)
