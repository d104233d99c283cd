"""What `pip install sleepfm` alone brings is enough to read, model and score; the other commands name the extra that they need.

The commands run where nothing is importable but the packages that setup.cfg asks for without an extra, and what these need.
"""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sleepfm.files import sha256_file
from sleepfm.registry import registry
from sleepfm.registry.package import CONFIG, WEIGHTS
from sleepfm.registry.promotion import CHAMPION
from sleepfm.registry.store import client, experiment_id

ROOT = Path(__file__).resolve().parents[2]


def brought_by(requirements: list[str]) -> set[str]:
    """The names of the installed distributions that ``requirements`` and theirs, in turn, ask for."""
    waiting, found = [Requirement(line) for line in requirements], set()
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        found.add(key[0])
        for line in importlib.metadata.requires(wanted.name) or []:
            next_one = Requirement(line)
            marks = [{"extra": extra} for extra in ("", *wanted.extras)]
            if next_one.marker is None or any(next_one.marker.evaluate(mark) for mark in marks):
                waiting.append(next_one)
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to what `pip install .` installs."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    folder = tmp_path_factory.mktemp("site-packages")
    for name in brought_by(setup["options"]["install_requires"].split()):
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or []:
            first = Path(file.parts[0])
            if first.name not in ("..", "__pycache__") and not (folder / first).is_symlink():
                (folder / first).symlink_to(Path(str(distribution.locate_file(first))))
    return folder


def run(bare: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``python WORDS`` in ``folder`` with the packages in ``bare`` alone."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "RAY_"))}
    environment = kept | {"PYTHONPATH": f"{ROOT}{os.pathsep}{bare}", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-S", *words], cwd=folder, env=environment, capture_output=True, text=True)


def done(bare: Path, folder: Path, *words: str) -> str:
    found = run(bare, folder, "-m", "sleepfm.cli", *words)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def test_the_extras_are_not_there(bare: Path, tmp_path: Path) -> None:
    names = ("ray", "webdataset", "deepspeed", "ninja", "pytest", "torch")
    program = f"from importlib.util import find_spec; print([name for name in {names} if find_spec(name)])"
    assert run(bare, tmp_path, "-c", program).stdout.strip() == "['torch']"


def test_reading_scoring_and_embedding_need_no_extra(
    bare: Path, tmp_path: Path, downstream_packages: dict[str, Path], encoder_package: Path
) -> None:
    done(bare, tmp_path, "synth", "cohort", "--subjects", "1", "--hours", "0.15", "--workers", "1")
    night = str(next((tmp_path / "cohort").rglob("*.edf")))
    assert "1 recording" in done(bare, tmp_path, "doctor", "cohort")
    packages = [str(path) for path in downstream_packages.values()]
    done(bare, tmp_path, "score", night, "--out", "scored", "--model", *packages)
    assert {"stages.csv", "report.html"} <= {path.name for path in (tmp_path / "scored").rglob("*")}
    done(bare, tmp_path, "embed", night, "--model", str(encoder_package), "--out", "e.parquet")
    assert (tmp_path / "e.parquet").stat().st_size > 0


@pytest.mark.slow
def test_scoring_by_the_champion_of_a_registry_needs_no_extra(
    bare: Path, tmp_path: Path, recordings: list[Path], downstream_packages: dict[str, Path]
) -> None:
    package, store = downstream_packages["stage"], f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    (tmp_path / "runs").mkdir()
    mlflow = client(store, create=True)
    made = mlflow.create_run(experiment_id(mlflow, store, "test"))
    digests = {"sha256": sha256_file(package / WEIGHTS), "sha256.config": sha256_file(package / CONFIG)}
    version = registry.register("sleepfm-stage", package, made.info.run_id, digests, {"val/kappa": 0.5}, store=store)
    registry.name_version("sleepfm-stage", version, CHAMPION, store)
    assert "sleepfm-stage" in done(bare, tmp_path, "models")
    done(bare, tmp_path, "score", str(recordings[0]), "--out", "scored", "--model", "models:/sleepfm-stage@champion")
    assert next((tmp_path / "scored").rglob("stages.csv")).stat().st_size > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-m", "shards", "build", "src", "out"), "Ray is not installed; pip install '.[shards]'"),
        (("-m", "sleepfm.demo"), "Ray and DeepSpeed are not installed; pip install '.[shards,train]'"),
        (("-m", "sleepfm.training.launcher", "1", "job.py"), "DeepSpeed is not installed; pip install '.[train]'"),
        *(
            ((str(ROOT / "launch" / f"{script}.py"), "a.yaml"), "DeepSpeed is not installed; pip install '.[train]'")
            for script in ("pretrain", "probe", "finetune")
        ),
    ],
    ids=("shards", "demo", "launcher", "pretrain", "probe", "finetune"),
)
def test_a_missing_extra_is_one_line_that_names_it(bare: Path, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    found = run(bare, tmp_path, *words)
    assert (found.returncode, found.stderr) == (2, f"error: {said}\n"), found.stderr
    assert list(tmp_path.iterdir()) == []
