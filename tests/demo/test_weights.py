"""``make weights`` in miniature: synthetic nights to the folder of the built-in scorer, ended once on the way."""

from __future__ import annotations

import itertools
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from killed_runs import killed_in_its_third_step

import sleepfm
from sleepfm import builtin
from sleepfm.config import load_config
from sleepfm.demo.weights import WeightsConfig, WeightsPlan, main, measured_on, people_result, size_of
from sleepfm.inference.scorer import Scorer, prepare_night
from sleepfm.synthetic.cohort import write_cohort

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(3600)
COMMAND = [sys.executable, "-u", "-m", "sleepfm.demo.weights", "--config", "synthetic/weights-miniature.yaml", "--seed", "3"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder, and what the second of two runs printed, the first of which was killed in its third step."""
    folder = tmp_path_factory.mktemp("weights")
    printed = killed_in_its_third_step(COMMAND, folder, 8)
    return folder / "runs" / "weights", printed


@pytest.mark.parametrize("name", ["weights", "weights-miniature"])
def test_the_first_step_streams_people_of_a_shipped_configuration(name: str, tmp_path: Path) -> None:
    plan = WeightsPlan(load_config(WeightsConfig, f"synthetic/{name}.yaml"), tmp_path, 7)
    command = plan.synth().command
    words = dict(itertools.pairwise(command))
    assert (
        words["--config"] == "synthetic/train.yaml" and words["--shards"] == str(tmp_path / "shards") and words["--seed"] == "7"
    )
    assert command.count("--build") == len(plan.config.build) > 0
    held_out = dict(itertools.pairwise(plan.synth_held_out().command))
    assert held_out["--config"] == "synthetic/held-out.yaml" and held_out["--seed"] == "1007"
    assert held_out["--shards"] == str(tmp_path / "held-out" / "shards") != words["--shards"]
    # Synth, two NeuroNets, four heads, people to judge them on.
    assert plan.n_steps == 1 + 2 + 4 + 1 and len(plan.tasks) == 4


def test_what_people_showed_is_told_with_what_the_synthetic_nights_did(tmp_path: Path) -> None:
    held_out = {"people": 24, "kappa": {"value": 0.604}}
    alone = "24 synthetic people of other ranges (stages: kappa 0.60)"
    assert measured_on(held_out, None) == alone
    result = tmp_path / "people.json"
    result.write_text(json.dumps({"ours": {"epochs": 480, "kappa": {"value": 0.456}}}))
    both = measured_on(held_out, people_result(result))
    assert both == f"{alone} and 480 epochs of real people from one EEG channel (stages: kappa 0.46)"


@pytest.mark.parametrize(
    ("content", "said"), [(None, "does not exist"), ("{", "is not JSON"), ("[]", "is no result"), ('{"ours": 3}', "is no result")]
)
def test_a_result_that_is_none_is_refused_before_anything_is_trained(
    content: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "people.json"
    if content is not None:
        result.write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["weights", "--people", str(result)])
    assert main() == 2
    assert f"--people {result}: {said}" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "weights" / "shards").exists()


@pytest.mark.slow
def test_it_goes_on_where_it_was_and_leaves_no_recording(made: tuple[Path, str]) -> None:
    folder, printed = made
    assert re.findall(r"^\[ ?(\d+)/8] [a-z-]+: done before", printed, re.MULTILINE) == ["1", "2"]
    assert not list(folder.rglob("*.edf"))
    # What is trained here is nothing of the user's registry.
    assert (folder / "mlflow.db").exists() and not (folder.parent / "mlflow.db").exists()


@pytest.mark.slow
def test_its_models_score_any_subset_of_the_channels(
    made: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, _ = made
    monkeypatch.setattr(builtin, "WEIGHTS", folder / "builtin")
    about = json.loads((folder / "builtin" / builtin.ABOUT).read_text())
    assert list(about["tasks"]) == ["stage", "apnea", "hypopnea", "arousal"] and about["seed"] == 3
    assert about["tasks"]["stage"]["held_out"]["people"] == 2 and about["tasks"]["apnea"]["held_out"]["nights"] == 2
    assert all((folder / "builtin" / task / "MODEL_CARD.md").read_text().strip() for task in about["tasks"])
    assert 5_000_000 < size_of(folder / "builtin") < 20_000_000
    night = write_cohort(tmp_path / "cohort", 1, 0.25, 9)[0]
    scorer = Scorer.load(["builtin"])
    assert set(scorer.channels) == {"EEG_C3", "EEG_C4", "AIRFLOW", "THORAX", "ABDOMEN"}
    whole = scorer.score(prepare_night(night))
    assert (whole.stages >= 0).mean() > 0.9 and set(whole.probability) == {"apnea", "hypopnea", "arousal"}
    prepared = prepare_night(night)
    one = {name: {"EEG_C4": getattr(prepared, name)["EEG_C4"]} for name in ("channels", "quality")}
    alone = scorer.score(replace(prepared, **one))
    assert alone.channels == ("EEG_C4",) and (alone.stages >= 0).mean() > 0.9
    assert np.isnan(alone.probability["apnea"]).all() and any("not a medical device" in text for text in alone.warnings)
    assert sleepfm.load("builtin").usage.task == "stage"
