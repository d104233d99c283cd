"""Figures to MLflow from a thread of rank 0, so that a step never waits for a database or a server.

``log`` writes a row to ``OUTPUT/figures.jsonl`` (:mod:`sleepfm.training.tracking.journal`), the thread delivers it.
``OUTPUT/tracking.json`` says to which run, and how far: when the server is back, or when the same command is started again,
delivery goes on from there. A row that is sent twice is stored once, since MLflow identifies a figure by run, name, step, time
and value. MLflow itself is imported inside the thread.
"""

from __future__ import annotations

import sys
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepfm.data.identity import as_digest
from sleepfm.errors import RegistryError
from sleepfm.files import read_json, set_aside, write_json
from sleepfm.registry.entities import log_datasets
from sleepfm.registry.store import client as mlflow_client
from sleepfm.registry.store import experiment_id, reason_of, shown
from sleepfm.training.folder import RunFolder
from sleepfm.training.tracking.journal import Journal
from sleepfm.wording import counted

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

# Marks the server's run, so that it is found again when its id did not arrive here.
_KEY_TAG = "sleepfm.run"
_STATE = {"key": str, "uri": str, "run_id": str, "described": bool, "delivered": int}
_RETRY_SECONDS = 5.0
_LONGEST_PARAMETER = 500
_FIGURES_A_BATCH = 900  # MLflow takes 1000


