"""A page in a real browser at several widths, light, dark and on paper. Without a browser, tests are skipped."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")

_MEASURE = (Path(__file__).parent / "measure.js").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Seen:
    """What a browser measured of a page at ``width`` in a ``dark`` or light scheme."""

    page: str
    width: int
    dark: bool
    found: dict[str, Any]


def browser() -> str:
    """The path of a Chromium; skips the test where none is installed."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium (Debian: apt-get install chromium-headless-shell): pages are not looked at in a browser")
    return found


def measured(folder: Path, pages: list[Path], widths: list[int]) -> list[Seen]:
    """Every page at every width, light and dark, in one start of the browser."""
    asked, frames = [], []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.count("prefers-color-scheme: dark") == 1 and text.count("min-width") > 0
        for dark in (False, True):
            copy = folder / f"{page.stem}-{'dark' if dark else 'light'}.html"
            # Whatever the machine prefers.
            copy.write_text(
                text.replace("(prefers-color-scheme: dark)", f"(min-width: {1 if dark else 99999}px)"), encoding="utf-8"
            )
            for width in widths:
                asked.append((page.name, width, dark))
                frames.append(f'<iframe src="{copy.name}" style="width: {width}px; height: 900px; border: 0"></iframe>')
    harness = folder / "harness.html"
    harness.write_text(f"<!doctype html><meta charset=utf-8><body>{''.join(frames)}<script>{_MEASURE}</script>", encoding="utf-8")
    text = run(folder, "--dump-dom", harness.as_uri())
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', text, re.DOTALL)
    return [Seen(*what, each) for what, each in zip(asked, json.loads(unescape(found)), strict=True)]


def pages_of_print(folder: Path, page: Path) -> int:
    """Sheets of A4 that the page takes on paper."""
    run(folder, f"--print-to-pdf={folder / 'page.pdf'}", "--no-pdf-header-footer", page.as_uri())
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", (folder / "page.pdf").read_bytes()))


def said_on_paper(folder: Path, page: Path) -> str:
    """The text that is there when the page is printed, line by line; what the style sheet leaves out on paper is not in it."""
    text = page.read_text(encoding="utf-8")
    assert "@media print" in text and "@media screen" in text
    text = text.replace("@media print", "@media all").replace("@media screen", "@media not all")
    told = "<script>onload = () => { const said = document.body.innerText; document.body.innerHTML = '<pre id=\"said\"></pre>'; "
    told += "document.getElementById('said').textContent = said; };</script>"
    copy = folder / f"{page.stem}-paper.html"
    copy.write_text(text.replace("</body>", f"{told}</body>"), encoding="utf-8")
    (said,) = re.findall(r'<pre id="said">(.*?)</pre>', run(folder, "--dump-dom", copy.as_uri()), re.DOTALL)
    return unescape(said)


def picture(page: Path, out: Path, width: int, height: int) -> None:
    """A PNG of the page's upper part."""
    run(out.parent, f"--screenshot={out}", f"--window-size={width},{height}", page.as_uri())


def run(folder: Path, *arguments: str) -> str:
    """One start of the browser, without network; its standard output."""
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--allow-file-access-from-files",
        "--proxy-server=127.0.0.1:9",
    ]
    command = [browser(), *options, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
