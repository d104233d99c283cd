"""Packages of a run: every new best while it goes on, the best and the last at its end, each load-tested and registered.

``OUTPUT/package`` is the best so far and ``OUTPUT/last`` the weights of the last step; both are whole packages or absent. While
training goes on, a thread of rank 0 does what takes time (digests, the load test in a process of its own, MLflow), one package
at a time; if several wait, the newest is taken and the others are left out. What was asked for and not finished when a job
died stands in ``OUTPUT/.export-STEP`` and is taken up by the run that goes on.
"""

from __future__ import annotations

import re
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sleepfm import registry
from sleepfm.config import to_dict
from sleepfm.errors import RegistryError, SleepFMError
from sleepfm.files import make_folder, read_json, write_json
from sleepfm.loadtest import LoadTest
from sleepfm.output import MARKER, Origin, remove_matching, whole_folder
from sleepfm.package import WEIGHTS, link_or_copy, save_weights, write_package
from sleepfm.promotion import comparison, promote
from sleepfm.training.config import RunConfig
from sleepfm.training.recorder import common_tags
from sleepfm.training.selection import Best
from sleepfm.training.stage import DrawsFromValidation, Export, Stage
from sleepfm.training.tracking import Tracker

PACKAGE, LAST = "package", "last"
LAST_ALIAS = "last"
_NOTE = "export.json"
# Folders of weights that wait for their export, and the files in them.
_WAITING = re.compile(r"\.export-[0-9]{8}")
STAGING = re.compile(rf"{_WAITING.pattern}|\.{LAST}")
STAGED_FILES = rf"{re.escape(WEIGHTS)}|{re.escape(_NOTE)}"
_RETRY_SECONDS = 60.0


@dataclass(frozen=True)
class Weights:
    """Weights of one step, in a file, with what their stage says of them."""

    path: Path
    step: int
    figures: dict[str, float]
    export: Export


