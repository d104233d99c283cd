"""Physical units of the header, scaled to the unit of the canonical channel."""

from __future__ import annotations

import re
import unicodedata

from sleepfm.errors import MontageError

# Powers of ten by which a prefix scales volts. "M" is left out: in EDF headers it is as likely a misspelt milli.
_PREFIX = {"": 0, "m": -3, "u": -6, "U": -6, "n": -9, "N": -9}
_VOLT = re.compile(r"(?P<prefix>[muUnN]?)\s*(?i:v|volts?)")
_SPELT = re.compile(r"(?i)(micro|milli|nano)[\s-]*v(?:olts?)?")
_SPELT_PREFIX = {"micro": "u", "milli": "m", "nano": "n"}
_PERCENT = {"%", "percent", "pct", "%spo2", "%sao2", "% spo2", "% sao2", "%sat"}
_CANONICAL_POWER = {"V": 0, "mV": -3, "uV": -6}


def normalise_unit(unit: str) -> str:
    """One spelling for each unit: both mu characters (U+00B5, U+03BC) and a UTF-8 mu read as Latin-1 are "u"."""
    text = unit.replace("\u00c2\u00b5", "u").replace("\u00ce\u00bc", "u")
    text = unicodedata.normalize("NFKC", text).replace("\u03bc", "u").strip().rstrip(".")
    text = text.replace("muV", "uV")
    spelt = _SPELT.fullmatch(text)
    return f"{_SPELT_PREFIX[spelt[1].casefold()]}V" if spelt else text


def to_canonical(unit: str, canonical: str) -> float:
    """Factor that turns values in ``unit`` into ``canonical`` ("uV", "mV", "%", or "" for uncalibrated).

    Raises:
        MontageError: a unit that is empty, unknown, or of another quantity. Nothing is assumed.
    """
    if canonical == "":
        return 1.0
    text = normalise_unit(unit)
    if canonical == "%":
        if text.casefold() in _PERCENT:
            return 1.0
        raise MontageError(f"unit {unit!r} is not a percentage")
    match = _VOLT.fullmatch(text)
    if match is None:
        what = "no unit is given" if not text else f"unit {unit!r} is not a voltage that is known"
        raise MontageError(f"{what}; {canonical} or a multiple is needed")
    return float(10.0 ** (_PREFIX[match["prefix"]] - _CANONICAL_POWER[canonical]))
