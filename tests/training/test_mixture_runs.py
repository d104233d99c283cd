"""Runs on mixtures: what their folder knows of their data, and jobs that are killed, resumed and given another source."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from launching import environment, trace
from made_nights import make_dataset, make_night
from test_parts import run_config

from sleepfm.data.identity import DataDigest, Part, as_digest
from sleepfm.errors import ConfigError
from sleepfm.paths import config_root
from sleepfm.registry import registry
from sleepfm.training.folder import RunFolder
from sleepfm.training.segments import Segment, split_data

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "pretrain.py"
ONE, TWO, THREE = (Part(name, letter * 64, f"/{name}") for name, letter in (("one", "a"), ("two", "b"), ("three", "c")))


def weighted(*weights: float) -> DataDigest:
    parts = [Part(part.name, part.digest, part.path, weight) for part, weight in zip((ONE, TWO, THREE), weights, strict=False)]
    return DataDigest(parts)


def test_a_run_takes_more_data_and_other_shares_and_keeps_what_it_has() -> None:
    assert split_data(weighted(1, 2), weighted(1, 2)) == ({}, [])
    steered, refused = split_data(weighted(1, 2), weighted(1, 3))
    assert steered == {"data.shares": ("one weight 1, two weight 2", "one weight 1, two weight 3")} and not refused
    # What is validated stays the same, and so what is the best so far; with more data sets it does not.
    assert not Segment(4, steered).selects and Segment(4, {"data.sources": ("", "")}).selects
    steered, refused = split_data(weighted(1, 2), weighted(1, 2, 1))
    assert steered["data.sources"][1] == "one weight 1, two weight 2, three weight 1" and not refused
    assert split_data(weighted(1, 2, 1), weighted(1, 2)) == (
        {},
        ["data.sources without three cccccccccccc, which the run has learnt from"],
    )
    assert split_data(as_digest("a" * 64), weighted(1, 2))[0]["data.sources"] == ("aaaaaaaaaaaa", "one weight 1, two weight 2")
    assert split_data(as_digest("a" * 64), as_digest("b" * 64)) == ({}, ["data set digest (aaaaaaaaaaaa -> bbbbbbbbbbbb)"])
    warm, warmer = (DataDigest([ONE, TWO], temperature) for temperature in (2.0, 3.0))
    assert split_data(warm, warmer)[0]["data.shares"] == ("one, two at temperature 2", "one, two at temperature 3")
    # Where they lie and what they are called is nothing to the run.
    moved = DataDigest([Part("x", ONE.digest, "s3://elsewhere", 1), Part("y", TWO.digest, "", 2)])
    assert split_data(weighted(1, 2), moved) == ({}, [])


def test_the_folder_of_a_run_knows_its_data_from_step_to_step(tmp_path: Path) -> None:
    folder, config = RunFolder(tmp_path), run_config(tmp_path)
    folder.begin(config, weighted(1, 2), {})
    assert json.loads(folder.record.read_text())["dataset_digest"] == str(weighted(1, 2))
    assert folder.check(config, weighted(1, 2), "auto") is None
    with pytest.raises(ConfigError, match=r"data\.sources without two bbbbbbbbbbbb, which the run has learnt from, which cannot"):
        folder.check(config, as_digest("a" * 64), "auto")
    more = weighted(2, 2, 1)
    assert folder.check(config, more, "auto") is None
    said = folder.steer(config, 4, 10, more)
    assert said == "data.sources ('one weight 1, two weight 2' -> 'one weight 2, two weight 2, three weight 1')"
    assert folder.steer(config, 5, 10, more) == "" and folder.steer(run_config(tmp_path, lr=0.2), 6, 10) != ""
    history = folder.data_history()
    assert [(step, data.mixture) for step, data in history] == [(0, weighted(1, 2).mixture), (4, more.mixture)]
    assert history[-1][1].parts == more.parts
    segments = folder.segments()
    assert [segment.selects for segment in segments] == [False, True, False] and isinstance(segments[0], Segment)
    assert "data.sources" in folder.lineage()["segment.1"]
    with pytest.raises(ConfigError, match="without three"):
        folder.check(config, weighted(1, 2), "auto")
    with pytest.raises(ConfigError, match=r"data\.shares .*nothing is left to train"):
        folder.steer(config, 10, 10, weighted(1, 1, 1))


FIXED = [
    *("data.path=null", "monitor=none", "registry.metric=val/loss", "registry.mode=min", "registry.every_best=false"),
    *("train.global_batch=12", "train.steps=16", "train.checkpoint_every=6", "data.validation_items=24", "deepspeed.dtype=fp32"),
    *("train.batch_norm=sync", "train.log_every=1", "train.schedule=constant", "train.warmup=0"),
    # So small that rounding, which differs between numbers of ranks, is not magnified from step to step.
    "train.lr=0.00001",
]
TWO_SOURCES = "data.sources=[{path: one, weight: 1}, {path: two, weight: 2}]"
THREE_SOURCES = "data.sources=[{path: one, weight: 1}, {path: two, weight: 2}, {path: three, weight: 1}]"


def line(ranks: int, *overrides: str) -> list[str]:
    config = str(config_root() / "pretrain" / "ecg-tiny.yaml")
    return [sys.executable, "-m", "sleepfm.training.launcher", str(ranks), str(SCRIPT), config, *FIXED, *overrides]


def launch(folder: Path, ranks: int, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line(ranks, *overrides), cwd=folder, env=environment(), capture_output=True, text=True, timeout=900)


def kill_behind(folder: Path, steps: int, ranks: int, run: str, *overrides: str) -> None:
    """Start the run, and kill all of it once it has done more than ``steps``."""
    log, rows = folder / f"{run}.log", folder / run / "trace.jsonl"
    with log.open("wb") as stream:
        job = subprocess.Popen(
            line(ranks, f"train.output={run}", *overrides),
            cwd=folder,
            env=environment(),
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    deadline = time.monotonic() + 600
    while not rows.exists() or rows.read_text().count("\n") <= steps:
        assert job.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    os.killpg(job.pid, signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL, log.read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three data sets, and ``whole``, a run on two of them in one process that nobody disturbed."""
    made = tmp_path_factory.mktemp("mixtures")
    overrides = ["split.pretrain=0.7", "split.label=0", "split.val=0.3", "split.test=0"]
    for number, name in enumerate(("one", "two", "three")):
        nights = [make_night(f"{name}{n}", 30 - 7 * number, ("ECG", "EEG_C4"), seed=number) for n in range(8)]
        make_dataset(made / name, nights, overrides=overrides)
    done = launch(made, 1, "train.output=whole", TWO_SOURCES)
    assert done.returncode == 0, done.stderr
    return made


