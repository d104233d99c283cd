"""Every command over a folder that holds other people's files under every name that ours could take: not a byte is lost."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.__main__ import main as shards
from shards.build import build
from shards.build_config import BuildConfig
from shards.export import export_parquet
from sleepfm.cli import main
from sleepfm.config import load_config
from sleepfm.data.cache import BlockCache
from sleepfm.demo.__main__ import parser
from sleepfm.demo.__main__ import run as demo
from sleepfm.demo.runner import Journal, set_aside
from sleepfm.errors import SleepFMError
from sleepfm.output import Origin, whole_folder
from sleepfm.paths import config_root
from sleepfm.stages.downstream_config import ProbeConfig
from sleepfm.synthetic.cohort import write_cohort
from sleepfm.training.folder import RunFolder

ROOT = Path(__file__).parents[2]
NAMES = (
    *("night", ".night.0123456789ab.tmp", ".night.0123456789ab.old", "summary.json", "stages.csv", "report.html"),
    *("run.json", "result.json", "config.yaml", "trace.jsonl", "environment.json", "figures.jsonl", "tracking.json"),
    *("evaluation.json", "predictions-val.parquet", "checkpoints", "best", "package", "last", ".last", ".export-1"),
    *("goodput.json", "profile.json"),
    *(".export-00000005", "export.json", "model.safetensors", "MODEL_CARD.md", "step-00000004", ".step-00000004.tmp"),
    *(".universal-step-00000004", "latest", "complete.json", ".package.0123456789ab.tmp", ".run.json.0123456789ab.tmp"),
    *(
        "plan.json",
        "dataset.json",
        ".plan.json.0123456789ab.tmp",
        ".synth.json.0123456789ab.tmp",
        "manifest",
        "records.parquet",
        "shards",
    ),
    *("shard-000000.tar", "shard-000000.json", "shard-000000.tar.part", "movie.tar", "movie.part", ".shard-000000.tar.tmp"),
    *("demo.json", "synth.json", "logs", "cohort", "scored", "x.parquet", "y.parquet", "embeddings.parquet", ".x.tmp"),
    *(".sleepfm.json", ".sleepfm-cache", ".lock", "mlflow.db", "polysomnography", "f" * 64),
)
CONTENT = (b"", b"mine", b"{}", b"[]", b'{"identity": "mine"}', b'{"kind": "scored night", "files": {}}', b"PAR1 mine PAR1")


def snapshot(root: Path) -> dict[str, tuple[int, bytes | str]]:
    """Every path below ``root`` with its kind and content."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for place, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(place) / name
            kind = stat.S_IFMT(path.lstat().st_mode)
            content: bytes | str = os.readlink(path) if path.is_symlink() else b"" if path.is_dir() else path.read_bytes()
            found[str(path.relative_to(root))] = (kind, content)
    return found


def assert_kept(root: Path, before: dict[str, tuple[int, bytes | str]]) -> None:
    after = snapshot(root)
    assert {path: after.get(path) for path in before} == before


def foreign(root: Path, *more: str) -> Path:
    """A folder with a file, and beside it a folder with files, of every name."""
    for name in (*NAMES, *more):
        for place in (root / name, root / "deep" / name / "sub" / name):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"mine")
    for name in ("night", "checkpoints", "best", "package", "last", ".last", ".export-00000005", "shards", "manifest", *more):
        (root / name).unlink()
        shutil.copytree(root / "deep" / name / "sub", root / name)
        (root / name / "empty").mkdir()
    return root


@pytest.fixture
def night(recordings: list[Path], tmp_path: Path) -> Path:
    """A recording in a folder of its own stem, in a folder of other people's files."""
    place = foreign(tmp_path / "work") / "night" / "night.edf"
    shutil.copy(recordings[0], place)
    return place


def arguments_of(out: Path, fresh: bool, *others: str) -> argparse.Namespace:
    words = ["--config", "demo/miniature.yaml", "--out", str(out), *(["--fresh"] if fresh else []), *others]
    return parser().parse_args(words)


