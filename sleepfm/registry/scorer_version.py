"""``sleepfm-scorer``: which models score a night together, with which windows and thresholds, as one registered version.

A version holds no weights. Its ``config.yaml`` names a model of each task by name, version and the digests of its files, and says
how it is used (:class:`sleepfm.models.usage.Usage`); the models are fetched as always. :func:`bind_champions` makes a version of
the tasks' champions and gives it the alias ``champion``, which is what ``sleepfm score`` takes: a night is then scored by models
that belong together, however aliases move meanwhile.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sleepfm.errors import ModelError, RegistryError
from sleepfm.files import sha256_file, write_atomic
from sleepfm.registry import registry
from sleepfm.registry.entities import log_datasets
from sleepfm.registry.package import CARD, CONFIG, SCORER_KIND
from sleepfm.registry.promotion import CHAMPION
from sleepfm.registry.registry import Entry
from sleepfm.registry.store import answering, client, experiment_id, store_uri, versions_of

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SCORER = "sleepfm-scorer"
EXPERIMENT = "sleepfm"
_ATTEMPTS = 5


@dataclass(frozen=True)
class Part:
    """The model of one task: a registered version with the digests of its files, and how it is used, in plain types."""

    name: str
    version: str
    sha256: str
    sha256_config: str
    usage: dict[str, Any]

    @property
    def address(self) -> str:
        """``models:/NAME/VERSION``."""
        return f"models:/{self.name}/{self.version}"

    @property
    def label(self) -> str:
        """``NAME:VERSION``."""
        return f"{self.name}:{self.version}"

    @property
    def digests(self) -> dict[str, str]:
        """Under the keys of tags of a version."""
        return {"sha256": self.sha256, "sha256.config": self.sha256_config}


def parts_of(config: Mapping[str, Any], origin: str) -> dict[str, Part]:
    """The models of a scorer by task, from its ``config.yaml``; ``origin`` names the file in messages.

    Raises:
        ModelError: it is not as this module writes it.
    """
    try:
        return {str(task): Part(**part) for task, part in config["parts"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{origin}: has no models under 'parts'; the scorer is damaged: bind a new one") from error


def bind_champions(addresses: Mapping[str, str], store: str | None = None) -> str | None:
    """Make what ``addresses`` mean, by task, a version of ``sleepfm-scorer``, and that its champion; its number.

    None where one of them, the champion of a task, is not there. The same models are registered once. Whoever of several jobs
    is last leaves a version of the champions that there are then.

    Raises:
        RegistryError: the store refuses or does not answer.
        ModelError: a champion is no model of its task.
    """
    for _ in range(_ATTEMPTS):
        entries = _looked_up(addresses, store)
        if entries is None:
            return None
        version = bind(entries, store)
        registry.name_version(SCORER, version, CHAMPION, store)
        now = _looked_up(addresses, store)
        if now is not None and {e.uri for e in now.values()} == {e.uri for e in entries.values()}:
            return version
    raise RegistryError(f"{SCORER}: the champions of its tasks moved {_ATTEMPTS} times while it was bound; sleepfm models bind")


def bind(entries: Mapping[str, Entry], store: str | None = None) -> str:
    """Register the models ``entries``, by task, as a version of ``sleepfm-scorer``; its number, that of an equal one if there is.

    Raises:
        RegistryError: the store refuses or does not answer.
        ModelError: an entry is no model of its task.
    """
    mlflow_client = client(store)
    parts = {task: _part(task, entry) for task, entry in entries.items()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        content = {"model": {"kind": SCORER_KIND}, "parts": {task: asdict(part) for task, part in parts.items()}}
        write_atomic(folder / CONFIG, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        write_atomic(folder / CARD, _card(parts))
        digest = sha256_file(folder / CONFIG)
        with answering(store):
            for version in versions_of(mlflow_client, SCORER):
                if version.tags.get("sha256.config") == digest:
                    return str(version.version)
            run_id = _run(mlflow_client, entries, store)
        # There are no weights: whatever asks for their digest gets that of what names them.
        tags = {"sha256": digest, "sha256.config": digest} | _shared_tags(entries)
        labels = [part.label for part in parts.values()]
        return registry.register(SCORER, folder, run_id, tags, _figures(entries), labels, store)


def _looked_up(addresses: Mapping[str, str], store: str | None) -> dict[str, Entry] | None:
    entries = {task: registry.look_up_if_there(address, store) for task, address in addresses.items()}
    found = {task: entry for task, entry in entries.items() if entry is not None}
    return found if len(found) == len(entries) else None


def _part(task: str, entry: Entry) -> Part:
    from sleepfm.config import validate
    from sleepfm.models.downstream import DownstreamConfig
    from sleepfm.models.usage import SECTION, Usage

    config = registry.fetch_config(entry)
    origin = f"{CONFIG} of {entry.uri}"
    if config["model"].get("kind") != "downstream":
        raise ModelError(f"{origin}: a {config['model'].get('kind')}, which gives no stages or events")
    usage = Usage.from_package(config, validate(DownstreamConfig, config["model"], origin), origin)
    if usage.task != task:
        raise ModelError(f"{origin}: a model of {usage.task}, expected one of {task}")
    return Part(entry.name, entry.version, entry.tags["sha256"], entry.tags["sha256.config"], usage.to_package()[SECTION])


def _run(mlflow_client: MlflowClient, entries: Mapping[str, Entry], store: str | None) -> str:
    """A run of MLflow's that holds the figures and data sets of the models."""
    import time

    from mlflow.entities import Metric

    made = mlflow_client.create_run(experiment_id(mlflow_client, store_uri(store), EXPERIMENT), run_name=SCORER)
    run_id, now = made.info.run_id, int(time.time() * 1000)
    mlflow_client.log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in _figures(entries).items()])
    digests = {task: entry.tags["dataset_digest"] for task, entry in entries.items() if "dataset_digest" in entry.tags}
    if digests:
        log_datasets(mlflow_client, run_id, digests, "training")
    mlflow_client.set_terminated(run_id)
    return str(run_id)


