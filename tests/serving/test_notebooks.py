"""The notebooks of the manual run from above to below, in miniature, beside a registry with untrained models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
MINIATURE = {"HOURS = 1.0": "HOURS = 0.25", "PEOPLE, HOURS = 6, 1.0": "PEOPLE, HOURS = 3, 0.25"}


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    names: dict[str, object] = {}
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells), "notebooks are kept without outputs"
    for number, cell in enumerate(cells, 1):
        code = "".join(cell["source"])
        for long, short in MINIATURE.items():
            code = code.replace(long, short)
        exec(compile(code, f"{path.name}, cell {number}", "exec"), names)