def losses(folder: Path, run: str) -> list[dict[str, Any]]:
    return [{"loss": row["loss"], **{k: v for k, v in row["parts"].items() if "/" in k}} for row in trace(folder, run)]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_figures_by_source_and_lineage_are_kept(folder: Path) -> None:
    rows = losses(folder, "whole")
    assert len(rows) == 16 and all({"loss", "loss/two"} <= row.keys() for row in rows)
    assert sum("loss/one" in row for row in rows) > 12
    logged = [json.loads(line)["figures"] for line in (folder / "whole" / "figures.jsonl").read_text().splitlines()]
    assert any("train/loss/one" in figures for figures in logged)
    assert any({"val/loss", "val/loss/one", "val/loss/two"} <= figures.keys() for figures in logged)
    digests = {name: json.loads((folder / name / "dataset.json").read_text())["digest"] for name in ("one", "two")}
    known = json.loads((folder / "whole" / "run.json").read_text())
    assert {part["name"]: part["digest"] for part in known["mixture"]["parts"]} == digests
    package = yaml.safe_load((folder / "whole" / "package" / "config.yaml").read_text())["training"]
    assert package["mixture"] == known["mixture"] and package["dataset_digest"] == known["dataset_digest"]
    card = (folder / "whole" / "package" / "MODEL_CARD.md").read_text()
    assert all(digest in card for digest in (*digests.values(), known["dataset_digest"]))
    tags = registry.look_up("models:/sleepfm-neuronet-ecg/1", f"sqlite:///{folder}/runs/mlflow.db").tags
    assert tags["source.two"] == f"{digests['two']} weight 2" and tags["dataset_digest"] == known["dataset_digest"]
    assert len(tags["mixture_digest"]) == 64


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("ranks", [2, 3])
def test_killed_and_resumed_on_other_ranks_it_has_the_same_losses(folder: Path, ranks: int) -> None:
    kill_behind(folder, 7, 1, f"killed{ranks}", TWO_SOURCES)
    done = launch(folder, ranks, f"train.output=killed{ranks}", TWO_SOURCES)
    assert done.returncode == 0, done.stderr
    whole = launch(folder, ranks, f"train.output=whole{ranks}", TWO_SOURCES)
    assert whole.returncode == 0, whole.stderr
    expected = losses(folder, "whole")
    for run in (f"killed{ranks}", f"whole{ranks}"):
        for row, other in zip(losses(folder, run), expected, strict=True):
            assert row == pytest.approx(other, rel=1e-5), run


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_source_is_added_at_a_step(folder: Path) -> None:
    assert launch(folder, 1, "train.output=grown", TWO_SOURCES, "train.steps=6").returncode == 0
    done = launch(folder, 2, "train.output=grown", THREE_SOURCES)
    assert done.returncode == 0, done.stderr
    assert "continues from step 6 with train.steps (6 -> 16), data.sources ('" in done.stdout
    rows = losses(folder, "grown")
    assert all("loss/three" not in row for row in rows[:6]) and any("loss/three" in row for row in rows[6:])
    # The run's history decides, and no process: what is done once more is the same.
    again = launch(folder, 1, "train.output=again", TWO_SOURCES, "train.steps=6")
    assert again.returncode == 0, again.stderr
    kill_behind(folder, 10, 1, "again", THREE_SOURCES)
    assert launch(folder, 1, "train.output=again", THREE_SOURCES).returncode == 0
    for row, other in zip(losses(folder, "again"), rows, strict=True):
        assert row == pytest.approx(other, rel=1e-5)
    refused = launch(folder, 1, "train.output=grown", TWO_SOURCES)
    assert refused.returncode == 2 and "data.sources without three" in refused.stderr
    known = json.loads((folder / "grown" / "run.json").read_text())
    assert [(segment["step"], "mixture" in segment) for segment in known["segments"]] == [(6, True)]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_dry_run_names_every_source(folder: Path) -> None:
    done = launch(folder, 1, "train.output=new", TWO_SOURCES, "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("data: ")]
    assert len(lines) == 2 and all("items a pass (" in line for line in lines)
    assert any(line.startswith("data: one (one), data set ") and "(33.3%)" in line for line in lines)
    missing = launch(folder, 1, "train.output=new", "data.sources=[{path: one}, {path: nowhere}]", "--dry-run")
    assert missing.returncode == 1 and "nowhere" in missing.stderr
