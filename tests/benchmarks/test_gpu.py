"""`make gpu-check` rehearsed on the CPU, with nothing installed but PyTorch and what `scripts/wheels.sh` brings."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
WHEELS = ROOT / "scripts" / "wheels.sh"
STAGES = {"unimodal", "multimodal", "context", "probe", "finetune"}
# What is installed here and would not be there is not found.
WITHOUT = """
import sys
MISSING = frozenset({missing!r})
class Without:
    def __init__(self, finder):
        self._finder = finder
    def __getattr__(self, name):
        return getattr(self._finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in MISSING else self._finder.find_spec(name, path, target)
sys.meta_path[:] = map(Without, sys.meta_path)
"""


def test_the_target_takes_the_python_that_is_named_else_that_of_the_environment_else_that_of_the_system(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)

    def python(*words: str) -> str:
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS", "MAKELEVEL")}
        line = ["make", "-n", "-s", "gpu-check", *words]
        return subprocess.run(line, cwd=tmp_path, env=kept, capture_output=True, text=True, check=True).stdout.split()[0]

    assert (python(), python("PYTHON=other")) == ("python3", "other")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()
    assert (python(), python("PYTHON=python3")) == (".venv/bin/python", "python3")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(*names: str) -> set[str]:
    """Distributions with all that they require."""
    found: set[str] = set()
    waiting = [canonical(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        waiting += [canonical(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in lines if "extra ==" not in line]
    return found


def brought() -> set[str]:
    """What wheels.sh brings to every machine."""
    listed = re.search(r'^needed="([^"]*)"', WHEELS.read_text(), re.MULTILINE)
    assert listed
    return {canonical(name) for name in listed[1].split()} | {"deepspeed", "mamba-ssm"}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which only these can be imported."""
    there = brought() | requirements("torch") | {"pip", "sleepfm"}
    modules = metadata.packages_distributions()
    missing = sorted(name for name, owners in modules.items() if not there & {canonical(owner) for owner in owners})
    assert {"scipy", "pandas", "sklearn", "mlflow", "ray", "matplotlib"} <= set(missing)
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text(WITHOUT.format(missing=missing))
    plugins = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "pytest_timeout"}
    return os.environ | plugins | {"PYTHONPATH": str(folder)}


def rehearse(folder: Path, environment: dict[str, str], *options: str) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    out = folder / "gpu.json"
    words = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--rehearse", "--json", str(out), *options]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(out.read_text())
    assert found["rehearsal"] is True
    return found["parts"], done


def rows(part: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["what"]: row for row in part["rows"]}


def check_steps(part: dict[str, Any], kind: str) -> None:
    """Each variant has all of its figures, and they agree on the loss of the same weights."""
    found = rows(part)
    assert set(found) == {f"{kind} tiny", *(f"{kind} tiny, {name}" for name in ("bf16", "fp32", "bf16 compiled"))}
    exact = found[f"{kind} tiny, fp32"]
    for name, row in found.items():
        if name != f"{kind} tiny":
            assert row["epochs_per_s"] == pytest.approx(found[f"{kind} tiny"]["epochs"] / row["seconds"])
            assert 0 < row["mfu"] < 1.5 and row["operations"] > 100
            assert row["loss"] == pytest.approx(exact["loss"], rel=0.1)
    # The same weights and the same dropout; where norms are computed in fewer passes bf16 rounds elsewhere.
    assert found[f"{kind} tiny, bf16 compiled"]["loss"] == pytest.approx(found[f"{kind} tiny, bf16"]["loss"], rel=0.05)


