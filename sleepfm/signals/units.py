"""Physical units as files spell them, and their factors to the canonical ones. An unknown one is never assumed."""

from __future__ import annotations

from sleepfm.errors import MontageError

# U+00B5 (micro sign) and U+03BC (Greek mu) look alike; both occur, also as latin-1.
_VOLTS = {"v": 1.0, "mv": 1e-3, "uv": 1e-6, "\u00b5v": 1e-6, "\u03bcv": 1e-6, "nv": 1e-9}
_VOLTS |= {"volt": 1.0, "volts": 1.0, "millivolt": 1e-3, "microvolt": 1e-6, "microvolts": 1e-6}
_PERCENT = {"%": 1.0, "percent": 1.0, "%spo2": 1.0, "%sao2": 1.0}


def factor(unit: str, canonical: str) -> float:
    """What a value in ``unit`` is multiplied by to be in ``canonical`` (``uV``, ``mV``, ``%`` or ``""`` for unitless).

    Raises:
        MontageError: ``unit`` is not a known spelling of a unit of that kind.
    """
    if canonical == "":
        return 1.0  # flow and effort: whatever the amplifier gave, scaled per record later
    spelled = unit.strip().casefold().replace(" ", "")
    known = _PERCENT if canonical == "%" else _VOLTS
    if spelled not in known:
        raise MontageError(
            f"unit {unit!r} is none of {', '.join(sorted(known))}; state it in the cohort's rule as `unit:`"
        )
    return known[spelled] / (1.0 if canonical == "%" else _VOLTS[canonical.casefold()])