class Exporter:
    """Rank 0's exports of one run.

    ``steps`` is the length of the run. With ``registry.every_best`` a new best is exported and registered as it is found.
    """

    def __init__(self, stage: Stage, config: RunConfig, store: str, tracker: Tracker, steps: int) -> None:
        self._stage, self._config, self._store, self._tracker, self._steps = stage, config, store, tracker, steps
        self._output = Path(config.train.output)
        self._tags = common_tags(stage, config) | {"selected_by": config.registry.metric}
        # Now, while every rank still holds them whole.
        self._parameters = sum(parameter.numel() for parameter in stage.module.parameters())
        self._load_test: LoadTest | None = None
        self._wake = threading.Condition()
        self._pending: Path | None = None
        self._busy: Path | None = None
        self._closing = False
        self._thread: threading.Thread | None = None
        left = [folder for folder in self._waiting() if (folder / _NOTE).exists()]
        if left and config.registry.every_best:
            self._submit(left[-1])

    def validated(
        self, step: int, figures: Mapping[str, float], module: nn.Module, state: Mapping[str, Tensor], best: bool
    ) -> None:
        """After a validation: take what the exports of these weights need; see :class:`sleepfm.training.observer.Observer`."""
        last = step == self._steps
        # The best weights of the last step are exported by `conclude`, once it has read `test`.
        if best == last or (best and not self._config.registry.every_best):
            return
        with tempfile.TemporaryDirectory() as scratch:
            export = self._stage.export(module, Path(scratch), final=False)
        note = {"step": step, "figures": dict(figures), "export": asdict(export)}
        try:
            folder = self._fresh(self._output / (f".{LAST}" if last else f".export-{step:08d}"))
            if last:
                save_weights(folder / WEIGHTS, state)
            else:
                # Under another name: the next best replaces the file.
                link_or_copy(self._output / "best" / WEIGHTS, folder / WEIGHTS)
            write_json(folder / _NOTE, note)
        except OSError as error:
            self._warn(error)
            return
        if best:
            self._submit(folder)

    def prepare(self) -> None:
        """Start the process that will load the last packages, so that it is ready when they are."""
        if self._load_test is None:
            self._load_test = LoadTest()

    def conclude(self, best: Best, module: nn.Module, seconds: float) -> dict[str, Any]:
        """After the last step: write and load-test ``package`` (``module`` has the best weights) and ``last``, then
        ``result.json``: from here on the same command does not train again.

        Raises:
            RegistryError: a package that does not load in a fresh process.
        """
        self.prepare()
        assert self._load_test is not None
        export = self._stage.export(module, self._output)
        self._tracker.log(self._steps, export.metrics)
        self.close()
        chosen = Weights(self._output / "best" / WEIGHTS, best.step, best.figures, export)
        tags, training = self._write(chosen, self._output / PACKAGE)
        result = {
            "finished": True,
            "name": self._config.registry.name,
            "steps": self._steps,
            "best_step": best.step,
            "metrics": training["metrics"],
            "tags": tags,
            "parents": training["parents"],
            "seconds": round(seconds, 1),
        }
        self._load_test.check(self._output / PACKAGE, export.builder)
        staging, target = self._output / f".{LAST}", self._output / LAST
        if best.step == self._steps:
            with whole_folder(target, self._origin(LAST)) as folder:
                for file in (self._output / PACKAGE).iterdir():
                    if file.name != MARKER:
                        link_or_copy(file, folder / file.name)
        elif (staging / _NOTE).exists():
            last = _read(staging)
            tags, training = self._write(last, target)
            result["last"] = {"step": last.step, "metrics": training["metrics"], "tags": tags}
            self._load_test.check(target, last.export.builder)
        self._load_test.close()
        write_json(self._output / "result.json", result)
        for folder in (staging, *self._waiting()):
            remove_matching(folder, STAGED_FILES)
        return result

    def close(self, wait: bool = True) -> None:
        """Start no other package, and ``wait`` for the one that is being made, if any."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None and wait:
            self._thread.join()

    def _fresh(self, folder: Path) -> Path:
        remove_matching(folder, STAGED_FILES)
        make_folder(folder)
        return folder

    def _waiting(self) -> list[Path]:
        return sorted(path for path in self._output.iterdir() if _WAITING.fullmatch(path.name)) if self._output.is_dir() else []

    def _origin(self, name: str) -> Origin:
        return Origin(f"{name} weights", self._tags["config_digest"], self._config.registry.name)

    def _submit(self, folder: Path) -> None:
        with self._wake:
            self._pending = folder
            kept = (folder, self._busy)
            self._wake.notify()
        for other in self._waiting():
            if other not in kept:
                remove_matching(other, STAGED_FILES)
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
                remove_matching(folder, STAGED_FILES)

    def _warn(self, error: Exception) -> None:
        reason = str(error).splitlines()[0] if isinstance(error, SleepFMError) else repr(error)
        print(f"warning: {self._stage.name}: weights not exported yet ({reason})", file=sys.stderr, flush=True)

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
        raise RegistryError(f"{self._store}: no answer until the end")

    def _publish(self, weights: Weights) -> None:
        tags, training = self._write(weights, self._output / PACKAGE)
        with LoadTest() as load_test:
            load_test.check(self._output / PACKAGE, weights.export.builder)
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
            "dataset_digest": self._stage.dataset_digest,
            "parents": list(self._stage.parents),
            "config": to_dict(self._config),
        }
        content = weights.export.config | {"training": training}
        tags = self._tags | {"step": str(weights.step)} | self._comparison(weights.export) | weights.export.tags
        with whole_folder(target, self._origin(target.name)) as folder:
            tags = write_package(folder, weights.path, content, weights.export.card, tags)
        return tags, training

    def _comparison(self, export: Export) -> dict[str, str]:
        metric = self._config.registry.metric
        measure: dict[str, Any] = {"metric": metric}
        if isinstance(self._stage, DrawsFromValidation):
            measure |= self._stage.measure(metric)
        task = str(getattr(self._config, "task", self._stage.name))
        return comparison(task, export.config["model"], measure, self._parameters)


def _read(folder: Path) -> Weights:
    note = read_json(folder / _NOTE)
    assert note is not None
    return Weights(folder / WEIGHTS, note["step"], note["figures"], Export(**note["export"]))


def register(config: RunConfig, result: Mapping[str, Any], run_id: str, store: str) -> dict[str, Any]:
    """Register ``OUTPUT/package`` as ``result`` describes it; version, run, whether it holds the alias now, and if not, which
    other and why.

    Where the result holds a ``last`` as well and every best is registered, it gets a version of its own, else the best one's; the
    alias ``last`` names it.
    """
    name, settings, output = config.registry.name, config.registry, Path(config.train.output)
    add = (result["tags"], result["metrics"], result["parents"], store)
    version = registry.register(name, output / PACKAGE, run_id, *add)
    promotion = promote(name, version, settings.metric, settings.mode, settings.alias, store)
    if settings.every_best and result.get("finished"):
        last = result.get("last")
        newest = version
        if last is not None:
            newest = registry.register(name, output / LAST, run_id, last["tags"], last["metrics"], result["parents"], store)
        registry.name_version(name, newest, LAST_ALIAS, store)
    return {"version": version, "run_id": run_id} | asdict(promotion)


def describe(config: RunConfig, result: Mapping[str, Any]) -> str:
    """Under what a result is registered, in words."""
    held = f"now {result['alias']}" if result["alias"] else f"{config.registry.alias} stays"
    note = f"; {result['note']}" if result["note"] else ""
    return f"registered {result['name']}:{result['version']} ({held}){note}"
