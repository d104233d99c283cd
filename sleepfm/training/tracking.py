"""Figures to MLflow from a thread of rank 0, so that a step never waits for a database or a server.

What cannot be delivered stays in memory, is tried again, and is at last written to
``OUTPUT/undelivered.jsonl``, from where the next start of the same run delivers it. MLflow itself is
imported inside the thread.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepfm import registry
from sleepfm.errors import RegistryError
from sleepfm.training.files import read_json, write_atomic, write_json

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_RETRY_SECONDS = 5.0
_LONGEST_PARAMETER = 500


class Tracker:
    """One MLflow run. ``log`` only queues; ``close`` waits a bounded time for delivery.

    The run's id is kept in ``OUTPUT/tracking.json``, so that a resumed job continues the same run.
    """

    def __init__(
        self,
        output: Path,
        uri: str,
        experiment: str,
        name: str,
        parameters: Mapping[str, Any],
        tags: Mapping[str, str],
        artifacts: tuple[Path, ...] = (),
    ) -> None:
        self._output = output
        self._uri = uri
        self._experiment = experiment
        self._name = name
        self._parameters = flatten(parameters)
        self._tags = dict(tags)
        self._artifacts = artifacts
        self._pending: deque[dict[str, Any]] = deque(_read_undelivered(output))
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._opened = threading.Event()
        self._status = "FINISHED"
        self._problem = ""
        self.run_id = ""
        self._thread = threading.Thread(target=self._deliver_all, name="tracking", daemon=True)
        self._thread.start()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Queue ``figures`` of ``step``."""
        self._pending.append({"step": step, "time": int(time.time() * 1000), "figures": dict(figures)})
        self._wake.set()

    def wait_for_run(self, patience_seconds: float = 60.0) -> str:
        """The run's id, which the thread gets from the server.

        Raises:
            RegistryError: the server did not answer in time.
        """
        if not self._opened.wait(patience_seconds) or not self.run_id:
            raise RegistryError(
                f"{self._uri}: no answer ({self._problem or 'yet'}); the trained package is in "
                f"{self._output / 'package'}: start the same command again to register it"
            )
        return self.run_id

    def close(self, status: str = "FINISHED", patience_seconds: float = 30.0) -> str:
        """Deliver what is left, mark the run, and return a warning ('' when everything was delivered)."""
        self._status = status
        self._closing.set()
        self._wake.set()
        self._thread.join(patience_seconds)
        path = self._output / "undelivered.jsonl"
        left = list(self._pending)
        if not left:
            path.unlink(missing_ok=True)
            return self._problem
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in left))
        return f"{len(left)} rows of figures not delivered to {self._uri} ({self._problem}); kept in {path}"

    def _deliver_all(self) -> None:
        from mlflow.exceptions import MlflowException

        client: MlflowClient | None = None
        while True:
            try:
                client = client or self._open()
                self._deliver(client)
                if self._closing.is_set() and not self._pending:
                    client.set_terminated(self.run_id, status=self._status)
                    self._problem = ""
                    return
            except (MlflowException, RegistryError, OSError) as error:
                self._problem = str(error).splitlines()[0]
                if self._closing.wait(_RETRY_SECONDS):
                    time.sleep(0.5)
                continue
            self._wake.wait()
            self._wake.clear()

    def _open(self) -> MlflowClient:
        from mlflow.entities import Param, RunTag

        client = registry.client(self._uri, create=True)
        known = read_json(self._output / "tracking.json")
        if known and known["uri"] == self._uri:
            self.run_id = known["run_id"]
            client.update_run(self.run_id, status="RUNNING")
        else:
            experiment = registry.experiment_id(client, self._uri, self._experiment)
            run = client.create_run(experiment, run_name=self._name, tags=self._tags)
            self.run_id = run.info.run_id
            write_json(self._output / "tracking.json", {"uri": self._uri, "run_id": self.run_id})
            items = [Param(key, str(value)[:_LONGEST_PARAMETER]) for key, value in self._parameters.items()]
            for start in range(0, len(items), 100):
                client.log_batch(self.run_id, params=items[start : start + 100])
        client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in self._tags.items()])
        for path in self._artifacts:
            client.log_artifact(self.run_id, str(path))
        self._opened.set()
        return client

    def _deliver(self, client: MlflowClient) -> None:
        from mlflow.entities import Metric

        while self._pending:
            rows = [self._pending[i] for i in range(min(20, len(self._pending)))]
            metrics = [
                Metric(key, float(value), row["time"], row["step"]) for row in rows for key, value in row["figures"].items()
            ]
            client.log_batch(self.run_id, metrics=metrics)
            for _ in rows:
                self._pending.popleft()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read_undelivered(output: Path) -> list[dict[str, Any]]:
    path = output / "undelivered.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
