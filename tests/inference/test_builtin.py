"""The models that an installation brings with it: how they are named, when they are used, and what is said of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import sleepfm
from sleepfm import builtin
from sleepfm.cli import main
from sleepfm.config import load_config, to_dict
from sleepfm.constants import CHANNELS
from sleepfm.demo.weights import EVENTS, MOST_BYTES
from sleepfm.errors import RegistryError
from sleepfm.inference.default_models import CHAMPIONS, default_models
from sleepfm.inference.scorer import Scorer
from sleepfm.models.build import build_model, model_config
from sleepfm.models.downstream import Downstream, DownstreamConfig
from sleepfm.models.neuronet import NeuroNetConfig
from sleepfm.models.synthsleepnet import SynthSleepNetConfig
from sleepfm.registry import lineage
from sleepfm.registry.registry import register, resolve
from sleepfm.stages.downstream_config import FinetuneConfig
from sleepfm.stages.encoders import check_encoder
from sleepfm.stages.pretrain import PretrainConfig
from sleepfm.tasks import TASKS
from sleepfm.training.branch import weights_of
from sleepfm.training.folder import RunFolder
from sleepfm.training.preflight.parents import missing_parents

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def shipped(downstream_packages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation with untrained models."""
    folder = tmp_path / "weights"
    for task, package in downstream_packages.items():
        shutil.copytree(package, folder / task)
    about = {
        "trained_on": "synthetic nights alone",
        "measured_on": "nothing",
        "version": "0.2.0",
        "tasks": {task: {} for task in downstream_packages},
    }
    (folder / builtin.ABOUT).write_text(json.dumps(about))
    monkeypatch.setattr(builtin, "WEIGHTS", folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


def test_an_installation_without_weights_says_so_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "WEIGHTS", tmp_path / "none")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    for address in ("builtin", builtin.SCORER, "builtin/stage"):
        with pytest.raises(RegistryError, match="no built-in weights; `make weights`"):
            sleepfm.load(address)
    with pytest.raises(
        RegistryError,
        match=r"no registry at .*: train a model first .*MLFLOW_TRACKING_URI=sqlite:////.* no built-in weights either",
    ):
        default_models()
    assert builtin.statement(["models:/sleepfm-stage@champion"]) == []


def test_every_name_leads_to_the_models(shipped: Path) -> None:
    assert builtin.addresses() == tuple(f"builtin/{task}" for task in TASKS if not TASKS[task].optional)
    for address in ("builtin", builtin.SCORER, "builtin/stage"):
        assert isinstance(sleepfm.load(address), Downstream)
        assert resolve(address).path == shipped / "stage"
    # What a fine-tune starts from.
    assert weights_of("builtin", resolve)[0] == shipped / "stage" / "model.safetensors"
    assert set(Scorer.load(["builtin"]).models) == {"stage", "apnea", "hypopnea"}
    assert set(Scorer.load(["builtin/apnea"]).models) == {"apnea"}
    with pytest.raises(RegistryError, match="no built-in model of that name; there are builtin/stage"):
        sleepfm.load("builtin/snoring")


