"""The MLflow store that holds runs and models: its address, its client, and what it says when it does not answer."""

from __future__ import annotations

import difflib
import logging
import os
import re
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sleepfm.errors import RegistryError, SleepFMError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

DEFAULT_STORE = "sqlite:///runs/mlflow.db"
# What MLflow answers where a name, version or alias is not there, whatever the kind of store.
NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
_LONGEST_REASON = 200
_PLACEHOLDER = "sqlite:////path/to/runs/mlflow.db"
_PASSWORD = re.compile(r"((?:^|://)[^:/@\s]*):(?!//)[^@\s]*@")
# A server's address without http://; a host of letters, digits, dots and dashes, or in brackets one of IPv6.
_HOST_AND_PORT = re.compile(r"(?:[^/@\s]+@)?(?:[\w.-]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}(?:/.*)?")
# What MLflow's server answers where it does not know the name by which it is called (mlflow.server.security_utils).
_FOREIGN_NAME = "Invalid Host header"
_REFUSALS = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    # It counts files, most of which are small.
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def store_uri(uri: str | None = None) -> str:
    """``uri`` if stated, else ``MLFLOW_TRACKING_URI``, else the default store below the working folder."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other store."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def shown(uri: str) -> str:
    """``uri`` as messages and files have it: without the password in it."""
    return _PASSWORD.sub(r"\1:***@", uri)


def no_registry(file: Path) -> str:
    """What is wrong where there is no SQLite store at ``file``, and what to do; often the working folder is another one."""
    return f"no registry at {file}: train a model first (make demo), or say where it is, MLFLOW_TRACKING_URI={_PLACEHOLDER}"


def missing_folder(uri: str) -> Path | None:
    """The folder of a SQLite store by its absolute path, if it is not there: such a path is more likely mistyped than meant.
    Folders below the working folder, as that of the default store, are made.
    """
    file = sqlite_file(uri)
    return file.parent if file is not None and file.is_absolute() and not file.parent.is_dir() else None


def told_of_path(uri: str) -> str:
    """What to say of a path, or of a host and its port alone, in the place of a store's address; empty for an address.

    MLflow takes a path for a folder with a file for each figure, and refuses that unless MLFLOW_ALLOW_FILE_STORE is set.
    """
    if _HOST_AND_PORT.fullmatch(uri) and not Path(uri).exists():
        return f"is no address of a store; write {shown(f'http://{uri}')}"
    scheme = uri.split(":", 1)[0]
    is_address = scheme != "file" and ("://" in uri or scheme in ("databricks", "databricks-uc", "uc"))
    if is_address or os.environ.get("MLFLOW_ALLOW_FILE_STORE"):
        return ""
    path = uri.removeprefix("file://").removeprefix("file:")
    return f"is no address of a store; write sqlite:///{path}{'/mlflow.db' if Path(path).is_dir() else ''}"


def client(uri: str | None = None, create: bool = False) -> MlflowClient:
    """A client of the store at ``uri``.

    Requests to a server end after about a minute at the longest, unless MLflow's own variables say otherwise.

    Raises:
        RegistryError: a path and no address; the store is a SQLite file that does not exist, and ``create`` is false; one in a
            folder that is not there, see :func:`missing_folder`; or none that can be opened.
    """
    uri = stated = store_uri(uri)
    if told := told_of_path(uri):
        raise RegistryError(f"{shown(uri)}: {told}")
    file = sqlite_file(uri)
    if file is not None:
        # MLflow keeps open stores by address, which must not change its meaning with the working folder.
        uri = f"sqlite:///{file.resolve()}"
        if file.exists() and not (file.is_file() and os.access(file, os.R_OK)):
            # MLflow would try again for minutes.
            raise RegistryError(f"{file}: is not a file that can be read; set MLFLOW_TRACKING_URI to another store")
        if not file.exists() and not create:
            raise RegistryError(no_registry(file))
        if folder := missing_folder(stated):
            raise RegistryError(f"{stated}: no folder {folder}; create it, or give a file in another folder")
    set_defaults()
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It tells every failed attempt to connect; the last one comes as an error.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)
    with answering(uri):
        if file is not None and not file.exists():
            _create_store(file.resolve())
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def set_defaults() -> None:
    """What MLflow reads from the environment, some of it when it is imported."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def _create_store(file: Path) -> None:
    """Make an empty store at ``file`` that is there with all its tables or not at all.

    MLflow makes a file first and its tables over some seconds, so that two jobs which start together meet half of them, and a
    kill leaves half of them for good. It is made under another name; the first to be ready gives it ``file``'s.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        store = SqlAlchemyStore(f"sqlite:///{temporary}", str(file.parent / "mlartifacts"))
        store.engine.dispose()
        try:
            os.link(temporary, file)
        except FileExistsError:
            pass
        except OSError:
            # A file system without hard links: a rename, which a job that was as fast would undo.
            temporary.replace(file)
    finally:
        for leftover in temporary.parent.glob(f"{temporary.name}*"):
            leftover.unlink()


@contextmanager
def answering(uri: str | None = None) -> Iterator[None]:
    """Turns what MLflow raises where the store at ``uri`` is away, is none, or answers nonsense into a :class:`RegistryError`."""
    set_defaults()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except SleepFMError:
        raise
    # ValueError: an answer that is no JSON, and an address that is none. ImportError: a database whose driver is not installed.
    except (MlflowException, SQLAlchemyError, OSError, ValueError, ImportError) as error:
        raise RegistryError(f"{shown(store_uri(uri))}: {_told_of_failure(error, store_uri(uri))}") from error


def _told_of_failure(error: BaseException, uri: str) -> str:
    """What is wrong where the store at ``uri`` raised ``error``, and what to do."""
    if _FOREIGN_NAME in str(error):
        name = urlsplit(uri).netloc.rpartition("@")[2]
        return (
            f"the server refuses the host name {name} ({_FOREIGN_NAME}); start it with --allowed-hosts {name}, or call it in "
            "MLFLOW_TRACKING_URI by a name that it allows"
        )
    if getattr(error, "error_code", "") in _REFUSALS:
        return (
            f"the registry refuses access ({reason_of(error)}); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to "
            "those of a user with the right to it"
        )
    return f"the registry does not answer ({reason_of(error)}); start it, or set MLFLOW_TRACKING_URI to another one"


def reason_of(error: BaseException) -> str:
    """The innermost thing that the system or SQLite said, else the first line of ``error``."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        if isinstance(inner, sqlite3.Error):
            return str(inner)
        inner = inner.__cause__ or inner.__context__
    if _FOREIGN_NAME in str(error):
        return f"{_FOREIGN_NAME}: the server refuses the name by which it is called; start it with --allowed-hosts HOST:PORT"
    text = shown(" ".join(str(error).split()) or type(error).__name__)
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} ..."


