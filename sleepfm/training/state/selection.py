"""The best weights so far by the stated validation metric, kept in one file that is whole or absent."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

from sleepfm.errors import TrainingError
from sleepfm.registry.package import load_weights, save_weights
from sleepfm.training.run_config import RegistryConfig
from sleepfm.training.segments import Segment, counts


class Best:
    """Weights, step and figures of the best validation; figures travel in the weights file's header."""

    def __init__(self, path: Path, registry: RegistryConfig, segments: Sequence[Segment] = (Segment(0, {}),)) -> None:
        """``path`` is the file of the weights, which may hold those of the run that this one resumes.

        Weights of a step that the present one of its ``segments`` has not come through, or that were chosen by something else
        than now, do not count.
        """
        self._path = path
        self._registry = registry
        self._segment = len(segments) - 1
        self.step = 0
        self.figures: dict[str, float] = {}
        if self._path.exists():
            with safe_open(self._path, framework="pt") as file:
                metadata = file.metadata()
            if counts(int(metadata.get("segment", 0)), int(metadata["step"]), segments):
                self.step, self.figures = int(metadata["step"]), json.loads(metadata["figures"])

    def keep_if_better(self, step: int, figures: Mapping[str, float], state: Mapping[str, Tensor]) -> bool:
        """Keep ``state`` if the metric is strictly better than the best so far; the first is always kept.

        Raises:
            TrainingError: the stated metric is not among the figures.
            StorageError: the weights could not be written; the best before are untouched.
        """
        metric = self._registry.metric
        if metric not in figures:
            raise TrainingError(f"registry.metric={metric!r} is not validated; there are {', '.join(sorted(figures))}")
        if self.figures:
            new, old = figures[metric], self.figures[metric]
            better = new > old if self._registry.mode == "max" else new < old
            if not better and not (math.isnan(old) and not math.isnan(new)):
                return False
        metadata = {"step": str(step), "segment": str(self._segment), "figures": json.dumps(dict(figures))}
        save_weights(self._path, state, metadata)
        self.step, self.figures = step, dict(figures)
        return True

    def load_into(self, module: nn.Module) -> None:
        """Put the best weights into ``module``."""
        load_weights(module, self._path)
