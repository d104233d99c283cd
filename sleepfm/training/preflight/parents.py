"""Faults of the models that a job starts from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from sleepfm import builtin
from sleepfm.errors import RegistryError
from sleepfm.registry.package import read_config
from sleepfm.registry.registry import find, look_up
from sleepfm.training.folder import RunFolder
from sleepfm.training.preflight.faults import Fault

_LIKE_REGISTERED = re.compile(r"(?:[a-z]+:/*)?(?P<rest>[^/@:]+(?:@[^/@:]+|/[0-9]+))")


def missing_parents(parents: Mapping[str, str], started_from: Mapping[str, str], store: str) -> list[Fault]:
    """Every model that is not there, without fetching any.

    Args:
        parents: addresses by the key of the configuration that names them.
        started_from: the versions that a run which goes on started from, by address.
        store: the registry.
    """
    keys: dict[str, list[str]] = {}
    for key, stated in parents.items():
        address = started_from.get(stated, stated)
        try:
            if address.startswith("models:"):
                find(address, store)
            elif builtin.is_address(address):
                look_up(address, store)
            elif key != "init_from" or not RunFolder(address).is_run():
                read_config(Path(address))
        except RegistryError as error:
            keys.setdefault(f"{error}{_hint(address)}", []).append(key)
    return [Fault(f"{', '.join(names)}: {reason}", False) for reason, names in keys.items()]


def _hint(address: str) -> str:
    """What ``address`` may be meant to be, where it reads like that of a registered model and is taken for a folder."""
    written = _LIKE_REGISTERED.fullmatch(address)
    if not written or address.startswith("models:") or Path(address).exists():
        return ""
    return f"; did you mean models:/{written['rest']}?"
