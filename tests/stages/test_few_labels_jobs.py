"""Jobs with few labels and of whole recordings under the launcher: the same on any number of processes, and registered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_nights import make_dataset, make_night

from sleepfm.data.dataset import Dataset
from sleepfm.models.recording import RecordingModel
from sleepfm.registry.registry import load, resolve
from sleepfm.stages.label_curve import read_curve
from sleepfm.training.folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
SPLITS = ("split.pretrain=0.1", "split.label=0.4", "split.val=0.3", "split.test=0.2")
SHORT = ("train.steps=20", "train.checkpoint_every=10", "train.validate_every=5", "deepspeed.dtype=fp32", "evaluate.resamples=50")


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Dataset:
    made = [make_night(f"p{number}", 10, ["EEG_C4", "ECG"], subject=f"person{number}") for number in range(30)]
    return make_dataset(tmp_path_factory.mktemp("jobs") / "set", made, 8, SPLITS)


def launch(script: str, config: str, processes: int, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {
        "PYTHONPATH": paths,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/m.db",
    }
    file = str(ROOT / "configs" / "downstream" / f"{config}.yaml")
    line = [
        sys.executable,
        "-m",
        "sleepfm.training.launcher",
        str(processes),
        str(ROOT / "launch" / script),
        file,
        *SHORT,
        *overrides,
    ]
    return subprocess.run(line, cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=1500)


def test_a_learning_curve_is_the_same_on_any_number_of_processes(nights: Dataset, encoder_package: Path, tmp_path: Path) -> None:
    curves, grids = [], []
    for processes in (1, 2):
        run = tmp_path / f"run{processes}"
        done = launch(
            "probe.py",
            "few-labels-stage-tiny",
            processes,
            tmp_path,
            f"data.path={nights.path}",
            f"encoder={encoder_package}",
            f"train.output={run}",
            f"cache={tmp_path / f'cache{processes}'}",
            "train.global_batch=32",
            "curve.fractions=[0.2,1.0]",
            "curve.seeds=2",
        )
        assert done.returncode == 0, done.stderr
        curves.append(read_curve(RunFolder(run).label_curve))
        grids.append(json.loads(RunFolder(run).evaluation.read_text())["grid"])
    assert curves[0] == curves[1] and grids[0] == grids[1] and len(grids[0]["tried"]) == 15
    assert len(curves[0]["points"]) == 3
    # A run that has come to its end is known as such, curve and all.
    again = launch(
        "probe.py",
        "few-labels-stage-tiny",
        2,
        tmp_path,
        f"data.path={nights.path}",
        f"encoder={encoder_package}",
        f"train.output={run}",
        f"cache={tmp_path / 'cache2'}",
        "train.global_batch=32",
        "curve.fractions=[0.2,1.0]",
        "curve.seeds=2",
    )
    assert again.returncode == 0 and "already trained (20 steps)" in again.stdout
    store = f"sqlite:///{tmp_path}/m.db"
    champion = resolve("models:/sleepfm-stage@champion", store)
    assert champion.tags["selected_by"] == "val/kappa" and load(champion.path).config.head.kind == "linear"


def test_a_probe_of_recordings_is_trained_registered_and_opened(nights: Dataset, encoder_package: Path, tmp_path: Path) -> None:
    table = tmp_path / "people.csv"
    table.write_text("subject,age\n" + "".join(f"person{number},{30 + number}\n" for number in range(30)))
    done = launch(
        "recordings.py",
        "recordings-age-tiny",
        2,
        tmp_path,
        f"data.path={nights.path}",
        f"encoder={encoder_package}",
        f"train.output={tmp_path / 'run'}",
        f"cache={tmp_path / 'cache'}",
        f"values.file={table}",
    )
    assert done.returncode == 0, done.stderr
    assert "registered sleepfm-age:1 (now champion)" in done.stdout
    champion = resolve("models:/sleepfm-age@champion", f"sqlite:///{tmp_path}/m.db")
    assert isinstance(load(champion.path), RecordingModel)
    assert "baseline_mae" in (champion.path / "MODEL_CARD.md").read_text()


def test_a_night_in_one_sequence_ends_early(nights: Dataset, encoder_package: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = launch(
        "finetune.py",
        "finetune-night-tiny",
        2,
        tmp_path,
        f"data.path={nights.path}",
        f"encoder={encoder_package}",
        f"train.output={run}",
        f"cache={tmp_path / 'cache'}",
        "sequence.length=64",
        "train.steps=200",
        "train.patience=2",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] < 200 and result["steps"] == result["best_step"] + 10
    assert load(run / "package").usage.window == 64
