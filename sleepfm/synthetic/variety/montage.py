"""EEG derivations: what other electrodes than C3 and C4, and other references than the opposite mastoid, see of one night.

The night gives C3 and C4 against the opposite mastoid. Other sites are made of what these have in common, with the shares of
slow waves, faster rhythms and blinks that :mod:`sleepfm.synthetic.eog` has for the front of the head, and a part of their own.
A mastoid sees part of the hemisphere beside it, temporal activity and the ECG.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.signal import butter, resample_poly, sosfiltfilt

from sleepfm.errors import ConfigError
from sleepfm.synthetic.eeg import RATE
from sleepfm.synthetic.night import Night
from sleepfm.synthetic.noise import Floats, band_noise, power_law, upsample

# Of what C3 and C4 have in common below 4 Hz, above it, and of a blink above the eye. Slow waves are largest at the front of the
# head (Massimini et al. 2004, J Neurosci 24:6862); how much each site sees is chosen.
SITES = {"Cz": (1.05, 1.05, 0.05), "Fz": (1.15, 0.75, 0.35), "Fpz": (1.15, 0.5, 0.6)}
# Part of a site's signal that no other site has.
OWN = 0.3
# Share of the hemisphere that the mastoid beside it sees, its own activity (µV), and the ECG (µV for mV).
MASTOID_SHARE, MASTOID_UV, MASTOID_ECG_UV = 0.2, 5.0, (5.0, 30.0)
# As the night has them.
DRAWN = {"C3-M2": "EEG(sec)", "C4-M1": "EEG"}
_SLOW = butter(2, 4.0, fs=RATE, output="sos")


def rederive(night: Night, first: str, second: str) -> Night:
    """``night`` with the derivations ``first`` and ``second`` (such as ``Fpz-Cz``; ``LE`` is the mean of both mastoids) in the
    places of C3 and C4.

    Raises:
        ConfigError: a site that is not drawn.
    """
    if (first, second) == tuple(DRAWN):
        return night
    site = _sites(night)
    signals = dict(night.signals)
    for name, place in ((first, "EEG(sec)"), (second, "EEG")):
        if name in DRAWN:
            signals[place] = night.signals[DRAWN[name]]
        else:
            active, _, reference = name.partition("-")
            signals[place] = site(active) - site(reference)
    return replace(night, signals=signals)


def _sites(night: Night) -> Callable[[str], Floats]:
    """A function that gives the potential [T * 125] in µV at a site; each is drawn once, from a stream of its own."""
    c3, c4 = night.signals["EEG(sec)"], night.signals["EEG"]
    common = (c3 + c4) / np.float32(2.0)
    slow: Floats = sosfiltfilt(_SLOW, common).astype(np.float32)
    drawn: dict[str, Floats] = {"C3": c3, "C4": c4}

    def site(name: str) -> Floats:
        if name not in drawn:
            drawn[name] = make(name)
        return drawn[name]

    def make(name: str) -> Floats:
        rng = night.subject.rng(f"site/{name}")
        if name == "LE":
            return (site("M1") + site("M2")) / np.float32(2.0)
        if name in ("M1", "M2"):
            own = np.float32(MASTOID_UV) * band_noise(rng, len(c3), RATE, 0.3, 60.0, power_law(1.2))
            heart = np.float32(rng.uniform(*MASTOID_ECG_UV)) * night.signals["ECG"]
            return np.float32(MASTOID_SHARE) * (c3 if name == "M1" else c4) + own + heart
        if name not in SITES:
            raise ConfigError(f"montage: site {name!r} is unknown; the sites are C3, C4, {', '.join(SITES)}, M1, M2 and LE")
        low, high, blink = (np.float32(share) for share in SITES[name])
        size = np.sqrt(np.square(common).reshape(-1, RATE).mean(axis=1))
        own = band_noise(rng, len(c3), RATE, 0.3, 60.0, power_law(1.6, knee=1.0)) * upsample(np.float32(OWN) * size, RATE)
        blinks = resample_poly(night.signals["blinks"], 5, 2)[: len(c3)].astype(np.float32)
        return low * slow + high * (common - slow) + blink * blinks + own

    return site
