"""The best weights so far by the stated validation metric, kept in one file that is whole or absent."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from sleepfm.errors import CheckpointError, TrainingError
from sleepfm.registry.package import load_weights
from sleepfm.training.run_config import RegistryConfig
from sleepfm.training.segments import Segment, counts
from sleepfm.training.state import sealed


class Best:
    """Weights, step and figures of the best validation; figures travel in the weights file's header."""

    def __init__(self, path: Path, registry: RegistryConfig, segments: Sequence[Segment] = (Segment(0, {}),)) -> None:
        """``path`` is the file of the weights, which may hold those of the run that this one resumes.

        Weights of a step that the present one of its ``segments`` has not come through, or that were chosen by something else
        than now, do not count. Only the header is read here; see :func:`sleepfm.training.state.sealed.check`.

        Raises:
            CheckpointError: the file is no whole file of weights.
        """
        self._path = path
        self._registry = registry
        self._segment = len(segments) - 1
        self.step = 0
        self.figures: dict[str, float] = {}
        if self._path.exists():
            segment, step, figures = read_facts(sealed.read_header(self._path), self._path)
            if counts(segment, step, segments):
                self.step, self.figures = step, figures

    def keep_if_better(self, step: int, figures: Mapping[str, float], state: Mapping[str, Tensor]) -> bool:
        """Keep ``state`` if the metric is strictly better than the best so far; the first is always kept.

        Raises:
            TrainingError: the stated metric is not among the figures.
            StorageError: the weights could not be written; the best before are untouched.
        """
        metric = self._registry.metric
        if metric not in figures:
            raise TrainingError(
                f"registry.metric={metric!r} is not among the validated figures; these are {', '.join(sorted(figures))}"
            )
        if self.figures:
            new, old = figures[metric], self.figures[metric]
            better = new > old if self._registry.mode == "max" else new < old
            if not better and not (math.isnan(old) and not math.isnan(new)):
                return False
        metadata = {"step": str(step), "segment": str(self._segment), "figures": json.dumps(dict(figures))}
        sealed.save(self._path, state, metadata)
        self.step, self.figures = step, dict(figures)
        return True

    def load_into(self, module: nn.Module) -> None:
        """Put the best weights into ``module``.

        Raises:
            CheckpointError: they are not as they were written.
            ModelError: they do not fit.
        """
        sealed.check(self._path)
        load_weights(module, self._path)


def read_facts(header: Mapping[str, str], path: Path) -> tuple[int, int, dict[str, float]]:
    """Segment, step and figures that the header of the best weights in ``path`` states.

    Raises:
        CheckpointError: it does not.
    """
    try:
        return int(header.get("segment", 0)), int(header["step"]), dict(json.loads(header["figures"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its header does not say which validation the weights belong to") from error
