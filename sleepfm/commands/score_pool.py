"""The recordings of ``sleepfm score`` one after the other, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

from sleepfm.commands.score_inputs import Job
from sleepfm.commands.score_night import NightScorer, Outcome, Plan
from sleepfm.extras import require
from sleepfm.processes import process_pool

RAY_ADDRESS = "RAY_ADDRESS"
# Jobs that are handed out per worker: the next one waits while one is done.
_AHEAD = 2


def outcomes(plan: Plan, jobs: Sequence[Job], workers: int | None) -> Iterator[Outcome]:
    """What becomes of each of ``jobs``, as it is known; with workers in no certain order.

    On the cluster that ``RAY_ADDRESS`` names, whose nodes see the recordings and the results under the same names, else in
    ``workers`` processes here; by default in this one.
    """
    if os.environ.get(RAY_ADDRESS):
        yield from _on_ray(plan, jobs, workers)
    elif workers is None or workers == 1 or len(jobs) < 2:
        scorer = NightScorer(plan)
        yield from map(scorer.score, jobs)
    else:
        workers = min(workers, len(jobs))
        threads = max(1, (os.cpu_count() or 1) // workers)
        # One bar cannot tell of several nights at once.
        yield from _in_processes(replace(plan, threads=threads, progress=False), jobs, workers)


# The models of a process.
_scorer: list[NightScorer] = []


def _score(plan: Plan, job: Job) -> Outcome:
    if not _scorer:
        _scorer.append(NightScorer(plan))
    return _scorer[0].score(job)


def _in_processes(plan: Plan, jobs: Sequence[Job], workers: int) -> Iterator[Outcome]:
    waiting = list(reversed(jobs))
    doubtful: list[Job] = []
    while waiting:
        running: dict[Future[Outcome], Job] = {}
        with process_pool(workers) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < _AHEAD * workers:
                        job = waiting.pop()
                        try:
                            running[pool.submit(_score, plan, job)] = job
                        except BrokenProcessPool:
                            waiting.append(job)
                            raise
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        outcome = future.result()
                        del running[future]
                        yield outcome
            except BrokenProcessPool:
                # A process died. Nobody knows of which recording: each is tried in a process of its own.
                doubtful += running.values()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    for job in doubtful:
        with process_pool(1) as pool:
            try:
                yield pool.submit(_score, plan, job).result()
            except BrokenProcessPool:
                yield _died(job)


def _died(job: Job) -> Outcome:
    reason = f"{job.file}: its process ended without a message, perhaps because memory ran out; try fewer --workers"
    return Outcome("refused", job.file, reason=reason)


def _on_ray(plan: Plan, jobs: Sequence[Job], workers: int | None) -> Iterator[Outcome]:
    require("ray")
    from shards.cluster import cluster

    with cluster(workers or 1) as ray:
        resources: dict[str, float] = ray.cluster_resources()
        cpus = int(resources.get("CPU", 1))
        count = max(1, min(workers or cpus, len(jobs)))
        actor = ray.remote(num_cpus=1, max_restarts=0)(NightScorer)
        plan = replace(plan, threads=1, progress=False)
        idle: list[Any] = [actor.remote(plan) for _ in range(count)]
        waiting, running = list(reversed(jobs)), dict[Any, tuple[Any, Job]]()
        while waiting or running:
            while waiting and idle:
                worker, job = idle.pop(), waiting.pop()
                running[worker.score.remote(job)] = worker, job
            (done,), _ = ray.wait(list(running))
            worker, job = running.pop(done)
            try:
                outcome = ray.get(done)
            except ray.exceptions.RayActorError:
                outcome, worker = _died(job), actor.remote(plan)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            idle.append(worker)
            yield outcome