def test_no_command_loses_a_byte(
    night: Path, dataset, recordings, downstream_packages, encoder_package, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = night.parents[1]
    monkeypatch.chdir(work)
    monkeypatch.setenv("SLEEPFM_CACHE", str(work))
    models = [str(path) for path in downstream_packages.values()]
    embed = ["embed", str(night), "--model", str(encoder_package), "--out"]
    cohort = str(recordings[0].parents[3])
    commands: list[tuple[Callable[[list[str]], int], list[str]]] = [
        (main, ["score", "night/night.edf", "--model", *models, "--out", "."]),
        (main, ["score", "night/night.edf", "--model", *models, "--out", "night"]),
        *((main, [*embed, name]) for name in ("embeddings.parquet", "night", "trace.jsonl")),
        *((main, ["synth", place, "--subjects", "1", "--hours", "0.2"]) for place in (".", "night", "trace.jsonl")),
        (main, ["doctor", ".", "--json"]),
        (main, ["models", "--store", "sqlite:///none.db"]),
        *((shards, ["build", cohort, place]) for place in (".", "night", "plan.json", "shards")),
        *((shards, [command, "."]) for command in ("verify", "info")),
        *((shards, ["export", str(dataset.path), place]) for place in (".", "night")),
        *((lambda _, fresh=fresh: demo_status(arguments_of(Path("."), fresh)), []) for fresh in (False, True)),
    ]
    before = snapshot(work)
    for command, arguments in commands:
        command(arguments)
        assert_kept(work, before)
    made = {name.split("/")[0] for name in snapshot(work).keys() - before.keys()}
    assert not made, "what is refused leaves nothing behind"


def demo_status(arguments: argparse.Namespace) -> int:
    with pytest.raises(SleepFMError, match="no demo wrote"):
        demo(arguments)
    return 2


def test_an_export_keeps_folders_of_its_recordings_names(dataset, tmp_path: Path) -> None:
    """Where nothing but folders lies, an export may begin; those of other people stay."""
    target = tmp_path / "export"
    (target / dataset.names[1]).mkdir(parents=True)
    (target / dataset.names[1] / "x.parquet").write_text("mine")
    before = snapshot(target)
    assert shards(["export", str(dataset.path), str(target)]) == 1
    assert_kept(target, before)
    shutil.rmtree(target / dataset.names[1])
    for _ in range(2):
        assert len(list(export_parquet(dataset.path, target))) == len(dataset.names)
    assert shards(["export", str(dataset.path), str(target), "--rule", "reference"]) == 1


def test_recordings_of_one_name_do_not_replace_each_other(
    recordings, downstream_packages, encoder_package, tmp_path: Path, capsys
) -> None:
    for number, source in enumerate(recordings[:2]):
        (tmp_path / str(number)).mkdir()
        shutil.copy(source, tmp_path / str(number) / "night.edf")
    shutil.copytree(tmp_path / "0", tmp_path / "copy")
    out, table = tmp_path / "out", tmp_path / "night.parquet"
    model = str(downstream_packages["stage"])

    def score(folder: str) -> int:
        return main(["score", str(tmp_path / folder / "night.edf"), "--model", model, "--out", str(out)])

    def embed(folder: str) -> int:
        source = str(tmp_path / folder / "night.edf")
        return main(["embed", source, "--model", str(encoder_package), "--out", str(table)])

    assert (score("0"), embed("0")) == (0, 0)
    before = snapshot(out), table.read_bytes()
    capsys.readouterr()
    assert (score("1"), embed("1")) == (1, 1)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("is not replaced" in line and "0/night.edf" in line for line in said)
    assert (snapshot(out), table.read_bytes()) == before
    # The same recording, wherever it lies now.
    assert (score("copy"), embed("0")) == (0, 0)
    (out / "night" / "events.csv").write_text("corrected by hand")
    before = snapshot(out), b""
    assert score("0") == 1
    assert snapshot(out) == before[0]


@pytest.mark.slow
@pytest.mark.parametrize("resume", ["auto", "never"])
@pytest.mark.parametrize("job", ["pretrain", "probe", "finetune"])
def test_a_training_job_begins_nowhere_but_in_a_folder_of_its_own(
    job: str, resume: str, dataset, encoder_package, tmp_path: Path
) -> None:
    work = foreign(tmp_path / "work")
    (work / "run.json").unlink()
    before = snapshot(work)
    config = {
        "pretrain": "pretrain/eeg-tiny",
        "probe": "downstream/probe-stage-tiny",
        "finetune": "downstream/finetune-stage-tiny",
    }
    paths = [f"data.path={dataset.path}", f"train.output={work}", "train.steps=1"]
    # The data set is too small to validate a pretraining, which is another fault.
    paths += ["train.global_batch=16"] if job == "pretrain" else [f"encoder={encoder_package}"]
    line = [sys.executable, str(ROOT / "launch" / f"{job}.py"), str(ROOT / "configs" / f"{config[job]}.yaml"), *paths]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*line, "--resume", resume], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "which this program did not write" in done.stderr, done.stderr
    assert snapshot(work) == before


