"""The scorer that an installation may bring with it: models trained on synthetic nights alone, a package a task in ``weights/``.

``builtin`` and ``models:/sleepfm-scorer@builtin`` name all of them, ``builtin/stage`` and the like one each; where one model is
asked for, ``builtin`` is that of stages. A folder of that name is given as ``./builtin``. What is made from one keeps its address
with version and digest, ``builtin/stage:0.2.0@sha256:…``, which another installation's model does not have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sleepfm.errors import RegistryError
from sleepfm.files import read_json

WEIGHTS = Path(__file__).parent / "weights"
ABOUT = "about.json"
NAME, SCORER = "builtin", "models:/sleepfm-scorer@builtin"
# What names all models.
ALL = (NAME, SCORER)
_FIRST = "stage"
_PINNED = re.compile(r"(?P<address>[^:@]+):(?P<version>[^:@]+)@sha256:(?P<digest>[0-9a-f]+)")


def is_there() -> bool:
    """Whether this installation has weights."""
    return (WEIGHTS / ABOUT).is_file()


def is_address(address: str) -> bool:
    """Whether ``address`` names built-in models."""
    return address in ALL or address.startswith(f"{NAME}/")


def addresses() -> tuple[str, ...]:
    """The address of each built-in model. Raises :class:`RegistryError` where there is none."""
    return tuple(f"{NAME}/{task}" for task in _about()["tasks"])


def package(address: str) -> Path:
    """The folder of the model that ``address`` names.

    Raises:
        RegistryError: this installation has no weights, or none for that task.
    """
    tasks = _about()["tasks"]
    task = _task_of(address)
    if task not in tasks:
        raise RegistryError(
            f"{address}: no built-in model of that name; there are {', '.join(f'{NAME}/{name}' for name in tasks)}"
        )
    return WEIGHTS / task


def pinned(address: str, sha256: str) -> str:
    """The address of the model that ``address`` names, with the version that trained it and the digest of its weights."""
    if _PINNED.fullmatch(address):
        return address
    return f"{NAME}/{_task_of(address)}:{_about()['version']}@sha256:{sha256}"


def unpinned(address: str) -> tuple[str, str, str]:
    """Inverse of :func:`pinned`: address, version and digest, the last two empty where ``address`` does not say them."""
    match = _PINNED.fullmatch(address)
    return (match["address"], match["version"], match["digest"]) if match else (address, "", "")


def _task_of(address: str) -> str:
    return _FIRST if address in ALL else unpinned(address)[0].removeprefix(f"{NAME}/")


def statement(used: Iterable[str]) -> list[str]:
    """A line for whoever reads what models at the addresses ``used`` say, if a built-in one is among them; else none."""
    if not any(is_address(address) for address in used):
        return []
    about = _about()
    return [
        f"built-in models: trained on {about['trained_on']}; measured on {about['measured_on']}; not a medical device, "
        "and no diagnosis may rest on it"
    ]


def _about() -> dict[str, Any]:
    try:
        found = read_json(WEIGHTS / ABOUT)
    except ValueError as error:
        raise RegistryError(f"{WEIGHTS / ABOUT}: cannot be read; reinstall sleepfm") from error
    if found is None:
        raise RegistryError(
            f"{NAME}: this installation has no built-in weights; `make weights` in a checkout trains them on synthetic nights "
            "and says where they belong, or name another model (sleepfm models lists what a registry holds)"
        )
    content: dict[str, Any] = found
    return content
