"""Where the shipped configuration files are, in a checkout and in an installed package."""

from __future__ import annotations

import difflib
import sys
import sysconfig
from pathlib import Path

from sleepfm.errors import ConfigError

_SHARE = Path("share") / "sleepfm" / "configs"


def config_root() -> Path:
    """Folder that holds ``cohorts/``, ``models/``, ``pretrain/``, ``downstream/`` and ``deepspeed/``.

    Raises:
        ConfigError: neither the checkout nor the installation holds it.
    """
    beside = Path(__file__).parents[1]
    # The checkout; `pip install --target`; an environment; `pip install --user`.
    user = Path(sysconfig.get_path("data", sysconfig.get_preferred_scheme("user")))
    candidates = (beside / "configs", beside / _SHARE, Path(sys.prefix) / _SHARE, user / _SHARE)
    for folder in candidates:
        if (folder / "cohorts").is_dir():
            return folder
    raise ConfigError(f"no configs/ folder found; looked in {', '.join(map(str, candidates))}; reinstall sleepfm")


def find_config(name: str | Path) -> Path:
    """The file ``name``, or else the shipped one of that name: ``configs/pretrain/eeg-tiny.yaml`` or ``pretrain/eeg-tiny.yaml``.

    So the commands of the manual are the same in a checkout and in any folder where the package is installed. A name that is
    neither is returned as it stands, for its reader to refuse.
    """
    path = Path(name)
    return path if path.is_absolute() or path.exists() else shipped_config(path) or path


def shipped_config(name: str | Path) -> Path | None:
    """The shipped file that commands know as ``name``, with ``configs/`` or without; None where there is none."""
    path = Path(name)
    shipped = config_root() / Path(*path.parts[1:] if path.parts[:1] == ("configs",) else path.parts)
    return shipped if shipped.is_file() else None


def shipped_alike(name: str | Path) -> list[str]:
    """What commands know the shipped files as whose own name, without folders, is that of ``name``, with ``.yaml`` or without; if
    there is none, those whose name is nearest to it, in the folder that ``name`` has if that is a shipped one.
    """
    file = f"{Path(name).name.removesuffix('.yaml')}.yaml"
    shipped = sorted(config_root().rglob("*.yaml"))
    alike = [path for path in shipped if path.name == file]
    if not alike:
        beside = [path for path in shipped if path.parent.name == Path(name).parent.name]
        alike = _nearest(file, beside) or _nearest(file, shipped)
    return [path.relative_to(config_root()).as_posix() for path in alike]


def _nearest(name: str, files: list[Path]) -> list[Path]:
    """Those of ``files`` for which ``name`` may be meant, with a slip of a letter or two; none if it is like no name."""
    near = difflib.get_close_matches(Path(name).stem, {file.stem for file in files}, n=1, cutoff=0.8)
    return [file for file in files if file.stem in near]
