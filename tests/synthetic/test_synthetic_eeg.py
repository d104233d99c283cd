"""The spectrum of the synthetic EEG beside that of people."""

from pathlib import Path

import numpy as np
import pytest
from scipy.signal import welch

from sleepfm.constants import Stage
from sleepfm.synthetic.eeg import RATE
from sleepfm.synthetic.night import draw_night

EPOCHS, PEOPLE = 240, 6
# One EEG channel in uV: file, its rate in Hz, stage.
EXCERPTS = [
    ("data_N2_spindles_15sec_200Hz.txt", 200, Stage.N2),
    ("data_N3_no-spindles_30sec_100Hz.txt", 100, Stage.N3),
]


def spectral_facts(signal: np.ndarray, rate: float) -> tuple[float, float]:
    """Exponent of the power law between 2 and 30 Hz, and log of the share of 16 to 30 Hz in the power of 0.4 to 30 Hz."""
    hertz, power = welch(signal, rate, nperseg=5 * rate)
    wide = (hertz >= 2) & (hertz <= 30)
    exponent = np.polyfit(np.log(hertz[wide]), np.log(power[wide]), 1)[0]
    beta = power[(hertz >= 16) & (hertz <= 30)].sum() / power[(hertz >= 0.4) & (hertz <= 30)].sum()
    return float(exponent), float(np.log(beta))


@pytest.fixture(scope="module")
def by_stage() -> dict[int, np.ndarray]:
    """Of each stage the facts of its epochs, [n, 2]."""
    facts: dict[int, list[tuple[float, float]]] = {stage: [] for stage in range(5)}
    for number in range(PEOPLE):
        night = draw_night(3, number, EPOCHS)
        for stage, epoch in zip(night.stages, night.signals["EEG"].reshape(-1, 30 * RATE), strict=True):
            facts[int(stage)].append(spectral_facts(epoch, RATE))
    return {stage: np.array(own) for stage, own in facts.items()}


def test_power_falls_faster_with_frequency_the_deeper_the_sleep(by_stage: dict[int, np.ndarray]) -> None:
    """Schneider et al. 2022, Front Neuroinform 16:989262: the slope is the steeper the deeper NREM sleep is."""
    exponents = [float(np.median(by_stage[stage][:, 0])) for stage in (Stage.W, Stage.N1, Stage.N2, Stage.N3)]
    assert exponents == sorted(exponents, reverse=True)
    assert exponents[0] > -1.9
    assert exponents[-1] < -2.3


@pytest.mark.parametrize(("file", "rate", "stage"), EXCERPTS)
def test_sleep_of_people_is_not_outside_of_what_is_drawn(
    by_stage: dict[int, np.ndarray], shared_data: Path, file: str, rate: int, stage: Stage
) -> None:
    found = spectral_facts(np.loadtxt(shared_data / "yasa" / file), rate)
    low, high = np.percentile(by_stage[stage], [1, 99], axis=0)
    assert (low <= found).all(), (found, low)
    assert (found <= high).all(), (found, high)
