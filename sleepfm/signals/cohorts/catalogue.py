"""The cohorts that are known: shipped in ``configs/cohorts``, the user's own, and which one a recording is of."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath

from sleepfm.config import load_config
from sleepfm.errors import ConfigError
from sleepfm.paths import config_root
from sleepfm.signals.cohorts.cohort import Cohort, normalise_label

AUTO = "auto"
GENERIC = "generic"
# Environment variable that names a folder of cohort files of the user's own.
OWN_COHORTS = "SLEEPFM_COHORTS"
DEFAULTS = "defaults"
# Files that cohorts extend and that are none.
_BASE = "base-"


def load_cohort(name_or_path: str) -> Cohort:
    """A cohort by the name of its file, in the user's own folder or in ``configs/cohorts``, or by the path of a YAML file.

    Raises:
        ConfigError: no such cohort (the known ones are named), or a file that is not valid.
    """
    if Path(name_or_path).suffix in (".yaml", ".yml"):
        return _load(Path(name_or_path))
    found = _files(config_root() / "cohorts") | _files(_own_folder())
    if name_or_path not in found:
        known = ", ".join([AUTO, *sorted(found)])
        raise ConfigError(
            f"cohort {name_or_path!r} is unknown; choose from {known}, or give a YAML file or a folder of such files"
        )
    return _load(found[name_or_path])


@lru_cache(maxsize=256)
def _load(path: Path) -> Cohort:
    return load_config(Cohort, path)


def cohort_names() -> tuple[str, ...]:
    """Names of the cohorts that come with the package."""
    return tuple(_files(config_root() / "cohorts"))


def _own_folder() -> Path | None:
    """The user's own folder of cohorts, by the environment."""
    return Path(os.environ[OWN_COHORTS]) if os.environ.get(OWN_COHORTS) else None


def _files(folder: Path | None) -> dict[str, Path]:
    """Cohort files in ``folder`` by name, sorted; those that others extend are left out."""
    paths = [path for ending in ("yaml", "yml") for path in folder.glob(f"*.{ending}")] if folder else []
    # By name: `sleep-edf` comes before `sleep-edf-telemetry`, in digests too.
    ordered = sorted(paths, key=lambda path: path.stem)
    return {path.stem: path for path in ordered if path.stem != DEFAULTS and not path.name.startswith(_BASE)}


@dataclass(frozen=True)
class Cohorts:
    """Those among which ``auto`` chooses. Of those that fit alike the user's ``own`` come before the ``shipped`` ones, and they
    take the place of one whose name they have.
    """

    own: tuple[Cohort, ...]
    shipped: tuple[Cohort, ...]

    def all(self) -> tuple[Cohort, ...]:
        """The shipped ones in order of their names, and the user's."""
        return (*self.shipped, *self.own)

    def named(self, name: str) -> Cohort | None:
        """The cohort that is called ``name``."""
        return next((cohort for cohort in self.all() if cohort.name == name), None)

    def recognise(self, name: str, labels: Iterable[str]) -> Cohort:
        """As :func:`recognise_cohort`."""
        found = {normalise_label(label) for label in labels}
        file = PurePath(name).name

        def by_name(cohort: Cohort) -> bool:
            return bool(cohort.recognise.name) and re.search(cohort.recognise.name, file) is not None

        def by_labels(cohort: Cohort) -> bool:
            rule = cohort.recognise
            return any(
                labels and found.issuperset(map(normalise_label, labels)) and re.search(pattern, file)
                for pattern, labels in (("", rule.labels), *((pair.name, pair.labels) for pair in rule.both))
            )

        for fits in (by_name, by_labels):
            for cohorts in (self.own, self.shipped):
                fitting = [cohort for cohort in cohorts if cohort.name != GENERIC and fits(cohort)]
                if len(fitting) > 1:
                    names = ", ".join(cohort.name for cohort in fitting)
                    raise ConfigError(f"{name}: fits several cohorts ({names}); choose one with --cohort")
                if fitting:
                    return fitting[0]
        generic = self.named(GENERIC)
        assert generic is not None
        return generic


# Whose rules apply: those of one cohort, or of the one that is recognised, among all that are known (None) or among these.
Rules = Cohort | Cohorts | None


def load_rules(text: str) -> Rules:
    """What ``--cohort`` says: ``auto``, a cohort (:func:`load_cohort`), or a folder of the user's own that joins ``auto``.

    Raises:
        ConfigError: no such cohort, a folder without one, or a file that is not valid.
    """
    if text == AUTO:
        return None if _own_folder() is None else all_cohorts()
    folder = Path(text)
    return all_cohorts(folder) if folder.is_dir() and text not in cohort_names() else load_cohort(text)


def all_cohorts(folder: Path | None = None) -> Cohorts:
    """Those among which ``auto`` chooses, with the user's own in ``folder``, or else in the folder that the environment names.

    Raises:
        ConfigError: a folder without a cohort, or a file that is not valid.
    """
    return _cohorts(folder or _own_folder())


@lru_cache(maxsize=16)
def _cohorts(folder: Path | None) -> Cohorts:
    files = _files(folder)
    if folder and not files:
        raise ConfigError(f"{folder}: no cohort file (*.yaml) in this folder")
    own = tuple(_load(path) for path in files.values())
    names = [cohort.name for cohort in own]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{folder}: two files have the cohort name {twice[0]!r}; give each file a different `name`")
    shipped = [_load(path) for path in _files(config_root() / "cohorts").values()]
    return Cohorts(own, tuple(cohort for cohort in shipped if cohort.name not in names))


def recognise_cohort(name: str, labels: Iterable[str], rules: Rules = None) -> Cohort:
    """The cohort whose file name pattern matches ``name``, else the one all of whose labels are in ``labels``, else ``generic``.

    Of cohorts that fit alike the user's own come first. With the rules of one cohort there is nothing to recognise.

    Raises:
        ConfigError: two cohorts fit equally well.
    """
    return rules if isinstance(rules, Cohort) else (rules or all_cohorts()).recognise(name, labels)
