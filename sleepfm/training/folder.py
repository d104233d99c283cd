"""The folder of a run: every path in it, what was started there, whether that may continue, and whether it is done.

Whatever writes below ``train.output`` takes its path from :class:`RunFolder`, which alone knows what a restart must find
free, may go on with, and removes.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

from sleepfm.config import to_yaml
from sleepfm.errors import CheckpointError, ConfigError, StorageError
from sleepfm.files import make_folder, read_json, remove_temporaries, temporaries, write_atomic, write_json
from sleepfm.output import (
    not_matching,
    remove_matching,
    remove_unfinished,
    remove_written,
    strangers,
    unfinished_folders,
)
from sleepfm.registry.package import WEIGHTS
from sleepfm.training.run_config import RunConfig, decisive_settings, differing_keys, present_names
from sleepfm.training.state import checkpoint

Resume = Literal["auto", "never", "must"]

NOTE = "export.json"
# The key of the settings in the `run.json` of earlier versions, whose runs still resume.
_FORMER_SETTINGS = "essence"
_WAITING = re.compile(r"\.export-[0-9]{8}")
_LAST_WAITING = ".last"
_WAITING_FILES = rf"{re.escape(WEIGHTS)}|{re.escape(NOTE)}"
_BEST_FILES = rf"{re.escape(WEIGHTS)}|\.{re.escape(WEIGHTS)}\.[0-9a-f]{{12}}\.tmp"


class RunFolder:
    """``train.output`` of one run.

    Attributes:
        record: ``run.json``, what decides the result, the data set's digest and the registered versions that the run started
            from; written first, so that from then on the folder is a run's.
        config: the resolved configuration.
        result: ``result.json``, written when all is done.
        trace: loss, learning rate and the like of every step.
        environment: of rank 0.
        figures, tracking: what goes to the tracking server, and how far it has got.
        evaluation: what a stage says of its best weights at the end; its predictions are :meth:`predictions`.
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
        self.evaluation = self.root / "evaluation.json"
        self.checkpoints = self.root / "checkpoints"
        self.best = self.root / "best" / WEIGHTS
        self.package = self.root / "package"
        self.last = self.root / "last"
        self.last_waiting = self.root / _LAST_WAITING
        # Without the record, which is removed last.
        self._files = (
            *(self.result, self.config, self.trace, self.environment, self.tracking, self.figures),
            *(self.evaluation, self.predictions("val"), self.predictions("test")),
        )
        self._packages = (self.package, self.last)
        self._temporary = "|".join(re.escape(path.name) for path in (self.record, *self._files))

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

    def check(self, config: RunConfig, dataset_digest: str, resume: Resume) -> dict[str, Any] | None:
        """The result of this very run if it is already done, else None. Reads only; every rank may call it.

        Raises:
            ConfigError: the folder holds a run of another configuration or data set.
            CheckpointError: ``must`` and nothing to resume.
            StorageError: what a run writes is there already, and no run of this program has written it.
        """
        known = self._known()
        if known is None:
            if resume == "must":
                raise CheckpointError(f"{self.root}: holds no run to resume; start it without --resume must")
            self._check_free()
            return None
        if resume == "never":
            return None
        differences = differing_keys(known["settings"], decisive_settings(config))
        if known["dataset_digest"] != dataset_digest:
            differences.append(f"data set digest ({known['dataset_digest'][:12]} -> {dataset_digest[:12]})")
        if differences:
            raise ConfigError(
                f"{self.root}: holds a run of another configuration: {', '.join(differences)}; "
                "give another train.output=, or --resume never to start over"
            )
        if resume == "must" and not (self.checkpoints / checkpoint.LATEST).exists():
            raise CheckpointError(f"{self.root}: holds no checkpoint to resume; start it without --resume must")
        return read_json(self.result)

    def sources(self) -> dict[str, str]:
        """The registered versions that a run in this folder started from, by the address that it was given."""
        known = self._known()
        return known["sources"] if known else {}

    def clear(self) -> None:
        """Remove what an earlier run left in the folder, and nothing else.

        Raises:
            StorageError: a file that no run has written is in a folder that would be removed; nothing has been removed then.
        """
        if self._known() is None:
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
                f"{others[0]}: was not written by a run, or has been changed since ({len(others)} in {self.root}); move it to "
                "another place before this run's files are removed, or give another train.output="
            )
        checkpoint.remove_all(self.checkpoints)
        remove_matching(self.best.parent, _BEST_FILES)
        for path in self._packages:
            remove_written(path)
        for path in staged:
            self.end_waiting(path)
        self._remove_debris()
        for path in self._files:
            path.unlink(missing_ok=True)
        # Last: what a kill leaves is still a run's.
        self.record.unlink()

    def begin(self, config: RunConfig, dataset_digest: str, started_from: dict[str, str]) -> None:
        """Record what runs here, once; a resumed run finds its record and leaves it."""
        if self.record.exists():
            self._remove_debris()
        else:
            # First: from here on the folder is a run's.
            settings = decisive_settings(config)
            write_json(self.record, {"settings": settings, "dataset_digest": dataset_digest, "sources": started_from})
        write_atomic(self.config, to_yaml(config))

    def _known(self) -> dict[str, Any] | None:
        """What runs here, or None where nothing does. Raises :class:`StorageError` for somebody else's file."""
        try:
            known = read_json(self.record)
        except (OSError, ValueError):
            known = "no record"
        if isinstance(known, dict) and _FORMER_SETTINGS in known:
            known["settings"] = known.pop(_FORMER_SETTINGS)
        if known is None:
            return None
        whole = isinstance(known, dict) and {"settings", "dataset_digest", "sources"} <= known.keys()
        if not whole or not isinstance(known["settings"], dict):
            raise StorageError(f"{self.record}: is not the record of a run; give another train.output=, or move it away")
        return known | {"settings": present_names(known["settings"])}

    def _check_free(self) -> None:
        """Nothing that a run would write is there. Raises :class:`StorageError`."""
        if not self.root.is_dir():
            return
        ours = (*self._files, self.checkpoints, self.best.parent, *self._packages)
        taken = [path.name for path in ours if os.path.lexists(path)]
        taken += [path.name for path in (*self._staged(), *temporaries(self.root, self._temporary), *self._unfinished())]
        if taken:
            raise StorageError(
                f"{self.root}: holds {', '.join(taken)}, which no run of this program has written; give another train.output=, "
                "or move them away"
            )

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
