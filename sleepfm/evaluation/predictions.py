"""What a model said of every epoch of a split, beside the truth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sleepfm.errors import DatasetError
from sleepfm.files import atomic_path

# Columns of a file of predictions that hold kinds of events begin so.
_KIND = "kind_"


@dataclass(frozen=True)
class Predictions:
    """One row an epoch, in recording order: truth [N] (-1 unscored) and class probabilities [N, K] (nan
    unscorable); with an event head also the probability [N, 30] of an event in each second, and where the head tells kinds of
    events apart that of each of ``kinds`` [N, 30], if an event goes on.
    """

    record: NDArray[Any]
    subject: NDArray[Any]
    epoch: NDArray[np.int64]
    truth: NDArray[np.int64]
    probability: NDArray[np.float64]
    seconds: NDArray[np.float64] | None = None
    kinds: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @classmethod
    def none(cls) -> Predictions:
        """Of no epoch."""
        number = np.empty(0, np.int64)
        return cls(np.empty(0, object), np.empty(0, object), number, number, np.empty((0, 0)))

    @classmethod
    def read(cls, path: Path) -> Predictions:
        """What :meth:`write` wrote.

        Raises:
            DatasetError: it cannot be read as predictions.
        """
        import pandas as pd

        try:
            table = pd.read_parquet(path)
            classes = [name for name in table.columns if re.fullmatch(r"p\d+", name)]
            record, subject, epoch, truth = (table[name].to_numpy() for name in ("record", "subject", "epoch", "truth"))
            probability = table[classes].to_numpy(float)
        except (OSError, ValueError, KeyError) as error:
            raise DatasetError(f"{path}: cannot be read as predictions ({error}); train again") from error
        listed = [name for name in table.columns if name == "seconds" or name.startswith(_KIND)]
        found = {name: np.stack(table[name].to_list()).astype(float) for name in listed}
        seconds = found.pop("seconds", None)
        kinds = {name.removeprefix(_KIND): values for name, values in found.items()}
        return cls(record, subject, epoch, truth, probability, seconds, kinds)

    @property
    def scored(self) -> NDArray[np.bool_]:
        """[N], whether the model gave a probability."""
        return np.asarray(np.isfinite(self.probability).all(axis=1))

    def write(self, path: Path) -> None:
        """Write one Parquet row an epoch, numbered from 1 as in every file, with columns ``p0`` to ``p<K-1>``."""
        import pandas as pd

        table: dict[str, Any] = {
            "record": self.record,
            "subject": self.subject,
            "epoch": self.epoch + 1,
            "truth": self.truth,
        }
        table |= {f"p{k}": self.probability[:, k].astype(np.float32) for k in range(self.probability.shape[1])}
        if self.seconds is not None:
            table["seconds"] = list(self.seconds.astype(np.float32))
        table |= {f"{_KIND}{name}": list(values.astype(np.float32)) for name, values in self.kinds.items()}
        with atomic_path(path) as temporary:
            pd.DataFrame(table).to_parquet(temporary, index=False)
