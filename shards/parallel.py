"""A function of many arguments on Ray: as many tasks as the cluster has CPUs, and results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from shards.capacity import Capacity
from shards.memory import BASE_BYTES
from shards.schedule import IN_FLIGHT_PER_CPU
from sleepfm.errors import ShardError, SleepFMError

Result = TypeVar("Result")
_RETRIES = 3


def starmap(
    ray: Any,
    function: Callable[..., Result],
    arguments: Iterable[tuple[Any, ...]],
    patience: float,
    say: Callable[[str], object],
) -> Iterator[Result]:
    """As :func:`itertools.starmap`, in Ray tasks; few of ``arguments`` are taken ahead.

    Args:
        patience: seconds that the cluster may be without a node that has a CPU.
        say: takes lines about what is waited for.

    Raises:
        SleepFMError: the function's own, as it is.
        ShardError: a task died several times, or there was no node for too long.
    """
    capacity = Capacity(ray, BASE_BYTES, "auto", patience, say)
    remote = ray.remote(num_cpus=1, memory=BASE_BYTES, max_retries=_RETRIES)(function)
    waiting, running = iter(arguments), deque[Any]()
    while True:
        capacity.look()
        limit = max(1, IN_FLIGHT_PER_CPU * capacity.cpus)
        while len(running) < limit and (given := next(waiting, None)) is not None:
            running.append(remote.remote(*given))
        if not running:
            return
        if not ray.wait([running[0]], timeout=1.0)[0]:
            continue
        try:
            result = ray.get(running.popleft())
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, SleepFMError):
                raise cause from error
            raise ShardError(f"a task of the Ray cluster failed: {str(error).strip().splitlines()[-1]}") from error
        yield result
