"""People: what age, sex, sickness and medication make of a person of the population."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from sleepfm.errors import ConfigError
from sleepfm.synthetic.subject import AGING, Subject, at_age
from sleepfm.synthetic.variety.config import (
    Age,
    AlphaIntrusion,
    Apnea,
    PerHour,
    Sex,
    Some,
    Traits,
    Variety,
    WithoutAtonia,
    ratio,
    uniform,
)

# Traits that a ratio can change; the others are places, counts and names.
_RATIOS = {item.name for item in fields(Subject)} - {"number", "seed", "age", "sex"}
# A share cannot go beyond these, and no body does what lies beyond.
_LIMITS = {
    "rem_tone": (0.05, 1.2),
    "apnea_share": (0.0, 1.0),
    "central_share": (0.0, 1.0),
    "snore": (0.05, 0.95),
    "alpha_hz": (6.8, 13.0),
    "spindle_hz": (11.3, 15.3),
    "breath_hz": (0.15, 0.45),
    "heart_rate": (42.0, 105.0),
    "fragmentation": (0.5, 3.5),
    "depth": (0.02, 3.0),
    "wakefulness": (0.3, 8.0),
}


def vary(subject: Subject, variety: Variety) -> Subject:
    """``subject`` with what the knobs of ``variety`` make of it.

    Each knob draws from a stream of its own: a pure function of the cohort's seed, the person and the knob.

    Raises:
        ConfigError: a knob names a trait that nobody has.
    """
    knobs: list[tuple[str, object, Callable[..., dict[str, float | str]]]] = [
        ("age", variety.age, _age),
        # Before sex, by which the number of events differs.
        ("apnea", variety.apnea, _apnea),
        ("sex", variety.sex, _sex),
        ("traits", variety.traits, _traits),
        ("insomnia", variety.insomnia, _some),
        ("alpha_intrusion", variety.alpha_intrusion, _alpha_intrusion),
        ("rem_without_atonia", variety.rem_without_atonia, _without_atonia),
        ("medication", variety.medication, _some),
        ("arousals", variety.arousals, _arousals),
        ("ectopic", variety.ectopic, _ectopic),
    ]
    drawn = subject
    for name, section, draw in knobs:
        if section is not None:
            changes: dict[str, Any] = draw(drawn, section, subject.rng(f"variety/{name}"))
            drawn = replace(drawn, **changes)
    bounded: dict[str, Any] = {
        name: float(np.clip(value, *limits))
        for name, limits in _LIMITS.items()
        if (value := getattr(drawn, name)) != getattr(subject, name)
    }
    return replace(drawn, **bounded)


def _age(subject: Subject, age: Age, rng: np.random.Generator) -> dict[str, float | str]:
    years = uniform(rng, age.years)
    found: dict[str, float] = {}
    for trait, trend in age.trends.items():
        median = np.exp(np.interp(years, list(trend), np.log(list(trend.values()))))
        own = at_age(trait, subject.age) if trait in AGING else 1.0
        found[trait] = float(median / own)
    # Old people may have no deep sleep at all, and it is not drawn again until they do.
    return {"age": years, "least_share": 0.0} | _times(subject, found)


def _sex(subject: Subject, sex: Sex, rng: np.random.Generator) -> dict[str, float | str]:
    female = rng.random() < sex.female
    half = {trait: float(value ** (0.5 if female else -0.5)) for trait, value in sex.ratios.items()}
    return {"sex": "female" if female else "male"} | _times(subject, half)


def _traits(subject: Subject, traits: Traits, rng: np.random.Generator) -> dict[str, float | str]:
    return _times(subject, {trait: ratio(rng, bounds) for trait, bounds in traits.ratios.items()})


def _some(subject: Subject, some: Some, rng: np.random.Generator) -> dict[str, float | str]:
    has, drawn = rng.random() < some.share, {trait: ratio(rng, bounds) for trait, bounds in some.ratios.items()}
    return _times(subject, drawn) if has else {}


def _apnea(subject: Subject, apnea: Apnea, rng: np.random.Generator) -> dict[str, float | str]:
    few, central = rng.random() < apnea.none, rng.random() < apnea.central
    index = ratio(rng, apnea.index)
    own = uniform(rng, (0.0, apnea.few)) if few else index
    shares = {"apnea_share": uniform(rng, apnea.apnea_share), "mixed_share": uniform(rng, apnea.mixed_share)}
    central_share = float(rng.beta(4.0, 1.5) if central else rng.beta(1.0, 8.0))
    drawn = {trait: ratio(rng, bounds) for trait, bounds in apnea.ratios.items()}
    return {"index": own, "central_share": central_share, **shares} | _times(subject, drawn)


def _alpha_intrusion(subject: Subject, alpha: AlphaIntrusion, rng: np.random.Generator) -> dict[str, float | str]:
    has, size = rng.random() < alpha.share, ratio(rng, alpha.microvolts)
    return {"alpha_intrusion": size if has else 0.0}


def _without_atonia(subject: Subject, rem: WithoutAtonia, rng: np.random.Generator) -> dict[str, float | str]:
    has, share = rng.random() < rem.share, uniform(rng, rem.of_rem)
    return {"rem_without_atonia": share} if has else {}


def _arousals(subject: Subject, arousals: PerHour, rng: np.random.Generator) -> dict[str, float | str]:
    has, often = rng.random() < arousals.share, ratio(rng, arousals.per_hour)
    return {"arousals_per_hour": often} if has else {}


def _ectopic(subject: Subject, ectopic: PerHour, rng: np.random.Generator) -> dict[str, float | str]:
    has, often = rng.random() < ectopic.share, ratio(rng, ectopic.per_hour)
    return {"ectopic_per_hour": often} if has else {}


def _times(subject: Subject, ratios: Mapping[str, float]) -> dict[str, float | str]:
    """Traits of ``subject`` multiplied by ``ratios``."""
    unknown = sorted(ratios.keys() - _RATIOS)
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: not a trait of a person; the traits are {', '.join(sorted(_RATIOS))}")
    return {trait: getattr(subject, trait) * value for trait, value in ratios.items()}
