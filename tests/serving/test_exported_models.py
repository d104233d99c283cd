"""``sleepfm export``: folders that give without a registry what the registered model gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import sleepfm
from sleepfm.cli import main
from sleepfm.config import read_yaml
from sleepfm.errors import ModelError, RegistryError
from sleepfm.models.build import build_model, model_config
from sleepfm.models.embedding import Encoder
from sleepfm.paths import config_root
from sleepfm.registry.package import write_package
from sleepfm.serving.night_scores import plain_score


@pytest.fixture
def no_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/nowhere/mlflow.db")


def exported(address: str, folder: Path, store: str, *more: str) -> Path:
    assert main(["export", address, "--to", str(folder), "--store", store, *more]) == 0
    return folder


def test_a_model_is_the_same_from_its_folder_and_from_a_hubs_layout(store: str, tmp_path: Path, no_registry: None) -> None:
    folder = exported("models:/sleepfm-stage@champion", tmp_path / "stage", store, "--no-onnx")
    hub = tmp_path / "hub"
    hub.mkdir()
    for name in ("model.safetensors", "config.json", "README.md"):
        shutil.copy(folder / name, hub)
    model = sleepfm.load("models:/sleepfm-stage@champion", store)
    for other in (sleepfm.load(folder), sleepfm.from_pretrained(hub)):
        assert other.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())
        assert other.usage == model.usage and not other.training
    card = (hub / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: sleepfm\n") and card.endswith("card")
    # Again, the same is replaced; another model or somebody's own files are not.
    exported("models:/sleepfm-stage@champion", folder, store, "--no-onnx")
    assert main(["export", "models:/sleepfm-apnea@champion", "--to", str(folder), "--store", store, "--no-onnx"]) == 1
    assert main(["export", "models:/sleepfm-apnea@champion", "--to", str(hub), "--store", store, "--no-onnx"]) == 1
    assert sorted(path.name for path in hub.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_a_model_of_a_hub_embeds_and_scores_as_the_registered_one(store: str, recordings: list[Path], tmp_path: Path) -> None:
    found = {}
    for name in ("sleepfm-synthsleepnet", "sleepfm-stage", "sleepfm-apnea"):
        folder = exported(f"models:/{name}@champion", tmp_path / name, store, "--no-onnx")
        # What a hub has of it.
        (folder / "config.yaml").unlink()
        found[name] = (sleepfm.load(f"models:/{name}@champion", store), sleepfm.from_pretrained(folder))
    generator = torch.Generator().manual_seed(0)
    signals = {name: torch.randn(3, 3000, generator=generator) for name in ("EEG_C4", "EMG_CHIN")}
    with torch.inference_mode():
        for registered, other in found.values():
            assert torch.equal(other.embed(signals), registered.embed(signals))
    models = zip(found["sleepfm-stage"], found["sleepfm-apnea"], strict=True)
    expected, scored = (plain_score(sleepfm.score(recordings[0], list(pair))) for pair in models)
    assert scored == expected and scored["hypnodensity"] and scored["probability"]["apnea"]


def test_a_hubs_files_that_are_not_whole_are_refused(store: str, tmp_path: Path) -> None:
    folder = exported("models:/sleepfm-synthsleepnet@champion", tmp_path / "encoder", store, "--no-onnx")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RegistryError, match=r"model\.safetensors: SHA-256 is .* config\.json states"):
        sleepfm.from_pretrained(folder)
    for damaged in ("{", "[]", '{"model": {}}', json.dumps({"model": {"kind": "neuronet"}, "weights": {}})):
        (folder / "config.json").write_text(damaged)
        with pytest.raises(RegistryError, match=r"config\.json: (not valid JSON|no keys)"):
            sleepfm.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(RegistryError, match=r"no config\.json"):
        sleepfm.from_pretrained(folder)
    with pytest.raises(RegistryError, match="hf download"):
        sleepfm.from_pretrained("somebody/sleepfm-stage")


def test_what_a_hub_is_told_holds_nothing_of_the_machine(tmp_path: Path) -> None:
    encoder = build_model(read_yaml(config_root() / "models" / "neuronet-tiny.yaml")["model"])
    training = {"stage": "pretrain-eeg", "metrics": {"val/x": 0.5}, "config": {"data": {"path": "/home/me/nights"}}, "people": {}}
    write_package(tmp_path / "package", encoder, {"model": model_config(encoder), "training": training}, "# card\n")
    assert main(["export", str(tmp_path / "package"), "--to", str(tmp_path / "out"), "--no-onnx"]) == 0
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["training"] == {"stage": "pretrain-eeg", "metrics": {"val/x": 0.5}} and "/home/me" not in json.dumps(told)


@pytest.mark.slow
def test_a_scorer_takes_its_models_along(
    store: str, recordings: list[Path], tmp_path: Path, no_registry: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported("models:/sleepfm-scorer@champion", tmp_path / "scorer", store)
    assert main(["score", str(recordings[0]), "--model", str(folder), "--out", str(tmp_path / "out")]) == 0
    models = [sleepfm.load(f"models:/sleepfm-{task}@champion", store) for task in ("stage", "apnea", "hypopnea")]
    expected, found = plain_score(sleepfm.score(recordings[0], models)), plain_score(sleepfm.score(recordings[0], folder))
    assert found.pop("models")["apnea"] == "models:/sleepfm-apnea/1" and expected.pop("models")
    assert found == expected
    content = (folder / "apnea" / "config.yaml").read_bytes()
    (folder / "apnea" / "config.yaml").write_bytes(content + b"# changed\n")
    with pytest.raises(RegistryError, match=r"apnea/config\.yaml: SHA-256"):
        sleepfm.score(recordings[0], folder)


def same_embeddings(folder: Path, encoder: Encoder) -> None:
    """ONNX Runtime gives what ``encoder`` gives, of any number of epochs, with any channels absent."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(folder / "encoder.onnx"), providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["channels"]) == list(encoder.channels)
    generator = torch.Generator().manual_seed(2)
    for epochs in (1, 2, 7):
        signals = torch.randn(epochs, len(encoder.channels), 3000, generator=generator)
        present = torch.rand(epochs, len(encoder.channels), generator=generator) < 0.6
        present[:, 0] = True
        with torch.inference_mode():
            expected = encoder.encode(signals, present).numpy()
        (found,) = session.run(None, {"signals": signals.numpy(), "present": present.numpy()})
        assert np.abs(found - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["neuronet-tiny", "synthsleepnet-tiny", "synthsleepnet-psg-tiny"])
def test_onnx_runtime_gives_the_same_embeddings(tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(1)
    encoder = build_model(read_yaml(config_root() / "models" / f"{name}.yaml")["model"]).eval()
    write_package(tmp_path / "package", encoder, {"model": model_config(encoder)}, "# card\n")
    assert main(["export", str(tmp_path / "package"), "--to", str(tmp_path / "out")]) == 0
    same_embeddings(tmp_path / "out", encoder)


@pytest.mark.slow
def test_the_encoder_of_a_task_is_exported_too(
    downstream_packages: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    assert main(["export", str(downstream_packages["stage"]), "--to", str(tmp_path / "out")]) == 0
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("encoder.onnx: embeddings within "), said
    same_embeddings(tmp_path / "out", sleepfm.load(downstream_packages["stage"]).encoder)


def test_an_encoder_that_onnx_cannot_hold_can_be_exported_without(
    encoder_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(encoder: object, path: Path) -> float:
        raise ModelError(f"{path.name}: this encoder cannot be written as ONNX (no such operator)")

    monkeypatch.setattr("sleepfm.serving.onnx_encoder.write_onnx", fail)
    assert main(["export", str(encoder_package), "--to", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("(no such operator); --no-onnx exports the model without it") and not (tmp_path / "out").exists()
