"""Shards that a build made by other rules or by another version of the code than it would now."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shards.build_config import BuildConfig, chosen_cohort, made_differently
from shards.plan import Plan
from shards.task import read_sidecar, sidecar_path
from sleepfm.config import digest
from sleepfm.data.format import DATASET_FILE
from sleepfm.errors import ConfigError
from sleepfm.signals.cohorts.catalogue import all_cohorts
from sleepfm.signals.cohorts.cohort import Cohort, rules_digest
from sleepfm.wording import counted, for_number

_SHOWN = 8


def stale_shards(out: Path, plan: Plan, wanted: dict[str, Any], config: BuildConfig) -> dict[str, str]:
    """Names of finished shards of ``plan`` that a build as ``wanted`` would make otherwise, each with the reason."""
    version = made_differently(plan.identity, wanted)
    now: dict[str, str] = {}
    found: dict[str, str] = {}
    for shard in plan.shards:
        sidecar = read_sidecar(out, shard, digest(plan.identity))
        if sidecar is None:
            continue
        made_by = sidecar.get("rules", {})
        now |= {name: _rules_now(name, config) for name in made_by if name not in now}
        changed = [name for name, rules in made_by.items() if rules and rules != now[name]]
        if version:
            found[shard.name] = version
        elif changed:
            found[shard.name] = f"by rules of cohort {', '.join(changed)} that have changed"
    return found


def refuse_stale(out: Path, plan: Plan, stale: dict[str, str]) -> None:
    """Raises :class:`ConfigError` that says which shards are ``stale`` and what to do; nothing without any."""
    if not stale:
        return
    names = ", ".join(list(stale)[:_SHOWN]) + (f" and {len(stale) - _SHOWN} more" if len(stale) > _SHOWN else "")
    reasons = "; ".join(dict.fromkeys(stale.values()))
    raise ConfigError(
        f"{out}: {len(stale)} of its {counted(len(plan.shards), 'shard')} {for_number(len(stale), 'was')} made differently from "
        f"how {for_number(len(stale), 'it')} would be made now ({reasons}): {names}. "
        "Use --rebuild to make them again, which changes the digest of the data set, or build into another folder. Until then "
        "the data set can be read as it is"
    )


def discard(out: Path, shards: Iterable[str]) -> None:
    """Take finished ``shards`` of this build, whose descriptions :func:`shards.task.read_sidecar` has read, for not done: the
    data set is none until the build is through.
    """
    (out / DATASET_FILE).unlink(missing_ok=True)
    for name in shards:
        sidecar_path(out, name).unlink(missing_ok=True)


def _rules_now(name: str, config: BuildConfig) -> str:
    """Digest of the rules of the cohort ``name``, empty if there is none any more."""
    rules = chosen_cohort(config)
    cohort = rules if isinstance(rules, Cohort) else (rules or all_cohorts()).named(name)
    return rules_digest(cohort) if cohort else ""
