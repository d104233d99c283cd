"""``sleepfm-scorer``: what a version binds, when there is a new one, and that nights are scored with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from registered_models import DIGEST, register_champion

import sleepfm
from sleepfm.cli import main
from sleepfm.config import load_config
from sleepfm.errors import ModelError, RegistryError
from sleepfm.files import sha256_file
from sleepfm.inference.default_models import CHAMPIONS, default_models
from sleepfm.inference.scorer import Scorer
from sleepfm.paths import config_root
from sleepfm.registry import registry
from sleepfm.registry.lineage import lineage
from sleepfm.registry.package import CONFIG, WEIGHTS
from sleepfm.registry.promotion import promote_by_hand
from sleepfm.registry.scorer_version import bind_champions, parts_of
from sleepfm.registry.store import experiment_id
from sleepfm.stages.downstream_config import ProbeConfig
from sleepfm.training.export import register
from sleepfm.training.folder import RunFolder


@pytest.fixture
def own(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of the store that a test may change."""
    folder = tmp_path / "runs"
    shutil.copytree(Path(store.removeprefix("sqlite:///")).parent, folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"


def test_a_version_names_models_with_digests_windows_and_thresholds(store: str, downstream_packages: dict[str, Path]) -> None:
    entry = registry.look_up("models:/sleepfm-scorer@champion", store)
    parts = parts_of(registry.fetch_config(entry), "it")
    assert {task: part.label for task, part in parts.items()} == {task: f"sleepfm-{task}:1" for task in CHAMPIONS}
    for task, part in parts.items():
        assert part.sha256_config == sha256_file(downstream_packages[task] / CONFIG)
        assert part.usage["window"] == 20 and part.usage["threshold"] == (None if task == "stage" else 0.4)
    tree = lineage("sleepfm-scorer", entry.version, store)
    assert [parent["name"] for parent in tree["parents"]] == [f"sleepfm-{task}" for task in CHAMPIONS]
    assert tree["parents"][0]["parents"][0]["name"] == "sleepfm-synthsleepnet"
    with pytest.raises(ModelError, match=r"a scorer of several models.*sleepfm\.score"):
        registry.load("models:/sleepfm-scorer@champion", store)


def test_equal_models_are_bound_once_and_others_anew(
    own: str, downstream_packages: dict[str, Path], encoder_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bind_champions(CHAMPIONS, own) == "1"
    register_champion(own, "sleepfm-apnea", downstream_packages["apnea"], {"val/f1": 0.6})
    assert main(["models", "promote", "sleepfm-apnea", "2"]) == 0
    assert "sleepfm-scorer:2 binds it" in capsys.readouterr().out
    (address,), said = default_models(own)
    assert address == "models:/sleepfm-scorer/2" and "sleepfm-apnea:2" in said
    assert main(["models", "promote", "sleepfm-apnea", "1"]) == 0
    assert default_models(own)[0] == ("models:/sleepfm-scorer/1",)
    # An encoder under the name of a task.
    register_champion(own, "sleepfm-hypopnea", encoder_package, {})
    with pytest.raises(ModelError, match="gives no stages or events"):
        bind_champions(CHAMPIONS, own)


@pytest.mark.parametrize("finished", [False, True])
def test_a_job_that_makes_a_champion_binds_it_when_it_ends(
    own: str, downstream_packages: dict[str, Path], tmp_path: Path, finished: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "run")
    overrides = [f"train.output={tmp_path / 'run'}", f"data.path={tmp_path}"]
    config = load_config(ProbeConfig, config_root() / "downstream" / "probe-apnea-tiny.yaml", overrides)
    shutil.copytree(downstream_packages["apnea"], folder.package)
    digests = {key: sha256_file(folder.package / name) for key, name in (("sha256", WEIGHTS), ("sha256.config", CONFIG))}
    tags = digests | {"dataset_digest": DIGEST}
    client = registry.client(own)
    run = client.create_run(experiment_id(client, own, "test")).info.run_id
    folder.evaluation_page.write_text("<p>a page</p>")
    result = {"tags": tags, "metrics": {config.registry.metric: 0.9}, "parents": [], "finished": finished}
    assert register(config, result, run, own)["promoted"]
    assert ("evaluation.html" in {item.path for item in client.list_artifacts(run)}) == finished
    bound = "sleepfm-apnea: bound with the champions of the other tasks as sleepfm-scorer:2\n"
    assert (bound in capsys.readouterr().out) == finished
    assert default_models(own)[0] == ("models:/sleepfm-scorer/2" if finished else "models:/sleepfm-scorer/1",)


@pytest.mark.slow
def test_nights_are_scored_with_the_scorer_else_with_the_champions_and_both_is_said(
    own: str, recordings: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(recordings[0]), "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().err
    assert "scoring with models:/sleepfm-scorer/1: sleepfm-stage:1, sleepfm-apnea:1, sleepfm-hypopnea:1" in said
    registry.client(own).delete_registered_model_alias("sleepfm-scorer", "champion")
    assert main(["score", str(recordings[0]), "--out", str(tmp_path / "b")]) == 0
    assert "no models:/sleepfm-scorer@champion: scoring with the champions of sleepfm-stage" in capsys.readouterr().err
    name = Path(recordings[0].stem) / "stages.csv"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    registry.client(own).delete_registered_model_alias("sleepfm-hypopnea", "champion")
    assert main(["models", "bind"]) == 2
    assert "models:/sleepfm-hypopnea@champion does not exist" in capsys.readouterr().err


def test_a_scorer_uses_its_own_thresholds(own: str, tmp_path: Path, recordings: list[Path]) -> None:
    found = registry.resolve("models:/sleepfm-scorer@champion", own)
    shutil.copytree(found.path, tmp_path / "changed")
    content = yaml.safe_load((tmp_path / "changed" / CONFIG).read_text())
    content["parts"]["apnea"]["usage"]["threshold"] = 0.9
    (tmp_path / "changed" / CONFIG).write_text(yaml.safe_dump(content))
    scorer = Scorer.load([tmp_path / "changed"], own)
    assert scorer.models["apnea"].usage.threshold == 0.9 == scorer.models["apnea"].model.usage.threshold
    assert scorer.digests != Scorer.load(store=own).digests
    content["parts"]["apnea"]["usage"]["window"] = 0
    (tmp_path / "changed" / CONFIG).write_text(yaml.safe_dump(content))
    with pytest.raises(ModelError, match="window"):
        Scorer.load([tmp_path / "changed"], own)
    del content["parts"]
    (tmp_path / "changed" / CONFIG).write_text(yaml.safe_dump(content))
    with pytest.raises(ModelError, match="has no models"):
        Scorer.load([tmp_path / "changed"], own)


def test_a_model_that_is_not_what_the_scorer_names_is_refused(own: str, recordings: list[Path]) -> None:
    registry.client(own).set_model_version_tag("sleepfm-apnea", "1", "sha256", "0" * 64)
    with pytest.raises(RegistryError, match="names sleepfm-apnea:1 by another sha256"):
        sleepfm.score(recordings[0])


def test_a_scorer_keeps_what_it_names_from_being_pruned(own: str) -> None:
    from sleepfm.registry.pruning import _everything, _is_parent, _parents

    mlflow_client = registry.client(own)
    parents = _parents(mlflow_client, _everything(mlflow_client))
    assert _is_parent(mlflow_client.get_model_version("sleepfm-stage", "1"), parents)


def test_the_listing_shows_figures_with_intervals_and_where_all_is_from(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    client = registry.client(own)
    client.set_model_version_tag("sleepfm-stage", "1", "selected_by", "val/f1")
    client.set_model_version_tag("sleepfm-stage", "1", registry.INTERVALS, '{"val/f1": [0.41, 0.6]}')
    assert main(["models"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sleepfm-stage")]
    assert "champion" in row and "val/f1 0.5000 (0.4100 to 0.6000)" in row and "LEAK" not in row
    client.set_model_version_tag("sleepfm-stage", "1", registry.LEAK, "LEAK, allowed: 1 of 9 test people")
    assert main(["models", "--name", "sleepfm-stage"]) == 0
    printed = capsys.readouterr().out
    assert "val/f1 0.5000 (0.4100 to 0.6000) LEAK" in printed
    assert "  test people seen before: LEAK, allowed: 1 of 9 test people" in printed.splitlines()
    assert main(["models", "--name", "sleepfm-scorer"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "  made from sleepfm-stage:1 (data set dddddddddddd)" in printed
    assert "    made from sleepfm-synthsleepnet:1 (data set dddddddddddd)" in printed
    assert main(["models", "prune", "nothing"]) == 1 and "no such model" in capsys.readouterr().err
    assert main(["models", "prune"]) == 0 and "nothing to remove" in capsys.readouterr().out
    # Before the action as behind it.
    promote = ["promote", "sleepfm-stage", "1"]
    assert main(["models", "--store", own, *promote]) == 0 and main(["models", *promote, "--store", own]) == 0
    assert promote_by_hand("models:/sleepfm-stage/1", store=own)[0] == "sleepfm-stage:1"
