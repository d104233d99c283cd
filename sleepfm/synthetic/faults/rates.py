"""How often each fault happens, read from ``rates.yaml`` (sources stated there)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from sleepfm.config import Config, load_config
from sleepfm.synthetic.statistics import LogNormal

PATH = Path(__file__).with_name("rates.yaml")
LEAST_SECONDS = 3
Electrode = Literal["C3", "C4", "E1", "E2", "CHIN", "ECG", "FLOW", "THORAX", "ABDOMEN"]


class Share(Config):
    """A fault of the whole recording.

    Attributes:
        share: of recordings that have it.
    """

    share: float = Field(ge=0, le=1)

    def happens(self, rng: np.random.Generator) -> bool:
        """Whether this recording has it."""
        return bool(rng.random() < self.share)


class Length(Share):
    """A fault that lasts a while.

    Attributes:
        minutes: how long, log-normal.
        most: longest, as a share of the recording.
    """

    minutes: LogNormal
    most: float = Field(gt=0, le=1)

    def length(self, rng: np.random.Generator, seconds: int) -> int:
        """Seconds that it lasts in a recording of ``seconds``."""
        return int(np.clip(60.0 * self.minutes.draw(rng), LEAST_SECONDS, max(LEAST_SECONDS, self.most * seconds)))


class Stretches(Length):
    """A fault that comes and goes, anywhere in the recording.

    Attributes:
        more: mean number of stretches after the first, in recordings that have it.
    """

    more: float = Field(ge=0)

    def draw(self, rng: np.random.Generator, seconds: int) -> list[tuple[int, int]]:
        """First second and second after the last of each stretch, in order and apart; none where it does not happen."""
        found: list[tuple[int, int]] = []
        if not self.happens(rng):
            return found
        for _ in range(1 + int(rng.poisson(self.more))):
            length = self.length(rng, seconds)
            first = int(rng.integers(0, seconds - length + 1))
            if all(first >= stop or first + length <= start for start, stop in found):
                found.append((first, first + length))
        return sorted(found)


class ElectrodeOff(Stretches):
    """An electrode or sensor without contact.

    Attributes:
        open_input: share of them that record the noise of an open input; the others hum and drift out of range.
        weights: how likely each source is, relative to the others.
    """

    open_input: float = Field(ge=0, le=1)
    weights: dict[Electrode, float]


class ElectrodeLost(Share):
    """An electrode or sensor that comes off for good.

    Attributes:
        earliest, latest: when, as shares of the recording.
    """

    earliest: float = Field(ge=0, le=1)
    latest: float = Field(ge=0, le=1)


class LeftRunning(Length):
    """A recorder that runs on after the electrodes are off.

    Attributes:
        scored_wake: share of them whose scorer calls that time wake.
    """

    scored_wake: float = Field(ge=0, le=1)


class LegMovements(Share):
    """Periodic leg movements.

    Attributes:
        per_hour: of sleep, in people who have them.
    """

    per_hour: LogNormal


class Notes(Share):
    """A technician's free texts.

    Attributes:
        per_hour: of recording.
    """

    per_hour: float = Field(ge=0)


class Kindless(Share):
    """Apneas without their kind.

    Attributes:
        all_share: share of such scorings in which all apneas are without; half of them in the others.
    """

    all_share: float = Field(ge=0, le=1)


class FaultRates(Config):
    """All of ``rates.yaml``: one entry a fault, named as in the truth file."""

    electrode_off: ElectrodeOff
    electrode_lost: ElectrodeLost
    saturation: Stretches
    mains: Stretches
    ecg_in_eeg: Share
    sweat: Stretches
    snoring: Share
    leg_movements: LegMovements
    spo2_dropout: Stretches
    left_running: LeftRunning
    late_start: Length
    early_end: Length
    unscored: Stretches
    notes: Notes
    kindless_apnea: Kindless
    vocabulary: Share

    def only(self, *names: str) -> FaultRates:
        """These rates with every recording having each of ``names`` and no other fault."""
        return self.model_copy(
            update={
                name: getattr(self, name).model_copy(update={"share": 1.0 if name in names else 0.0})
                for name in FaultRates.model_fields
            }
        )


@cache
def default_rates() -> FaultRates:
    """The shipped rates."""
    return load_config(FaultRates, PATH)
