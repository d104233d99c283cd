"""The whole path in miniature: what ``make demo`` does, killed once on the way, then finished, then asked for again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from killed_runs import killed_in_its_third_step, start

ROOT = Path(__file__).resolve().parents[2]
# Thirteen commands, each of which starts processes that import torch: on two busy cores more than the usual limit.
pytestmark = pytest.mark.timeout(1800)
REGISTERED = {f"sleepfm-neuronet-{name}" for name in ("eeg", "eog", "emg", "ecg", "resp")} | {
    f"sleepfm-{name}" for name in ("synthsleepnet", "stage", "apnea", "hypopnea")
}
COMMAND = [sys.executable, "-u", "-m", "sleepfm.demo", "--config", "demo/miniature.yaml", "--seed", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def output(folder: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture(scope="module")
def finished(folder: Path) -> str:
    """What the second of two runs printed, the first of which was killed in its third step."""
    return killed_in_its_third_step(COMMAND, folder, 13)


def test_a_killed_demo_goes_on_where_it_was(finished: str) -> None:
    assert re.findall(r"^\[ ?(\d+)/13] [a-z-]+: done before", finished, re.MULTILINE) == ["1", "2"]
    assert re.search(r"13 steps, [\d.]+ minutes, peak memory [\d.]+ GiB", finished)


def test_the_scored_nights_ahi_stands_beside_its_scorers(finished: str, folder: Path) -> None:
    demo = folder / "runs" / "demo"
    (written,) = (demo / "scored").glob("*/summary.json")
    ahi = json.loads(written.read_text())["agreement"]["ahi"]
    night = json.loads((demo / "summary.json").read_text())["scored_night"]
    assert night == {"record": written.parent.name, "ahi": ahi} and ahi["scored"] is not None
    assert f"AHI of the scored night {night['record']}: " in finished and f"by its scorer {ahi['scored']:.1f}/h" in finished


def test_the_report_opens_from_disk_and_shows_every_part(finished: str, folder: Path) -> None:
    report = folder / "runs" / "demo" / "report"
    page = (report / "index.html").read_text()
    for part in ("Loss against optimiser step", "Lineage", "A scored night", "Fewer channels", "commonest class"):
        assert part in page, part
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", page)
    for source in re.findall(r"""src=["'](?!data:)([^"']+)["']""", page):
        assert (report / source).is_file(), source


def test_every_model_is_registered_with_its_parents(finished: str, folder: Path) -> None:
    listed = json.loads(output(folder, "sleepfm.cli", "models", "--json"))
    text = json.dumps(listed)
    assert all(name in text for name in REGISTERED)
    assert "champion" in text


def test_commands_work_without_options_afterwards(finished: str, folder: Path) -> None:
    night = next((folder / "runs" / "demo" / "cohort").rglob("*.edf"))
    output(folder, "sleepfm.cli", "score", str(night), "--out", "scored")
    assert {"stages.csv", "events.csv", "hypnodensity.csv", "report.html"} <= {
        path.name for path in (folder / "scored").rglob("*")
    }
    embedded = ["--model", "models:/sleepfm-synthsleepnet@champion", "--out", "embedded.parquet"]
    output(folder, "sleepfm.cli", "embed", str(night), *embedded)
    assert (folder / "embedded.parquet").stat().st_size > 0


def test_a_finished_demo_repeats_nothing(finished: str, folder: Path) -> None:
    again = start(COMMAND, folder)
    printed, _ = again.communicate()
    assert again.returncode == 0, printed
    assert len(re.findall(r": done before", printed)) == 13
