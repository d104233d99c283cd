"""A picture of a page that this project wrote: ``python scripts/page_image.py PAGE.html OUT.png [WIDTH HEIGHT]``.

Needs Chromium (Debian: ``apt-get install chromium-headless-shell``), which is given no network.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")


def main(page: str, out: str, width: str = "1120", height: str = "1560") -> int:
    """Write the upper ``width`` by ``height`` pixels of ``page`` to ``out``."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        print(f"no Chromium found ({', '.join(NAMES)})", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--proxy-server=127.0.0.1:9"]
        options += [f"--user-data-dir={profile}", f"--window-size={width},{height}", f"--screenshot={Path(out).absolute()}"]
        return subprocess.run([browser, *options, Path(page).absolute().as_uri()], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
