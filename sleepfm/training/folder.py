"""The folder of a run: every path in it, what was started there, whether that may continue, and whether it is done.

Whatever writes below ``train.output`` takes its path from :class:`RunFolder`, which alone knows what a restart must find
free, may go on with, and removes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sleepfm import builtin
from sleepfm.config import to_yaml
from sleepfm.data.identity import DataDigest, as_digest
from sleepfm.errors import CheckpointError, ConfigError, StorageError
from sleepfm.files import DAMAGED_PREFIX, make_folder, read_json, remove_temporaries, temporaries, write_atomic, write_json
from sleepfm.output import (
    Origin,
    not_matching,
    remove_matching,
    remove_unfinished,
    remove_written,
    strangers,
    unfinished_folders,
)
from sleepfm.registry.package import WEIGHTS
from sleepfm.training import run_record
from sleepfm.training.run_config import RunConfig, decisive_settings, settings_digest
from sleepfm.training.segments import Segment, split, split_data
from sleepfm.training.state import checkpoint

Resume = Literal["auto", "never", "must"]

NOTE = "export.json"
_WAITING = re.compile(r"\.export-[0-9]{8}")
_LAST_WAITING = ".last"
# What `result.json` says at least.
_RESULT = frozenset({"finished", "name", "steps", "best_step", "metrics", "tags", "parents", "seconds"})
_WAITING_FILES = rf"{re.escape(WEIGHTS)}|{re.escape(NOTE)}"
_BEST_FILES = rf"{re.escape(WEIGHTS)}|\.{re.escape(WEIGHTS)}\.[0-9a-f]{{12}}\.tmp|{DAMAGED_PREFIX}{re.escape(WEIGHTS)}(-[0-9]+)?"


class RunFolder:
    """``train.output`` of one run.

    Attributes:
        record: ``run.json``, what decides the result, the data set's digest, the registered versions that the run started
            from, the checkpoint that it branched from, its segments, the newest step that was saved, what is said of the best
            weights, what has been lost; written first, so that from then on the folder is a run's.
        config: the resolved configuration.
        result: ``result.json``, written when all is done.
        trace: loss, learning rate and the like of every step.
        environment: of rank 0.
        figures, tracking: what goes to the tracking server, and how far it has got.
        goodput: where the wall time of the run went, see :mod:`sleepfm.training.tracking.goodput`.
        profile: the trace of the steps of ``train.profile``.
        label_curve: what is reached from fewer labels, of a probe that was asked for it.
        people: whom the model and its ancestors have seen, see :mod:`sleepfm.registry.people`.
        evaluation: what a stage says of its best weights at the end; its predictions are :meth:`predictions`.
        evaluation_page: the same to be looked at, of a stage that writes one; it goes to the tracking run.
        checkpoints: folder of :mod:`sleepfm.training.state.checkpoint`.
        best: the best weights so far.
        package, last: packages of the best weights so far and of those of the last step; each whole or absent.
        last_waiting: weights of the last step that wait for their export; other steps' are :meth:`waiting`.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.record = self.root / "run.json"
        self.config = self.root / "config.yaml"
        self.result = self.root / "result.json"
        self.trace = self.root / "trace.jsonl"
        self.environment = self.root / "environment.json"
        self.figures = self.root / "figures.jsonl"
        self.tracking = self.root / "tracking.json"
        self.goodput = self.root / "goodput.json"
        self.profile = self.root / "profile.json"
        self.evaluation = self.root / "evaluation.json"
        self.evaluation_page = self.root / "evaluation.html"
        self.people = self.root / "people.json"
        self.label_curve = self.root / "label_curve.json"
        self.checkpoints = self.root / "checkpoints"
        self.best = self.root / "best" / WEIGHTS
        self.package = self.root / "package"
        self.last = self.root / "last"
        self.last_waiting = self.root / _LAST_WAITING
        # Without the record, which is removed last.
        self._files = (
            *(self.result, self.config, self.trace, self.environment, self.tracking, self.figures),
            *(self.goodput, self.profile, self.people, self.label_curve),
            *(self.evaluation, self.evaluation_page, self.predictions("val"), self.predictions("test")),
        )
        self._packages = (self.package, self.last)
        self._temporary = "|".join(re.escape(path.name) for path in (self.record, *self._files))
        self._damaged = "|".join(rf"{DAMAGED_PREFIX}{re.escape(path.name)}(?:-[0-9]+)?" for path in self._files)

    def predictions(self, split: str) -> Path:
        """Predictions of the best weights on ``split``."""
        return self.root / f"predictions-{split}.parquet"

    def waiting(self, step: int) -> Path:
        """Folder in which weights of ``step`` wait for their export."""
        return self.root / f".export-{step:08d}"

    def all_waiting(self) -> list[Path]:
        """Every :meth:`waiting` that is there, by step."""
        return sorted(path for path in self.root.iterdir() if _WAITING.fullmatch(path.name)) if self.root.is_dir() else []

    def begin_waiting(self, folder: Path) -> None:
        """Make ``folder``, a :meth:`waiting` or ``last_waiting``, anew. Raises :class:`StorageError`."""
        self.end_waiting(folder)
        make_folder(folder)

    def end_waiting(self, folder: Path) -> None:
        """Remove ``folder``, a :meth:`waiting` or ``last_waiting``: its weights are exported, or newer ones are."""
        remove_matching(folder, _WAITING_FILES)

    def write_result(self, result: dict[str, Any]) -> None:
        """From here on the same command does not train again. Raises :class:`StorageError`."""
        write_json(self.result, result)

    def read_result(self) -> dict[str, Any] | None:
        """What :meth:`write_result` wrote, None if it has not.

        Raises:
            CheckpointError: it is not as a run writes it.
            StorageError: it cannot be read.
        """
        try:
            result = read_json(self.result)
        except ValueError as error:
            raise CheckpointError(f"{self.result}: is damaged, no valid JSON") from error
        except OSError as error:
            raise StorageError(f"{self.result}: cannot be read ({error.strerror or error}); move it to another place") from error
        if result is None:
            return None
        tags = result.get("tags") if isinstance(result, dict) else None
        if tags is None or not result.keys() >= _RESULT or not isinstance(tags, dict) or not {"stage", "sha256"} <= tags.keys():
            raise CheckpointError(f"{self.result}: is damaged, not the result of a run")
        return dict(result)

    def check(self, config: RunConfig, dataset_digest: str, resume: Resume) -> dict[str, Any] | None:
        """The result of this very run if it is already done, else None. Reads only; every rank may call it.

        Raises:
            ConfigError: the folder holds a run of another configuration or data set, and not only in what may change.
            CheckpointError: ``must`` and nothing to resume, or every checkpoint of the run is gone.
            StorageError: a file of the run cannot be read, or what a run writes is there already, and no run of this program has
                written it.
        """
        known = run_record.read(self.record)
        if known is None:
            if resume == "must":
                raise CheckpointError(f"{self.root}: has no run to resume; start it without --resume must")
            self._check_free()
            return None
        if resume == "never":
            return None
        steered, others = split(run_record.present(known), decisive_settings(config))
        refused = [f"{key} ({old!r} -> {new!r})" for key, (old, new) in others.items()]
        mixed, other_data = split_data(run_record.data_history(known)[-1][1], as_digest(dataset_digest))
        steered, refused = steered | mixed, refused + other_data
        if refused:
            raise ConfigError(
                f"{self.root}: contains a run with another configuration: {', '.join(refused)}, which cannot change within a "
                "run; "
                f"give another train.output= (with branch_from={self.root}@STEP to continue from one of its checkpoints), or "
                "use --resume never to start over"
            )
        try:
            result = self.read_result()
        except CheckpointError:
            # As if it were not there: the run goes on, sets it aside and says so.
            result = None
        # What an earlier segment ended with is not the end of this one.
        if result is not None and not steered and result.get("segment", 0) == len(known["segments"]):
            return result
        if not checkpoint.steps(self.checkpoints):
            self._check_nothing_saved(known, finished=result is not None or os.path.lexists(self.last))
            if resume == "must":
                raise CheckpointError(f"{self.root}: has no checkpoint to resume; start it without --resume must")
        return None

    def _check_nothing_saved(self, known: dict[str, Any], finished: bool) -> None:
        """A run without a checkpoint begins at its first step, over what it has; that is right only before the first is saved."""
        saved = known.get("saved")
        if saved is None and not finished:
            return
        which = f"but its run has saved that of step {saved}" if saved is not None else "but its run has come to an end before"
        raise CheckpointError(
            f"{self.checkpoints}: holds no checkpoint, {which}; nothing is overwritten: put the checkpoints back, start over "
            f"with --resume never, or give another train.output= (with init_from={self.root} for the weights alone)"
        )

    def record_checkpoint(self, step: int) -> None:
        """Keep that a checkpoint of ``step`` is whole on the disk. Raises :class:`StorageError`."""
        run_record.change(self.record, lambda known: known.update(saved=step))

    def record_best(self, facts: Mapping[str, str]) -> None:
        """Keep what the header of the best weights says of them, which may be lost. Raises :class:`StorageError`."""
        run_record.change(self.record, lambda known: known.update(best=dict(facts)))

    def record_lost(self, step: int, what: str) -> bool:
        """Keep that the run goes on from ``step`` without something; whether that is new. Raises :class:`StorageError`."""
        if what in self.lost():
            return False
        run_record.change(self.record, lambda known: known.setdefault("lost", []).append({"step": step, "what": what}))
        return True

    def best_facts(self) -> dict[str, str]:
        """What :meth:`record_best` has kept last; nothing before."""
        known = run_record.read(self.record)
        return dict(known.get("best", {})) if known else {}

    def saved_step(self) -> int | None:
        """The step of the checkpoint that was saved last, None before the first."""
        known = run_record.read(self.record)
        return known.get("saved") if known else None

    def lost(self) -> list[str]:
        """What the run has gone on without, in words."""
        known = run_record.read(self.record)
        return [item["what"] for item in known.get("lost", [])] if known else []

    def origin(self, package: Path, registered: str) -> Origin:
        """What ``package`` (or ``last``) of this run holds, of the registered model of that name."""
        return Origin(f"{package.name} weights", self.identity(), registered)

    def is_run(self) -> bool:
        """Whether a run has begun here. Raises :class:`StorageError` for somebody else's record."""
        return run_record.read(self.record) is not None

    def settings(self) -> dict[str, Any]:
        """The decisive settings of the run that has begun here, as of its present segment; empty where none has.

        Raises:
            StorageError: somebody else's record.
        """
        known = run_record.read(self.record)
        return run_record.present(known) if known else {}

    def segments(self) -> list[Segment]:
        """The stretches of steps with the same settings so far, the present one last."""
        known = run_record.read(self.record)
        later = known["segments"] if known else []
        return [
            Segment(0, {}),
            *(Segment(item["step"], {key: (old, new) for key, (old, new) in item["changed"].items()}) for item in later),
        ]

    def identity(self) -> str:
        """Digest of the settings that the run began with: the same in all of its segments."""
        known = run_record.read(self.record)
        return settings_digest(known["settings"]) if known else ""

    def initial_versions(self, config: RunConfig) -> list[str]:
        """The registered version whose weights the run started with, as ``name:version``, or the built-in model, as
        :func:`sleepfm.builtin.pinned` writes it, if ``init_from`` led to one.
        """
        uri = self.sources().get(config.init_from, "")
        if builtin.is_address(uri):
            return [uri]
        return [uri.removeprefix("models:/").replace("/", ":")] if uri.startswith("models:/") else []

    def lineage(self) -> dict[str, str]:
        """Tags that say where the run came from and what was changed on its way; none for a run without either."""
        segments, known = self.segments(), run_record.read(self.record)
        tags = {f"segment.{number}": f"from step {s.step}: {s.describe()}" for number, s in enumerate(segments) if number}
        tags |= {"segment": str(len(segments) - 1)} if tags else {}
        branch = known.get("branched_from") if known else None
        if branch:
            tags |= {"branched_from": f"{branch['run']}@{branch['step']}", "branched_from.run_id": branch["run_id"]}
        return tags | {f"lost.{number}": what for number, what in enumerate(self.lost(), 1)}

    def sources(self) -> dict[str, str]:
        """The registered versions that a run in this folder started from, by the address that it was given."""
        known = run_record.read(self.record)
        return known["sources"] if known else {}

    def clear(self) -> None:
        """Remove what an earlier run left in the folder, and nothing else.

        Raises:
            StorageError: a file that no run has written is in a folder that would be removed; nothing has been removed then.
        """
        if run_record.read(self.record) is None:
            self._check_free()
            return
        staged = self._staged()
        others = [*checkpoint.strangers(self.checkpoints), *not_matching(self.best.parent, _BEST_FILES)]
        for path in self._packages:
            others += strangers(path)
        for path in staged:
            others += not_matching(path, _WAITING_FILES)
        if others:
            raise StorageError(
                f"{others[0]}: was not written by a run, or has changed since ({len(others)} in {self.root}); move it away "
                "before the files of this run are removed, or give another train.output="
            )
        checkpoint.remove_all(self.checkpoints)
        remove_matching(self.best.parent, _BEST_FILES)
        for path in self._packages:
            remove_written(path)
        for path in staged:
            self.end_waiting(path)
        self._remove_debris()
        for path in [*self._files, *self._set_aside()]:
            path.unlink(missing_ok=True)
        # Last: what a kill leaves is still a run's.
        self.record.unlink()

    def begin(
        self, config: RunConfig, dataset_digest: str, started_from: dict[str, str], branched_from: dict[str, Any] | None = None
    ) -> None:
        """Record what runs here, once; a resumed run finds its record and leaves it."""
        if self.record.exists():
            self._remove_debris()
        else:
            # First: from here on the folder is a run's.
            record = {"settings": decisive_settings(config), "dataset_digest": str(dataset_digest), "sources": started_from}
            record |= as_digest(dataset_digest).to_record()
            write_json(self.record, record | ({"branched_from": branched_from} if branched_from else {}))
        write_atomic(self.config, to_yaml(config))

    def data_history(self) -> list[tuple[int, DataDigest]]:
        """The data that the run learns from, by the step from which on it does; the present one last."""
        known = run_record.read(self.record)
        assert known is not None
        return run_record.data_history(known)

    def steer(self, config: RunConfig, step: int, steps: int, dataset_digest: str = "") -> str:
        """Begin another segment at the checkpoint of ``step``, where ``config`` or the data asks for one; what changes, in words,
        or ''.

        ``steps`` is the length of the run by ``config``; without ``dataset_digest`` the data stays.

        Raises:
            ConfigError: no step would be left to train.
        """
        known = run_record.read(self.record)
        assert known is not None
        settings = decisive_settings(config)
        changed, _ = split(run_record.present(known), settings)
        before = run_record.data_history(known)[-1][1]
        data = as_digest(dataset_digest) if dataset_digest else before
        changed |= split_data(before, data)[0]
        if not changed:
            return ""
        segment = Segment(step, changed)
        if steps <= step:
            raise ConfigError(
                f"{self.root}: {segment.describe()}: the run is at step {step}, so with {steps} steps nothing is left to "
                f"train; raise train.steps, or give another train.output= and branch_from={self.root}@STEP with an earlier "
                "checkpoint"
            )
        new = {"step": step, "changed": changed, "settings": settings}
        if data.mixture != before.mixture:
            new |= {"dataset_digest": str(data), **data.to_record()}
        run_record.change(self.record, lambda known: known["segments"].append(new))
        return segment.describe()

    def _check_free(self) -> None:
        """Nothing that a run would write is there. Raises :class:`StorageError`."""
        if not self.root.is_dir():
            return
        ours = (*self._files, self.checkpoints, self.best.parent, *self._packages)
        taken = [path.name for path in ours if os.path.lexists(path)]
        taken += [path.name for path in (*self._staged(), *temporaries(self.root, self._temporary), *self._unfinished())]
        if taken:
            raise StorageError(
                f"{self.root}: holds {', '.join(taken)}, which this program did not write, or whose {self.record.name} is "
                "missing; give another train.output=, or move them away"
            )

    def _set_aside(self) -> list[Path]:
        """Damaged files that a run has given another name."""
        return [path for path in self.root.iterdir() if re.fullmatch(self._damaged, path.name)]

    def _unfinished(self) -> list[Path]:
        return [folder for path in self._packages for folder in unfinished_folders(self.root, path.name)]

    def _staged(self) -> list[Path]:
        last = [self.last_waiting] if os.path.lexists(self.last_waiting) else []
        return [*self.all_waiting(), *last]

    def _remove_debris(self) -> None:
        """What a kill leaves of files and packages that were being written: of no use to anybody."""
        remove_temporaries(self.root, self._temporary)
        remove_temporaries(self.best.parent, re.escape(WEIGHTS))
        remove_temporaries(self.checkpoints, checkpoint.LATEST)
        for path in self._unfinished():
            remove_unfinished(path)
