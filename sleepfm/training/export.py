"""Packages of a run: every new best while it goes on, the best and the last at its end, each load-tested and registered.

In the run's folder ``package`` is the best so far and ``last`` the weights of the last step; both are whole packages or absent.
While training goes on, a thread of rank 0 does what takes time (digests, the load test in a process of its own, MLflow), one
package at a time; if several wait, the newest is taken and the others are left out. What was asked for and not finished when a
job died stands in ``.export-STEP`` and is taken up by the run that goes on.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sleepfm.config import to_dict
from sleepfm.console import say, warn
from sleepfm.data.identity import as_digest
from sleepfm.errors import CheckpointError, RegistryError, SleepFMError
from sleepfm.files import read_json, write_json
from sleepfm.output import MARKER, Origin, whole_folder
from sleepfm.registry import registry
from sleepfm.registry.artifacts import attach, seconds_for
from sleepfm.registry.load_test import LoadTest
from sleepfm.registry.package import WEIGHTS, copy_file, link_or_copy, read_config, verify, write_package
from sleepfm.registry.promotion import CHAMPION, comparison, promote
from sleepfm.registry.pruning import prune
from sleepfm.registry.scorer_version import SCORER, bind_champions
from sleepfm.training.folder import NOTE, RunFolder
from sleepfm.training.observer import Observer
from sleepfm.training.run_config import RunConfig
from sleepfm.training.seen_people import leak_of, of_export, tags_of
from sleepfm.training.stage import DrawsFromValidation, Export, Stage
from sleepfm.training.state import sealed
from sleepfm.training.state.selection import Best
from sleepfm.training.tracking.recorder import common_tags
from sleepfm.training.tracking.tracker import Tracker

LAST_ALIAS = "last"
_RETRY_SECONDS = 60.0


@dataclass(frozen=True)
class Weights:
    """Weights of one step, in a file, with what their stage says of them."""

    path: Path
    step: int
    figures: dict[str, float]
    export: Export


class Exporter(Observer):
    """Rank 0's exports of one run.

    ``steps`` is the length of the run, ``tracker`` knows the tracking run. With ``registry.every_best`` a new best is exported
    and registered as it is found.
    """

    def __init__(self, stage: Stage, config: RunConfig, store: str, tracker: Tracker, steps: int) -> None:
        self._stage, self._config, self._store, self._tracker, self._steps = stage, config, store, tracker, steps
        self._folder = RunFolder(config.train.output)
        self._tags = common_tags(stage, config) | leak_of(stage) | {"selected_by": config.registry.metric}
        # Now, while every rank still holds them whole.
        self._parameters = sum(parameter.numel() for parameter in stage.module.parameters())
        # Written, read, loaded and uploaded.
        self._patience = seconds_for(4 * 4 * self._parameters)
        self._load_test: LoadTest | None = None
        self._wake = threading.Condition()
        self._pending: Path | None = None
        self._busy: Path | None = None
        self._closing = False
        self._thread: threading.Thread | None = None
        left = [folder for folder in self._folder.all_waiting() if (folder / NOTE).exists()]
        if left and config.registry.every_best:
            self._submit(left[-1])

    def validated(
        self, step: int, figures: Mapping[str, float], module: nn.Module, state: Mapping[str, Tensor], best: bool
    ) -> None:
        """Take what the exports of these weights need."""
        if best:
            self._folder.record_best(sealed.read_header(self._folder.best))
        last = step == self._steps
        # The best weights of the last step are exported by `conclude`, once it has read `test`.
        if best == last or (best and not self._config.registry.every_best):
            return
        with tempfile.TemporaryDirectory() as scratch:
            export = self._stage.export(module, Path(scratch), final=False)
        assert export is not None
        note = {"step": step, "figures": dict(figures), "export": asdict(export)}
        try:
            folder = self._folder.last_waiting if last else self._folder.waiting(step)
            self._folder.begin_waiting(folder)
            if last:
                sealed.save(folder / WEIGHTS, state, {"step": str(step)})
            else:
                # Under another name: the next best replaces the file.
                link_or_copy(self._folder.best, folder / WEIGHTS)
            write_json(folder / NOTE, note)
        except OSError as error:
            self._warn(error)
            return
        if best:
            self._submit(folder)

    def ends_early(self, step: int) -> None:
        """The weights of ``step`` are the last."""
        self._steps = step
        say(f"{self._stage.name}: ends at step {step}, {self._config.train.patience} validations after the best")

    def report(self, step: int, row: dict[str, Any]) -> None:
        """With the last step: start the process that will load the last packages, so that it is ready when they are."""
        if step == self._steps:
            self._prepare()

    def _prepare(self) -> None:
        if self._load_test is None:
            self._load_test = LoadTest()

    def conclude(self, best: Best, export: Export, seconds: float, observer: Observer) -> dict[str, Any]:
        """After the last step: write and load-test ``package`` (``export`` is what the stage says of the best weights) and
        ``last``, then the result. ``observer`` is told of the final figures, and of how far this has come.

        Raises:
            RegistryError: a package that does not load in a fresh process.
        """
        self._prepare()
        assert self._load_test is not None
        folder = self._folder
        observer.exported(self._steps, export.metrics)
        observer.goes_on("waiting for the export before", self._patience)
        self._stop(wait=True)
        observer.goes_on("writing the package and loading it", self._patience)
        chosen = Weights(folder.best, best.step, best.figures, export)
        tags, training = self._write(chosen, folder.package)
        result = {
            "finished": True,
            "name": self._config.registry.name,
            "steps": self._steps,
            "best_step": best.step,
            "metrics": training["metrics"],
            "tags": tags,
            "parents": training["parents"],
            "seconds": round(seconds, 1),
            "segment": len(folder.segments()) - 1,
        }
        self._load_test.check(folder.package, export.builder)
        if best.step == self._steps:
            with whole_folder(folder.last, self._origin(folder.last)) as copy:
                for file in folder.package.iterdir():
                    if file.name != MARKER:
                        copy_file(file, copy / file.name)
        else:
            observer.goes_on("writing the last package and loading it", self._patience)
            if (last := self._last()) is not None:
                tags, training = self._write(last, folder.last)
                result["last"] = {"step": last.step, "metrics": training["metrics"], "tags": tags}
                self._load_test.check(folder.last, last.export.builder)
        self._load_test.close()
        folder.write_result(result)
        for waiting in (folder.last_waiting, *folder.all_waiting()):
            folder.end_waiting(waiting)
        return result

    def _last(self) -> Weights | None:
        """The weights of the last step, if they wait for their package and are whole. That they are not is said: they are beside
        the result.
        """
        if not self._folder.last_waiting.exists() and self._last_is_written():
            return None
        try:
            last = _read(self._folder.last_waiting)
            sealed.check(last.path)
        except CheckpointError as error:
            text = f"{error}; {self._folder.last} is not written: only the last checkpoint has the weights of step {self._steps}"
            warn(f"{self._stage.name}: {text}")
            return None
        return last

    def _last_is_written(self) -> bool:
        """Whether ``last`` is of the last step already: the run has come to its end before."""
        folder = self._folder.last
        return folder.is_dir() and read_config(folder).get("training", {}).get("step") == self._steps

    def register(self, result: Mapping[str, Any], observer: Observer) -> dict[str, Any]:
        """Register what :meth:`conclude` packaged; see :func:`register`."""
        observer.goes_on("registering", self._patience)
        return register(self._config, result, self._tracker.wait_for_run(), self._store)

    def close(self) -> None:
        """Start no other package; one that is being made is left to the run that goes on."""
        self._stop(wait=False)

    def _stop(self, wait: bool) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None and wait:
            self._thread.join()

    def _origin(self, package: Path) -> Origin:
        return self._folder.origin(package, self._config.registry.name)

    def _submit(self, folder: Path) -> None:
        with self._wake:
            self._pending = folder
            kept = (folder, self._busy)
            self._wake.notify()
        for other in self._folder.all_waiting():
            if other not in kept:
                self._folder.end_waiting(other)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="export", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        failed: Path | None = None
        while True:
            with self._wake:
                self._busy = None
                self._wake.wait_for(lambda: self._closing or self._pending, _RETRY_SECONDS if failed else None)
                if self._closing:
                    return
                folder = self._busy = self._pending or failed
                self._pending = None
            assert folder is not None
            try:
                self._publish(_read(folder))
            except Exception as error:  # whatever it is, training goes on; the last export tries again, and raises
                if folder != failed and not self._closing:
                    self._warn(error)
                failed = folder
            else:
                failed = None
                self._folder.end_waiting(folder)

    def _warn(self, error: Exception) -> None:
        reason = str(error).splitlines()[0] if isinstance(error, SleepFMError) else repr(error)
        warn(f"{self._stage.name}: weights not exported yet ({reason})")

    def _run_id(self) -> str:
        """The tracking run, as soon as the server has answered.

        Raises:
            RegistryError: the exporter is being closed.
        """
        while not self._closing:
            try:
                return self._tracker.wait_for_run(1.0)
            except RegistryError:
                continue
        raise RegistryError(f"{self._store}: no answer by the end of training")

    def _publish(self, weights: Weights) -> None:
        tags, training = self._write(weights, self._folder.package)
        with LoadTest() as load_test:
            load_test.check(self._folder.package, weights.export.builder)
        done = {"name": self._config.registry.name, "tags": tags, "metrics": training["metrics"], "parents": training["parents"]}
        done |= register(self._config, done, self._run_id(), self._store)
        print(f"{self._stage.name}: step {weights.step} is the best so far; {describe(self._config, done)}", flush=True)

    def _write(self, weights: Weights, target: Path) -> tuple[dict[str, str], dict[str, Any]]:
        """Make ``target`` the package of ``weights``, at once; its tags and what it says of the training."""
        training = {
            "stage": self._stage.name,
            "steps": self._steps,
            "step": weights.step,
            "selected_by": {"metric": self._config.registry.metric, "mode": self._config.registry.mode},
            "metrics": weights.figures | weights.export.metrics,
            "dataset_digest": str(self._stage.dataset_digest),
            **as_digest(self._stage.dataset_digest).to_record(),
            "parents": [*self._stage.parents, *self._folder.initial_versions(self._config)],
            "config": to_dict(self._config),
            **of_export(self._folder),
        }
        content = weights.export.config | {"training": training}
        tags = (
            self._tags
            | tags_of(self._folder)
            | {"step": str(weights.step)}
            | self._comparison(weights.export)
            | weights.export.tags
        )
        with whole_folder(target, self._origin(target)) as folder:
            tags = write_package(folder, weights.path, content, weights.export.card, tags)
            sealed.check(folder / WEIGHTS)
        return tags, training

    def _comparison(self, export: Export) -> dict[str, str]:
        metric = self._config.registry.metric
        measure: dict[str, Any] = {"metric": metric}
        if isinstance(self._stage, DrawsFromValidation):
            measure |= self._stage.measure(metric)
        task = str(getattr(self._config, "task", self._stage.name))
        return comparison(task, export.config["model"], measure, self._parameters)


def _read(folder: Path) -> Weights:
    """What waits in ``folder`` for its export. Raises :class:`CheckpointError`: it is missing or damaged."""
    path = folder / NOTE
    try:
        note = read_json(path)
        if note is None:
            raise CheckpointError(f"{path}: missing")
        return Weights(folder / WEIGHTS, int(note["step"]), dict(note["figures"]), Export(**note["export"]))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: is damaged") from error


def register(config: RunConfig, result: Mapping[str, Any], run_id: str, store: str) -> dict[str, Any]:
    """Register the run's package as ``result`` describes it; version, run, whether it holds the alias now, and if not, which
    other and why.

    Where the result holds a ``last`` as well and every best is registered, it gets a version of its own, and the alias ``last``
    names it; it names the best one's version if that is of the last step. Of the versions that the run registered on its way the
    newest ``registry.keep`` stay, and those that are used, see :func:`sleepfm.registry.pruning.prune`. The page of the
    evaluation, where there is one, becomes an artifact of the run.

    Raises:
        RegistryError: a package is not as it was written, or the store refuses or cannot be reached.
    """
    name, settings, folder = config.registry.name, config.registry, RunFolder(config.train.output)
    # The tags say what was written; this is what would be uploaded.
    verify(folder.package, str(folder.package), result["tags"])
    add = (result["tags"], result["metrics"], result["parents"], store)
    # What a run leaves at its end is meant to stay; what it registers on its way is kept as long as `keep` says.
    version = registry.register(name, folder.package, run_id, *add, automatic=not result.get("finished"))
    promotion = promote(name, version, settings.metric, settings.mode, settings.alias, store)
    if settings.every_best and result.get("finished"):
        last = result.get("last")
        newest = version if result.get("best_step") == result.get("steps") else None
        if last is not None:
            verify(folder.last, str(folder.last), last["tags"])
            newest = registry.register(name, folder.last, run_id, last["tags"], last["metrics"], result["parents"], store)
        if newest is not None:
            registry.name_version(name, newest, LAST_ALIAS, store)
    if result.get("finished") and folder.evaluation_page.exists():
        attach(folder.evaluation_page, run_id, store)
    if result.get("finished") and promotion.promoted and promotion.alias == CHAMPION and config.bound_champions():
        _bind_champions(config, store)
    try:
        prune(name, run_id, settings.keep, store)
    except RegistryError as error:
        # A server may allow additions alone; the version is registered all the same.
        warn(f"{name}: older best versions of this run stay registered ({error})")
    return {"version": version, "run_id": run_id} | asdict(promotion)


def _bind_champions(config: RunConfig, store: str) -> None:
    """With the new champion the champions of all tasks become a version of the scorer."""
    try:
        version = bind_champions(config.bound_champions(), store)
    except SleepFMError as error:
        warn(
            f"{config.registry.name}: is champion, but no new version of {SCORER} could be made ({error}); run "
            "sleepfm models bind"
        )
    else:
        if version is not None:
            print(f"{config.registry.name}: bound with the champions of the other tasks as {SCORER}:{version}", flush=True)


def describe(config: RunConfig, result: Mapping[str, Any]) -> str:
    """Under what a result is registered, in words."""
    held = f"now {result['alias']}" if result["alias"] else f"{config.registry.alias} stays"
    note = f"; {result['note']}" if result["note"] else ""
    return f"registered {result['name']}:{result['version']} ({held}){note}"