def _figures(entries: Mapping[str, Entry]) -> dict[str, float]:
    """The figures of all models, each behind its task: ``stage/val/kappa``."""
    prefix = "metric."
    return {
        f"{task}/{key.removeprefix(prefix)}": float(value)
        for task, entry in entries.items()
        for key, value in entry.tags.items()
        if key.startswith(prefix)
    }


def _shared_tags(entries: Mapping[str, Entry]) -> dict[str, str]:
    """Tags that the versions agree in, of those that say where they are from; and the intervals of all figures."""
    found = {}
    for key in ("dataset_digest", "git_commit"):
        values = {entry.tags.get(key, "") for entry in entries.values()}
        if len(values) == 1 and (value := values.pop()):
            found[key] = value
    intervals = {
        f"{task}/{name}": interval
        for task, entry in entries.items()
        for name, interval in json.loads(entry.tags.get(registry.INTERVALS, "{}")).items()
    }
    return found | ({registry.INTERVALS: json.dumps(intervals)} if intervals else {})


def _card(parts: Mapping[str, Part]) -> str:
    lines = [f"# {SCORER}", "", "The models that score a night together, and how each is used.", ""]
    lines += ["| task | model | window | threshold of an epoch | of a second |", "|---|---|---|---|---|"]
    for task, part in parts.items():
        cells: Sequence[Any] = [part.usage.get(key) for key in ("window", "threshold", "event_threshold")]
        told = " | ".join("–" if cell is None else str(cell) for cell in cells)
        lines.append(f"| {task} | {part.label} | {told} |")
    return "\n".join([*lines, "", "`sleepfm score` takes the champion of it. For research; not a medical device.", ""])
