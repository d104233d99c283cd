"""What nights are scored with where nobody names a model: the champions, or the built-in models where there is no champion."""

from __future__ import annotations

from collections.abc import Sequence

from sleepfm import builtin
from sleepfm.errors import RegistryError
from sleepfm.registry.registry import look_up
from sleepfm.registry.store import NOT_THERE, sqlite_file, store_uri


def champions_or_builtin(champions: Sequence[str], store: str | None = None) -> tuple[str, ...]:
    """``champions`` where the registry holds one of them or the installation has no weights, else the built-in models.

    A registry that does not answer is not one without champions.

    Raises:
        RegistryError: there is no registry and no built-in model, or the registry does not answer.
    """
    file = sqlite_file(store_uri(store))
    there_is_none = file is not None and not file.exists()
    if there_is_none and not builtin.is_there():
        raise RegistryError(
            f"no registry at {file}: train a model first (make demo), or set MLFLOW_TRACKING_URI; this installation has no "
            "built-in weights either, which `make weights` in a checkout trains"
        )
    if builtin.is_there() and (there_is_none or not any(_is_registered(address, store) for address in champions)):
        return builtin.addresses()
    return tuple(champions)


def _is_registered(address: str, store: str | None) -> bool:
    try:
        look_up(address, store)
    except RegistryError as error:
        if getattr(error.__cause__, "error_code", "") in NOT_THERE:
            return False
        raise
    return True
