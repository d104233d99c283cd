"""Groups of people by age, sex and severity of sleep apnea: for figures of each, and for splits that have them alike."""

from __future__ import annotations

from sleepfm.signals.people import Person

# Age in years, and apneas and hypopneas an hour: limits of mild, moderate and severe sleep apnea in adults (AASM Task Force,
# Sleep 1999;22:667). A group goes from one limit to before the next.
_LIMITS = {"age": (18, 40, 60, 80), "ahi": (5, 15, 30)}
GROUPINGS = ("age", "sex", "ahi")
UNKNOWN = "not known"


def group_of(person: Person, grouping: str) -> str:
    """The group of ``person`` by ``age``, ``sex`` or ``ahi``; :data:`UNKNOWN` where that is not known."""
    value = getattr(person, grouping)
    if value is None:
        return UNKNOWN
    return str(value) if grouping == "sex" else _band(float(value), _LIMITS[grouping])


def groups(grouping: str) -> tuple[str, ...]:
    """The groups of ``grouping`` in order, the unknown last."""
    if grouping == "sex":
        return ("female", "male", UNKNOWN)
    limits = _LIMITS[grouping]
    return (*(_band(value, limits) for value in (limits[0] - 1, *limits)), UNKNOWN)


def _band(value: float, limits: tuple[int, ...]) -> str:
    above = [limit for limit in limits if value >= limit]
    below = [limit for limit in limits if value < limit]
    if not above:
        return f"below {below[0]}"
    return f"{above[-1]} to below {below[0]}" if below else f"{above[-1]} and above"