def experiment_id(mlflow_client: MlflowClient, uri: str, name: str) -> str:
    """The experiment ``name``, made on first use; artifacts of a SQLite store go beside it."""
    from mlflow.exceptions import MlflowException

    found = mlflow_client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    file = sqlite_file(uri)
    location = str(file.parent.resolve() / "mlartifacts") if file is not None else None
    try:
        return mlflow_client.create_experiment(name, artifact_location=location)
    except MlflowException:
        # Another job made it meanwhile.
        found = mlflow_client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id


def pages(ask: Callable[[str | None], Any]) -> Iterator[Any]:
    """The items of every page that a search of MLflow has; ``ask`` takes the token of a page, None for the first."""
    token: str | None = None
    while True:
        page = ask(token)
        yield from page
        token = page.token
        if not token:
            return


def versions_of(mlflow_client: MlflowClient, name: str) -> list[ModelVersion]:
    """Every version of ``name`` with its tags, by number."""
    found = pages(lambda token: mlflow_client.search_model_versions(f"name = '{name}'", page_token=token))
    return sorted(found, key=lambda version: int(version.version))


def registered(name: str, models: Iterable[str]) -> str:
    """What to say of the registered ``models`` where there is none called ``name``: their names, the nearest first."""

    def distance(model: str) -> tuple[float, str]:
        return -difflib.SequenceMatcher(None, name, model).ratio(), model

    return f"registered models: {', '.join(sorted(set(models), key=distance)) or 'none'}"