trees = st.dictionaries(
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join), st.sampled_from(CONTENT), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(tree=trees)
def test_no_tree_of_foreign_files_changes(tree: dict[str, bytes], tmp_path_factory, recordings) -> None:
    work = tmp_path_factory.mktemp("tree")
    for name, content in tree.items():
        try:
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_bytes(content)
        except OSError:  # a file where another name wants a folder
            continue
    config = load_config(
        ProbeConfig,
        config_root() / "downstream" / "probe-stage-tiny.yaml",
        [f"train.output={work}", "data.path=none", "encoder=none"],
    )
    build_config = load_config(BuildConfig, config_root() / "shards.yaml", [])

    def whole() -> None:
        with whole_folder(work / "night", Origin("scored night", "a", "a")) as new:
            (new / "stages.csv").write_text("ours")

    def start_over() -> None:
        RunFolder(work).check(config, "a" * 64, "never")
        RunFolder(work).clear()

    def go_on() -> None:
        RunFolder(work).check(config, "a" * 64, "auto")
        RunFolder(work).begin(config, "a" * 64, {})

    def fetch() -> None:
        cache = BlockCache(work, 3)
        for number in range(3):
            shard = cache.open(f"{'f' * 64}/shards/shard-{number:06d}.tar", 3)
            cache.reserve(shard, np.array([0]), np.array([3]), at_once=True)

    attempts = (
        whole,
        start_over,
        fetch,
        lambda: Journal.open(work, "a"),
        lambda: write_cohort(work, 1, 0.2, 1),
        lambda: build(recordings[0].parents[3], work, build_config, 1),
        go_on,
        start_over,
    )
    before = snapshot(work)
    for attempt in attempts:
        if attempt is attempts[4] and not before:
            continue
        with contextlib.suppress(SleepFMError):
            attempt()
        assert_kept(work, before)
    shutil.rmtree(work)


def test_starting_the_demo_over_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/demo")
    Journal.open(folder, "a").save()
    (folder / "notes.txt").write_text("mine")
    before = snapshot(folder)
    for attempt in (lambda: Journal.open(folder, "b"), lambda: demo(arguments_of(folder, False, "--data", str(tmp_path)))):
        with pytest.raises(SleepFMError, match="contains a demo of other data or settings, which is kept; make demo FRESH=1"):
            attempt()
    assert snapshot(folder) == before
    set_aside(folder)
    Journal.open(folder, "b").save()
    set_aside(folder)
    assert sorted(path.name for path in Path("runs").iterdir()) == ["demo-1", "demo-2"]
    assert_kept(Path("runs/demo-1"), before)
