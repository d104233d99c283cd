"""Which models nights are scored with where nobody names any."""

from __future__ import annotations

import json

from sleepfm import builtin
from sleepfm.errors import RegistryError
from sleepfm.registry.promotion import CHAMPION
from sleepfm.registry.registry import look_up_if_there
from sleepfm.registry.scorer_version import SCORER
from sleepfm.registry.store import no_registry, sqlite_file, store_uri
from sleepfm.tasks import TASKS

SCORER_CHAMPION = f"models:/{SCORER}@{CHAMPION}"
# By task, of those that are scored unless others are named.
CHAMPIONS = {task.name: f"models:/{task.registered_name}@{CHAMPION}" for task in TASKS.values() if not task.optional}


def default_models(store: str | None = None) -> tuple[tuple[str, ...], str]:
    """The addresses, and a line that says which they are: the champion of ``sleepfm-scorer``, by its version; where there is
    none, the champions of the tasks; where there is none of these either, the built-in models, if the installation has them.

    A registry that does not answer is not one without champions.

    Raises:
        RegistryError: there is no registry and no built-in model, or the registry does not answer.
    """
    file = sqlite_file(store_uri(store))
    if file is not None and not file.exists():
        if builtin.is_there():
            return builtin.addresses(), f"no registry at {file}: scoring with the built-in models"
        raise RegistryError(
            f"{no_registry(file)}; this installation has no built-in weights either, which `make weights` in a checkout trains"
        )
    entry = look_up_if_there(SCORER_CHAMPION, store)
    if entry is not None:
        return (entry.uri,), f"scoring with {entry.uri}: {', '.join(json.loads(entry.tags.get('parents', '[]')))}"
    names = ", ".join(TASKS[task].registered_name for task in CHAMPIONS)
    if builtin.is_there() and not any(look_up_if_there(address, store) for address in CHAMPIONS.values()):
        return builtin.addresses(), f"no champion of {SCORER}, {names}: scoring with the built-in models"
    said = f"no {SCORER_CHAMPION}: scoring with the champions of {names}; `sleepfm models bind` makes them one version"
    return tuple(CHAMPIONS.values()), said
