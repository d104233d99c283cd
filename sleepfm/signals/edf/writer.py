"""Write plain EDF with 1-s data records (Kemp et al. 1992, Electroenceph Clin Neurophysiol 82:391)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Written at a time, to bound memory.
BLOCK_SECONDS = 1800


@dataclass(frozen=True)
class Channel:
    """Header of one signal; ``rate`` is samples a record of 1 s. Physical limits are text, as NSRR writes
    them."""

    label: str
    unit: str
    rate: int
    physical_min: str
    physical_max: str
    digital_min: int
    digital_max: int

    def digitise(self, values: Floats) -> np.ndarray:
        """``values`` [T * rate] in physical units as little-endian int16, clipped to the digital range."""
        low, high = float(self.physical_min), float(self.physical_max)
        gain = (self.digital_max - self.digital_min) / (high - low)
        digital = np.rint((values - np.float32(low)) * np.float32(gain) + np.float32(self.digital_min))
        return np.clip(digital, self.digital_min, self.digital_max).astype("<i2")


def write_edf(path: Path, channels: Sequence[Channel], signals: Iterable[Floats], seconds: int, start: str) -> None:
    """Write ``signals`` (each [seconds * rate]) under anonymous identification; ``start`` is the hh.mm.ss of
    01.01.85."""
    digital = [channel.digitise(signal).reshape(seconds, channel.rate) for channel, signal in zip(channels, signals, strict=True)]
    with path.open("wb") as file:
        file.write(edf_header(channels, seconds, start))
        for first in range(0, seconds, BLOCK_SECONDS):
            records = [values[first : first + BLOCK_SECONDS] for values in digital]
            file.write(np.concatenate(records, axis=1).data)


def edf_header(channels: Sequence[Channel], seconds: int, start: str) -> bytes:
    """The header of a file as :func:`write_edf` makes it; samples follow, int16, record after record."""
    count = len(channels)
    fields: list[tuple[int, Sequence[object]]] = [
        (8, ["0"]),
        (80, [""]),
        (80, [""]),
        (8, ["01.01.85"]),
        (8, [start]),
        (8, [256 * (count + 1)]),
        (44, [""]),
        (8, [seconds]),
        (8, ["1"]),
        (4, [count]),
        (16, [channel.label for channel in channels]),
        (80, [""] * count),
        (8, [channel.unit for channel in channels]),
        (8, [channel.physical_min for channel in channels]),
        (8, [channel.physical_max for channel in channels]),
        (8, [channel.digital_min for channel in channels]),
        (8, [channel.digital_max for channel in channels]),
        (80, [""] * count),
        (8, [channel.rate for channel in channels]),
        (32, [""] * count),
    ]
    text = "".join(str(value).ljust(width) for width, values in fields for value in values)
    return text.encode("ascii")
