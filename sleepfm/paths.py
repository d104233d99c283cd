"""Where the shipped configuration files are, in a checkout and in an installed package."""

from __future__ import annotations

import sys
from pathlib import Path

from sleepfm.errors import ConfigError


def config_root() -> Path:
    """Folder that holds ``cohorts/``, ``models/``, ``pretrain/``, ``downstream/`` and ``deepspeed/``.

    Raises:
        ConfigError: neither the checkout nor the installation holds it.
    """
    candidates = (Path(__file__).parents[1] / "configs", Path(sys.prefix) / "share" / "sleepfm" / "configs")
    for folder in candidates:
        if (folder / "cohorts").is_dir():
            return folder
    raise ConfigError(f"no configs/ folder found; looked in {', '.join(map(str, candidates))}; reinstall sleepfm")