class Tracker:
    """One MLflow run. ``log`` never waits for the server; ``close`` does, for a bounded time.

    A resumed job continues the same run, under whatever address the server has by then.
    """

    def __init__(
        self,
        output: Path,
        uri: str,
        experiment: str,
        name: str,
        parameters: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        artifacts: tuple[Path, ...] = (),
        dataset_digest: str = "",
        segment: tuple[int, int] = (0, 0),
    ) -> None:
        """``segment`` is the number of the run's present segment and the step at which it began."""
        self._folder = RunFolder(output)
        self._uri = uri
        # What files and messages have of it.
        self._shown = shown(uri)
        self._experiment = experiment
        self._name = name
        self._parameters = flatten(parameters or {})
        self._tags = dict(tags or {})
        self._artifacts = artifacts
        self._dataset_digest = dataset_digest
        self._state: dict[str, Any] = {
            "key": uuid.uuid4().hex,
            "uri": self._shown,
            "run_id": "",
            "described": False,
            "delivered": 0,
        }
        known, fault = _read_state(self._folder)
        self._state |= known
        self._journal = Journal(self._folder.figures)
        self._check_delivered(fault)
        number, began = segment
        if number > self._state.get("segment", 0):
            self._journal.rewind(began)
            self._state["segment"] = number
        # Before a run is made under this key, so that a kill in between leaves one run, not two.
        write_json(self._folder.tracking, self._state)
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._opened = threading.Event()
        self._status = "FINISHED"
        self._problem = ""
        self._thread = threading.Thread(target=self._deliver_all, name="tracking", daemon=True)
        self._thread.start()

    def _check_delivered(self, fault: str) -> None:
        """See to it that figures are delivered from where a row begins, and say what has been lost, ``fault`` of it."""
        tracking, figures, delivered = self._folder.tracking, self._folder.figures, self._state["delivered"]
        if fault:
            aside = set_aside(tracking)
            print(
                f"warning: {tracking}: {fault}; set aside as {aside.name}: the tracking server gets another run, with all "
                "figures",
                file=sys.stderr,
                flush=True,
            )
        elif not self._state["run_id"] and self._journal.size and not tracking.exists():
            print(
                f"warning: {tracking}: missing; the tracking server gets another run, with all figures",
                file=sys.stderr,
                flush=True,
            )
        if not self._journal.damaged and self._journal.begins_row(delivered):
            return
        # Rows that are sent twice are stored once.
        self._state["delivered"] = 0
        what = f"{self._journal.damaged} damaged lines, set aside with the file" if self._journal.damaged else "has lost rows"
        print(
            f"warning: {figures}: {what}; figures that had not been sent yet may be missing on the tracking server",
            file=sys.stderr,
            flush=True,
        )

    @property
    def run_id(self) -> str:
        """The run's id; empty before the server has answered."""
        return str(self._state["run_id"]) if self._opened.is_set() else ""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Keep ``figures`` of ``step`` on disk and have them delivered."""
        self._journal.append(step, int(time.time() * 1000), figures)
        self._wake.set()

    def wait_for_run(self, patience_seconds: float = 60.0) -> str:
        """The run's id, which the thread gets from the server.

        Raises:
            RegistryError: the server did not answer in time.
        """
        if not self._opened.wait(patience_seconds):
            raise RegistryError(f"{self._shown}: no answer ({self._problem or 'yet'})")
        return self.run_id

    def close(self, status: str = "FINISHED", patience_seconds: float = 30.0) -> str:
        """Deliver what is left, mark the run, and return a warning ('' when everything was delivered)."""
        self._status = status
        self._closing.set()
        self._wake.set()
        self._thread.join(patience_seconds)
        left = self._journal.left(self._state["delivered"])
        warnings = []
        if self._journal.refused:
            warnings.append(f"{counted(self._journal.refused, 'row')} of figures dropped, because {self._folder.figures} is full")
        if left:
            why = self._problem or self._journal.problem
            warnings.append(
                f"{counted(left, 'row')} of figures not delivered to {self._shown} ({why}); kept "
                f"in {self._folder.figures}: start the same command again to deliver them"
            )
        elif self._thread.is_alive() or self._problem:
            follows = "; the error that ended the run follows" if status == "FAILED" else ""
            warnings.append(
                f"{self._shown}: still shows the run as running, because {status} could not be written "
                f"({self._problem or 'no answer'}){follows}"
            )
        if not self._thread.is_alive():
            self._journal.close()
        return "; ".join(warnings)

    def _deliver_all(self) -> None:
        client: MlflowClient | None = None
        while True:
            try:
                self._journal.sync()
                client = client or self._open()
                self._deliver(client)
                if self._closing.is_set():
                    client.set_terminated(self._state["run_id"], status=self._status)
                    self._problem = ""
                    return
                self._problem = ""
            except Exception as error:  # whatever it is, training goes on and `close` says so
                self._problem = reason_of(error)
                if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                    # The server has lost the run: it gets all of it again.
                    client = None
                    self._change(run_id="", described=False, delivered=0)
                if self._closing.wait(_RETRY_SECONDS):
                    time.sleep(0.5)
                continue
            self._wake.wait()
            self._wake.clear()

    def _open(self) -> MlflowClient:
        from mlflow.entities import RunTag

        client = mlflow_client(self._uri, create=True)
        if self._state["uri"] != self._shown or not self._state["run_id"]:
            experiment = experiment_id(client, self._uri, self._experiment)
            key = self._state["key"]
            found = client.search_runs([experiment], f"tags.`{_KEY_TAG}` = '{key}'", max_results=1)
            if found:
                self._change(uri=self._shown, run_id=found[0].info.run_id)
            else:
                run = client.create_run(experiment, run_name=self._name, tags=self._tags | {_KEY_TAG: key})
                self._change(uri=self._shown, run_id=run.info.run_id, described=False, delivered=0)
        run_id = self._state["run_id"]
        client.update_run(run_id, status="RUNNING")
        if not self._state["described"]:
            self._describe(client, run_id)
            self._change(described=True)
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in self._tags.items()])
        for path in self._artifacts:
            client.log_artifact(run_id, str(path))
        self._opened.set()
        return client

    def _describe(self, client: MlflowClient, run_id: str) -> None:
        """Parameters and data set, which MLflow lets nobody change afterwards.

        A process that was killed in here has told some already, and what it measured of its machine another one measures
        otherwise: what was told first stays.
        """
        from mlflow.entities import Param

        told = client.get_run(run_id).data.params
        items = [Param(key, str(value)[:_LONGEST_PARAMETER]) for key, value in self._parameters.items() if key not in told]
        for start in range(0, len(items), 100):
            client.log_batch(run_id, params=items[start : start + 100])
        if self._dataset_digest:
            parts = as_digest(self._dataset_digest).parts
            names = [part.name for part in parts] if len(parts) > 1 else ["shards"]
            digests = {name: part.digest for name, part in zip(names, parts, strict=True)}
            log_datasets(client, run_id, digests, "training")

    def _deliver(self, client: MlflowClient) -> None:
        from mlflow.entities import Metric

        while self._state["delivered"] < self._journal.size:
            rows, end = self._journal.read(self._state["delivered"], _FIGURES_A_BATCH)
            metrics = [Metric(key, value, row["time"], row["step"]) for row in rows for key, value in row["figures"].items()]
            client.log_batch(self._state["run_id"], metrics=metrics)
            self._change(delivered=end)
            if self._journal.is_large:
                # In this order: a kill in between has rows sent twice, which are stored once.
                self._change(delivered=0)
                self._journal.drop(end)

    def _change(self, **values: Any) -> None:
        self._state |= values
        write_json(self._folder.tracking, self._state)


def undelivered(output: Path) -> bool:
    """Whether the run in ``output`` has figures that no server has taken yet."""
    folder = RunFolder(output)
    state, _ = _read_state(folder)
    return folder.figures.exists() and folder.figures.stat().st_size > state.get("delivered", 0)


def known_run_id(folder: RunFolder) -> str:
    """The id of the tracking run of the run in ``folder``; empty where none is known."""
    return str(_read_state(folder)[0].get("run_id", ""))


def _read_state(folder: RunFolder) -> tuple[dict[str, Any], str]:
    """What ``tracking.json`` says, nothing if it is not there or damaged; and what is wrong with it, empty if nothing is."""
    try:
        state = read_json(folder.tracking)
    except OSError as error:
        return {}, f"cannot be read ({error.strerror or error})"
    except ValueError:
        return {}, "is damaged, no valid JSON"
    if state is None:
        return {}, ""
    if not isinstance(state, dict) or any(type(state.get(key)) is not kind for key, kind in _STATE.items()):
        return {}, "is damaged"
    return state, ""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