def test_what_is_made_from_one_keeps_its_name_version_and_digest(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = resolve("builtin").tags["sha256"]
    label = f"builtin/stage:0.2.0@sha256:{digest}"
    assert len(digest) == 64 and {resolve(name).label for name in ("builtin", builtin.SCORER, "builtin/stage", label)} == {label}
    assert weights_of("builtin", resolve) == (shipped / "stage" / "model.safetensors", label)
    # In a run, its start, its record and its package.
    assert missing_parents({"init_from": "builtin"}, {}, "sqlite:///none.db") == []
    folder = RunFolder(tmp_path / "run")
    monkeypatch.setattr(RunFolder, "sources", lambda _: {"builtin": label})
    assert folder.initial_versions(SimpleNamespace(init_from="builtin")) == [label]
    # In the registry of what was made from it, also where another version is installed by then.
    made = SimpleNamespace(name="sleepfm-stage", version=1, tags={"parents": json.dumps([label])})
    monkeypatch.setattr(lineage, "client", lambda _: None)
    monkeypatch.setattr(lineage, "version_at", lambda *_: made)
    (parent,) = lineage.lineage("sleepfm-stage", "1", "sqlite:///none.db")["parents"]
    assert (parent["name"], parent["version"], parent["tags"]) == ("builtin/stage", "0.2.0", {"sha256": digest})
    shutil.rmtree(shipped / "stage")
    assert lineage.lineage("sleepfm-stage", "1", "sqlite:///none.db")["parents"] == [parent]


def test_another_model_than_was_started_from_is_refused(shipped: Path) -> None:
    other = f"builtin/stage:0.1.0@sha256:{'0' * 64}"
    with pytest.raises(RegistryError, match=r"this installation has another one, builtin/stage:0\.2\.0@sha256:.*; install"):
        resolve(other)


def test_changed_bytes_are_refused(shipped: Path) -> None:
    path = shipped / "stage" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(RegistryError, match="the file has changed"):
        sleepfm.load("builtin")


def test_they_score_where_nothing_is_registered_and_the_report_says_so(
    shipped: Path, recordings: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(recordings[0]), "--out", str(tmp_path / "scored")]) == 0
    said = "trained on synthetic nights alone; measured on nothing; not a medical device"
    assert said in capsys.readouterr().out
    page = next((tmp_path / "scored").rglob("report.html")).read_text()
    assert said in page
    summary = json.loads(next((tmp_path / "scored").rglob("summary.json")).read_text())
    assert "builtin/stage" in json.dumps(summary)


@pytest.mark.slow
def test_a_champion_goes_before_them(shipped: Path, tmp_path: Path) -> None:
    assert default_models()[0] == builtin.addresses()
    from sleepfm.registry.store import client

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run = client(store, create=True).create_run("0")
    # A registry without champions is as none.
    assert default_models(store)[0] == builtin.addresses()
    package = shipped / "stage"
    tags = dict(resolve(package).tags)
    version = register("sleepfm-stage", package, run.info.run_id, tags, {}, store=store)
    client(store).set_registered_model_alias("sleepfm-stage", "champion", version)
    assert default_models(store)[0] == tuple(CHAMPIONS.values())
    # One that does not answer is not one without champions.
    with pytest.raises(RegistryError, match="does not answer"):
        default_models("http://127.0.0.1:9")


def test_the_demo_uses_them_nowhere() -> None:
    for path in sorted((ROOT / "sleepfm" / "demo").glob("*.py")):
        assert path.name == "weights.py" or "builtin" not in path.read_text(), path


def test_the_small_scorer_fits_into_a_wheel() -> None:
    """All its weights together, as they are shipped, and the encoders fit each other."""
    psg = load_config(PretrainConfig, "pretrain/psg-small.yaml")
    assert isinstance(psg.model, SynthSleepNetConfig) and psg.model.channels == CHANNELS
    encoders = {}
    for modality in ("EEG", "EOG", "EMG", "ECG", "RESP"):
        alone = load_config(PretrainConfig, f"pretrain/{modality.lower()}-small.yaml")
        assert isinstance(alone.model, NeuroNetConfig)
        check_encoder(modality, psg.model.encoder_config(modality), alone.model, "its own configuration")
        encoders[modality] = to_dict(alone.model)
    total = 0
    for task, source in {"stage": to_dict(psg.model), **{task: encoders[name.upper()] for task, name in EVENTS.items()}}.items():
        job = load_config(FinetuneConfig, f"downstream/{'finetune' if task == 'stage' else 'events'}-{task}-small.yaml")
        encoder = build_model(source)
        parts = {"tune": job.tune, "context": job.context, "head": job.head, "events": job.events}
        plan = DownstreamConfig(task=task, classes=TASKS[task].classes, encoder=model_config(encoder), **parts)
        total += 4 * sum(value.numel() for value in Downstream(plan, encoder).state_dict().values())
    assert 15_000_000 < total < MOST_BYTES
