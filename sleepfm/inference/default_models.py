"""Which models nights are scored with where nobody names any."""

from __future__ import annotations

import json

from sleepfm.registry.promotion import CHAMPION
from sleepfm.registry.registry import look_up_if_there
from sleepfm.registry.scorer_version import SCORER
from sleepfm.tasks import TASKS

SCORER_CHAMPION = f"models:/{SCORER}@{CHAMPION}"
# By task, of those that are scored unless others are named.
CHAMPIONS = {task.name: f"models:/{task.registered_name}@{CHAMPION}" for task in TASKS.values() if not task.optional}


def default_models(store: str | None = None) -> tuple[tuple[str, ...], str]:
    """The addresses, and a line that says which they are: the champion of ``sleepfm-scorer``, by its version; where there is
    none, the champions of the tasks.

    Raises:
        RegistryError: the registry does not answer.
    """
    entry = look_up_if_there(SCORER_CHAMPION, store)
    if entry is not None:
        return (entry.uri,), f"scoring with {entry.uri}: {', '.join(json.loads(entry.tags.get('parents', '[]')))}"
    names = ", ".join(TASKS[task].registered_name for task in CHAMPIONS)
    said = f"no {SCORER_CHAMPION}: scoring with the champions of {names}; `sleepfm models bind` makes them one version"
    return tuple(CHAMPIONS.values()), said