def test_parts_run_on_what_the_wheels_bring(tmp_path: Path, bare: dict[str, str]) -> None:
    parts, done = rehearse(tmp_path, bare, "--only", "machine,data,step-context,mamba,processes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(parts) == ["machine", "data", "mamba", "processes", "step-context"] and all(parts[name]["rows"] for name in parts)
    check_steps(parts["step-context"], "context")
    fused = rows(parts["mamba"])
    assert "cannot be imported here" in fused["mamba-ssm's layer"]["skipped"]
    assert fused["mamba-ssm's layer beside plain products"]["largest_relative_difference"] == 0
    assert rows(parts["processes"])["two processes under gloo"]["sum"] == 3
    for row in (row for part in parts.values() for row in part["rows"]):
        assert f"{row['what']}:" in done.stdout
    assert not [path for path in tmp_path.iterdir() if path.name != "gpu.json"]


def test_a_part_that_fails_or_is_late_costs_the_others_nothing(tmp_path: Path, bare: dict[str, str]) -> None:
    # The data set is not made, so the stage finds none.
    parts, done = rehearse(tmp_path, bare, "--only", "machine,step-unimodal")
    assert done.returncode == 1 and "parts with an error: step-unimodal" in done.stdout
    assert len(parts["machine"]["rows"]) == 4 and "error" not in parts["machine"]
    assert parts["step-unimodal"]["rows"] == []
    assert re.match(r"ended with status 1: .*no dataset\.json here", parts["step-unimodal"]["error"], re.DOTALL)


def test_time_that_is_over_is_said(tmp_path: Path, bare: dict[str, str]) -> None:
    parts, done = rehearse(tmp_path, bare, "--only", "machine,data", "--minutes", "0.02")
    assert done.returncode == 1
    assert parts["machine"]["error"].startswith("took longer than 1 s")
    assert parts["data"] == {"seconds": 0.0, "rows": [], "error": "not begun: the 0.02 minutes were over"}


def test_a_part_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--only", "machine,steps"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "--only steps: no such part; there are machine, data" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_everything_rehearsed(tmp_path: Path, bare: dict[str, str]) -> None:
    parts, done = rehearse(tmp_path, bare, "--minutes", "30")
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in STAGES:
        check_steps(parts[f"step-{kind}"], kind)
    resumed = rows(parts["resume"])
    assert resumed["killed and resumed"]["bit_equal"] and resumed["killed and resumed"]["repeated_steps"] > 0
    assert resumed["EEG tiny under DeepSpeed, bf16, ZeRO 1"]["epochs_per_s"] > 0
    assert {f"{kind} tiny, batches {how}" for kind in ("unimodal", "multimodal") for how in ("alone", "beside a step")} == set(
        rows(parts["loader"])
    )
    counts = rows(parts["tests"])["tests"]
    assert counts["tests"] > 10 and counts["failures"] == counts["errors"] == 0
    assert rows(parts["released"])["released code"] == {"what": "released code", "skipped": "no --reference"}
    assert rows(parts["released"])["neuronet-tiny, ours bf16"]["seconds"] > 0


def test_make_calls_it() -> None:
    command = (ROOT / "Makefile").read_text().split("\ngpu-check:\n", 1)[1].splitlines()[0].split()
    assert command[:2] == ["$(GPU_PYTHON)", "benchmarks/gpu.py"]


def test_wheels_are_named_as_they_are_pinned() -> None:
    subprocess.run(["sh", "-n", str(WHEELS)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(WHEELS)], check=True)
    pinned = {canonical(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    # einops comes with DeepSpeed, mamba-ssm is an extra.
    assert brought() - pinned <= {"einops", "mamba-ssm"}


def test_wheels_are_put_into_an_empty_folder_only(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    done = subprocess.run(["sh", str(WHEELS), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2 and "is not empty; give another folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.fixture(scope="module")
def slim() -> ModuleType:
    spec = importlib.util.spec_from_file_location("slim_pyarrow", ROOT / "scripts" / "slim_pyarrow.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_slim_wheel_lists_what_it_has(tmp_path: Path, slim: ModuleType) -> None:
    wheel, record = tmp_path / "pyarrow-1-py3-none-any.whl", "pyarrow-1.dist-info/RECORD"
    kept, left = ["pyarrow/parquet/core.py", "pyarrow/libarrow_python.so.25"], ["pyarrow/tests/test_x.py", "pyarrow/lib.pyx"]
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in [*kept, *left]:
            archive.writestr(name, name)
        archive.writestr(record, "".join(f"{name},sha256=x,1\n" for name in [*kept, *left, record]))
    slim.main(wheel)
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == {*kept, record}
        assert [line.split(",")[0] for line in archive.read(record).decode().splitlines()] == [*kept, record]
        assert archive.read(kept[0]).decode() == kept[0]
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]


def test_what_is_left_of_arrow_writes_and_reads_parquet(tmp_path: Path, slim: ModuleType) -> None:
    files = [file for file in metadata.files("pyarrow") or [] if file.parts[0] == "pyarrow"]
    kept = [file for file in files if not slim.LEFT_OUT.match(file.as_posix()) and "__pycache__" not in file.parts]
    sizes = [sum(os.path.getsize(file.locate()) for file in chosen) for chosen in (files, kept)]
    assert sizes[1] < 0.75 * sizes[0]
    for file in kept:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.locate(), tmp_path / file)
    code = (
        "import pyarrow as pa, pyarrow.parquet as pq, pyarrow.compute as pc; print(pa.__file__);"
        "pq.write_table(pa.table({'a': [1, 2, 3]}), 'a.parquet'); print(pc.sum(pq.read_table('a.parquet')['a']).as_py())"
    )
    variables = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.stdout.splitlines() == [str(tmp_path / "pyarrow" / "__init__.py"), "6"], done.stderr
