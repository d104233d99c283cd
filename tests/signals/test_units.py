"""Units of voltage and percentage in the spellings of real headers."""

from __future__ import annotations

import pytest

from sleepfm.errors import MontageError
from sleepfm.signals.cohorts.units import to_canonical


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        *[
            (text, 1.0)
            for text in ("uV", "\u00b5V", "\u03bcV", "UV", "uv", "\u00c2\u00b5V", "microvolt", "uV.", " uV ", "muV", "MICROVOLTS")
        ],
        *[(text, 1.0) for text in ("micro V", "microV", "\u00b5Volt", "\u03bc V", "uVOLTS")],
        *[(text, 1e6) for text in ("V", "v", "Volt", "volts", "VOLT")],
        *[(text, 1e3) for text in ("mV", "mv", "mVolt", "millivolt", "milli-volts")],
        *[(text, 1e-3) for text in ("nV", "NV", "nanovolt", "nVolts")],
    ],
)
def test_voltages(unit, factor):
    assert to_canonical(unit, "uV") == pytest.approx(factor, rel=1e-12)
    assert to_canonical(unit, "mV") == pytest.approx(factor / 1e3, rel=1e-12)


@pytest.mark.parametrize("unit", ["", "  ", "MV", "dB", "Ohm", "V/s", "%", "kV", "u", "Vrms"])
def test_anything_else_is_no_voltage(unit):
    with pytest.raises(MontageError):
        to_canonical(unit, "uV")


def test_percentages_and_uncalibrated_signals():
    assert to_canonical("%", "%") == to_canonical("%SpO2", "%") == 1.0
    assert to_canonical("", "") == to_canonical("cmH2O", "") == 1.0
    with pytest.raises(MontageError):
        to_canonical("", "%")
