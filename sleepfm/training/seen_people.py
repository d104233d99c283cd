"""Whom the model of a run has seen, kept in the run's folder from its first step on and in every package of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sleepfm.console import warn
from sleepfm.errors import RegistryError
from sleepfm.files import read_json, write_json
from sleepfm.registry.package import read_config
from sleepfm.registry.people import PeopleOfStage, Seen
from sleepfm.registry.registry import LEAK
from sleepfm.training import branch
from sleepfm.training.folder import RunFolder
from sleepfm.training.run_config import RunConfig
from sleepfm.training.stage import Stage


@runtime_checkable
class KnowsPeople(Protocol):
    """A stage that knows whom its model sees, with its encoders' ancestors."""

    @property
    def people(self) -> PeopleOfStage: ...


def keep_people(stage: Stage, config: RunConfig, folder: RunFolder, weights: Path | None) -> None:
    """Tell ``stage`` of whatever else the run starts from, and write ``people.json``; nothing for a stage that knows nobody.

    Args:
        weights: the file that ``config.init_from`` led to.

    Raises:
        LeakageError: a test person has been seen, and that is not allowed.
        StorageError: the file cannot be written.
    """
    if not isinstance(stage, KnowsPeople):
        return
    if weights is not None:
        stage.people.include(_of_weights(weights, config.init_from))
    if config.branch_from:
        stage.people.include(of_run(branch.parse(config.branch_from)[0]))
    if folder.people.exists():
        # The run has begun before, and may then have started from more.
        stage.people.include(of_run(folder))
    write_json(folder.people, stage.people.seen.to_plain())
    if stage.people.verdict and not stage.people.verdict.startswith("none"):
        warn(f"test people seen before: {stage.people.verdict}")


def of_run(folder: RunFolder) -> Seen:
    """Whom the run in ``folder`` has seen; unknown for one that began before this was kept."""
    try:
        kept = read_json(folder.people)
    except (OSError, ValueError):
        kept = None
    return Seen.from_plain(kept, str(folder.root)) if kept is not None else Seen({}, (f"{folder.root} (an earlier run)",))


def of_export(folder: RunFolder) -> dict[str, Any]:
    """What a package of the run says; nothing for a run that knows nobody."""
    return {"people": of_run(folder).to_plain()} if folder.people.exists() else {}


def tags_of(folder: RunFolder) -> dict[str, str]:
    """Tags of a version of the run; none for a run that knows nobody."""
    return of_run(folder).tags() if folder.people.exists() else {}


def leak_of(stage: Stage) -> dict[str, str]:
    """The tag of a version whose test people were seen before and which is judged by them all the same; else none."""
    verdict = stage.people.verdict if isinstance(stage, KnowsPeople) else ""
    return {LEAK: verdict} if verdict.startswith("LEAK") else {}


def _of_weights(weights: Path, address: str) -> Seen:
    try:
        return Seen.of_package(read_config(weights.parent), address)
    except RegistryError:
        # The best weights of a run, which has no package yet.
        return of_run(RunFolder(address))
