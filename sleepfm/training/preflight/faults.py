"""Faults of a job that has not begun, of all its processes, in one list."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sleepfm.errors import ConfigError, PreflightError, SleepFMError


@dataclass(frozen=True)
class Fault:
    """Something that would end the job later: what was found and what to do, and whether the configuration is to blame."""

    text: str
    configured: bool = True

    @staticmethod
    def of(error: SleepFMError) -> Fault:
        """What ``error`` says."""
        return Fault(str(error), error.exit_status == ConfigError.exit_status)


def fault_of(work: Callable[[], object]) -> list[Fault]:
    """The error that ``work`` raises, as a fault."""
    try:
        work()
    except SleepFMError as error:
        return [Fault.of(error)]
    return []


def of_all_ranks(faults: Sequence[Sequence[Fault]], hosts: Sequence[str]) -> list[Fault]:
    """The faults of every rank, each once; what not every rank found is said with its hosts.

    Args:
        faults: by rank.
        hosts: name of each rank's host.
    """
    order: dict[Fault, list[int]] = {}
    for rank, found in enumerate(faults):
        for fault in found:
            order.setdefault(fault, []).append(rank)
    merged = []
    for fault, ranks in order.items():
        named = sorted({hosts[rank] for rank in ranks})
        everywhere = len(set(ranks)) == len(hosts) or len(set(hosts)) == 1
        merged.append(fault if everywhere else Fault(f"on {', '.join(named)}: {fault.text}", fault.configured))
    return merged


def refuse(faults: Iterable[Fault]) -> None:
    """Raises :class:`PreflightError` with the list of ``faults``, if there are any.

    Its exit status is 2 where the configuration is to blame for one of them: the same command would fail again.
    """
    found = list(faults)
    if not found:
        return
    if len(found) == 1:
        message = found[0].text
    else:
        lines = "\n".join(f"  {number}. {fault.text}" for number, fault in enumerate(found, 1))
        message = f"{len(found)} faults, found before the first step:\n{lines}"
    raise PreflightError(message, ConfigError.exit_status if any(fault.configured for fault in found) else 1)
