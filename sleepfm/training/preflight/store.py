"""Faults of the address of the store that takes runs and models: one that can never work is found before anything is trained."""

from __future__ import annotations

import difflib
import socket
from urllib.parse import urlsplit

from sleepfm.registry.store import missing_folder, shown, told_of_path
from sleepfm.training.preflight.faults import Fault

_SERVERS = ("http", "https")
_DATABASES = ("postgresql", "mysql", "mssql")
# Further kinds that MLflow takes; a path without a scheme is a folder, if MLFLOW_ALLOW_FILE_STORE lets it be.
_OTHERS = ("sqlite", "file", "databricks", "")
_CONNECT_SECONDS = 3.0
_EXAMPLES = "such as sqlite:///runs/mlflow.db or http://HOST:5000"


def faults_of_store(uri: str, key: str) -> list[Fault]:
    """What is wrong with ``uri`` whether or not anything answers there; ``key`` is the setting that states it.

    Source of the kinds: MLflow's tracking stores (``mlflow.store.db.db_types``, ``mlflow.tracking._tracking_service.registry``).
    """
    said = f"{key}={shown(uri)}"
    scheme = uri.split(":", 1)[0].lower() if "://" in uri or uri.startswith("file:") else ""
    kind = scheme.split("+", 1)[0]
    known = (*_SERVERS, *_DATABASES, *_OTHERS)
    if told := told_of_path(uri):
        return [Fault(f"{said}: {told}")]
    if uri == "databricks":
        return []
    if kind not in known:
        near = difflib.get_close_matches(kind, [name for name in known if name], n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}:?" if near else f"give an address {_EXAMPLES}"
        return [Fault(f"{said}: {scheme}: is not a known kind of store; {hint}")]
    if kind in _SERVERS:
        reason = _not_a_server(uri)
        return [Fault(f"{said}: {reason}; give an address {_EXAMPLES}")] if reason else []
    if kind in _DATABASES:
        reason = _not_a_database(uri)
        return [Fault(f"{said}: {reason}")] if reason else []
    if kind == "sqlite":
        if not uri.startswith("sqlite:///") or uri == "sqlite:///":
            return [Fault(f"{said}: gives no file; write sqlite:///FILE, with a fourth slash for an absolute path")]
        folder = missing_folder(uri)
        if folder is not None:
            return [Fault(f"{said}: no folder {folder}; create it, or give a file in another folder")]
    return []


def unreachable_store(uri: str, key: str) -> str:
    """What to say where nothing listens at a server's address now, '' otherwise. Training can go on without it."""
    if uri.split(":", 1)[0].lower() not in _SERVERS:
        return ""
    parts = urlsplit(uri)
    try:
        address = (parts.hostname or "", parts.port or (443 if parts.scheme.lower() == "https" else 80))
        socket.create_connection(address, timeout=_CONNECT_SECONDS).close()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return (
            f"{key}={shown(uri)}: nothing answers there now ({reason}); figures are kept and delivered when it does, and the "
            "model is registered only then"
        )
    return ""


def _not_a_server(uri: str) -> str:
    try:
        parts = urlsplit(uri)
        # A port that is no number shows only here.
        return "" if parts.hostname and parts.port != 0 else "names no host"
    except ValueError as error:
        return str(error)


def _not_a_database(uri: str) -> str:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except SQLAlchemyError as error:
        return f"is no address of a database ({str(error).splitlines()[0]})"
    except ImportError as error:
        return f"the driver of this database is not installed ({error}); install it beside this package"
    return ""
