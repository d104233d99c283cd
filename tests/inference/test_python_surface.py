"""The library as a person expects it: any float type, any form of a recording, errors that name the argument, nights to print."""

from __future__ import annotations

from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pytest
import torch

import sleepfm
from sleepfm.errors import ModelError, MontageError, RecordingError, RegistryError
from sleepfm.inference.embed import embed, prepared_epochs
from sleepfm.inference.scorer import Scorer, prepare_night
from sleepfm.reports.night_files import write_night


@pytest.fixture(scope="module")
def model(encoder_package):
    return sleepfm.load(encoder_package)


@pytest.fixture(scope="module")
def signals(model):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(2, 3000, generator=generator) for name in model.channels[:2]}


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.numpy(),
        lambda x: x.numpy().astype(np.float64),
        lambda x: x.numpy().astype(">f8"),
        lambda x: np.asfortranarray(x.numpy()),
        lambda x: np.broadcast_to(x.numpy(), x.shape),  # not to be written to
        lambda x: x.double(),
        lambda x: x.clone().requires_grad_(),
        lambda x: x.numpy().tolist(),
    ],
)
def test_every_float_type_gives_the_same(model, signals, form) -> None:
    wanted = model.embed(signals)
    found = model.embed({name: form(x) for name, x in signals.items()})
    assert found.dtype == torch.float32 and torch.equal(found, wanted)


@pytest.mark.parametrize("form", [lambda x: x.half(), lambda x: x.bfloat16(), lambda x: x.numpy().astype(np.float16)])
def test_half_precision_is_taken(model, signals, form) -> None:
    found = model.embed({name: form(x) for name, x in signals.items()})
    torch.testing.assert_close(found, model.embed(signals), atol=0.1, rtol=0.1)


def test_embeddings_carry_no_gradient_and_can_be_learnt_from(model, signals, recordings) -> None:
    for found in (model.embed(signals), model.embed(recordings[0])):
        assert not found.requires_grad and not found.is_inference()
        head = torch.nn.Linear(found.shape[1], 1)
        head(found.nan_to_num()).sum().backward()
        assert head.weight.grad is not None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"EEG_C4": np.zeros((2, 3000)), "C4": np.zeros((2, 3000))}, "signals: unknown channels C4; this model takes any of "),
        ({}, "signals: no channel; this model takes any of "),
        ({"EEG_C4": np.zeros((2, 3000), np.int16)}, r"signals\['EEG_C4'\]: expected floats.*found int16"),
        ({"EEG_C4": torch.zeros(2, 3000, dtype=torch.int64)}, r"signals\['EEG_C4'\]: expected floats.*found torch.int64"),
        ({"EEG_C4": np.zeros(3000)}, r"signals\['EEG_C4'\]: expected \[B, 3000\].*found \[3000\]"),
        ({"EEG_C4": 1.0}, r"signals\['EEG_C4'\]: expected \[B, 3000\]"),
        (
            {"EEG_C4": np.zeros((2, 3000)), "EOG_L": np.zeros((3, 3000))},
            r"signals\['EOG_L'\]: .*as many epochs as signals\['EEG_C4'\]\), found \[3, 3000\]",
        ),
        ({"EEG_C4": np.full((1, 3000), np.inf)}, r"signals\['EEG_C4'\]: values that are not finite"),
        (np.zeros((2, 3000)), r"signals: a ndarray without names of channels; give \{channel: \[B, 3000\]\}"),
        (torch.zeros(2, 3000), "signals: a Tensor without names of channels"),
    ],
)
def test_errors_name_the_argument(model, given, said) -> None:
    with pytest.raises(ModelError, match=said):
        model.embed(given)


def test_what_is_no_recording_is_refused(model, downstream_packages, recordings) -> None:
    for wrong in (7, None):
        said = rf"signals: expected \{{channel: \[B, 3000\]\}}, the path of an EDF .* found a {type(wrong).__name__}"
        with pytest.raises(RecordingError, match=said):
            model.embed(wrong)
        with pytest.raises(RecordingError, match=f"^path: expected the path or URL of an EDF .*found a {type(wrong).__name__}"):
            sleepfm.read_recording(wrong)
    with pytest.raises(RecordingError, match="recording: expected"):
        sleepfm.score(None, downstream_packages["stage"])
    with pytest.raises(ModelError, match=r"model: int gives no stages or events"):
        sleepfm.score(recordings[0], 7)
    with pytest.raises(ModelError, match=r"^model: names no model; give one or several, or leave model out"):
        sleepfm.score(recordings[0], [])


def test_what_is_no_model_is_refused_by_its_argument() -> None:
    with pytest.raises(RegistryError, match=r"^uri: expected models:/NAME@ALIAS, .* or a model folder, found a NoneType"):
        sleepfm.load(None)
    with pytest.raises(RegistryError, match=r"^folder: expected the path of a folder in the layout .* found a NoneType"):
        sleepfm.from_pretrained(None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "^recording: expected the path of an EDF .* found a NoneType"),
        (np.zeros((2, 3000)), "^recording: expected the path of an EDF .* found a ndarray"),
        ("nope.edf", r"^nope\.edf: cannot be read \(No such file"),
    ],
)
def test_a_recording_is_looked_at_before_the_models(given, said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for model in (None, "no-such-model"):
        with pytest.raises(RecordingError, match=said):
            sleepfm.score(given, model)


def test_a_recording_is_embedded_in_every_form(model, recordings) -> None:
    night = prepare_night(recordings[0])
    wanted = embed(model, prepared_epochs(night, model.channels, 64))
    assert wanted.shape[0] == night.n_epochs
    for form in (str(recordings[0]), sleepfm.read_recording(recordings[0])):
        torch.testing.assert_close(model.embed(form, cohort="shhs1"), wanted, atol=0, rtol=0, equal_nan=True)
    raw = mne.io.read_raw_edf(recordings[0], preload=False, verbose="error")
    torch.testing.assert_close(model.embed(raw), wanted, atol=0.05, rtol=0.05, equal_nan=True)


def test_a_recording_without_a_channel_of_the_model_is_refused(model) -> None:
    raw = mne.io.RawArray(np.zeros((1, 30 * 100)), mne.create_info(["Pleth"], 100.0, "misc"), verbose="error")
    with pytest.raises(MontageError):
        model.embed(raw)


def test_a_downstream_model_embeds_as_its_encoder(downstream_packages, signals) -> None:
    stage = sleepfm.load(downstream_packages["stage"])
    given = {name: signal.numpy() for name, signal in zip(stage.channels, signals.values(), strict=False)}
    assert torch.equal(stage.embed(given), stage.encoder.embed(given))


@pytest.fixture(scope="module")
def night(recordings):
    return prepare_night(recordings[0])


@pytest.fixture(scope="module")
def scored(downstream_packages, night):
    return Scorer.load(list(downstream_packages.values())).score(night)


def test_a_night_prints_itself_in_a_line(scored) -> None:
    assert repr(scored) == str(scored) == f"<NightScore {scored.record}: {scored.headline}>"
    assert scored.headline.startswith("30 epochs, ") and len(repr(scored)) < 200


def test_tables_are_those_of_the_files(scored, night, tmp_path: Path) -> None:
    write_night(tmp_path, scored, night)
    tables = {"stages": scored.stages_frame(), "hypnodensity": scored.hypnodensity_frame(), "events": scored.events_frame()}
    for name, table in tables.items():
        stored = pd.read_csv(tmp_path / f"{name}.csv")
        assert list(table.columns) == [column for column in stored.columns if column in table.columns]
        assert len(table) == len(stored)
    stages = scored.stages_frame()
    assert stages["epoch"].tolist() == list(range(1, 31)) and stages["onset_s"].tolist() == list(range(0, 900, 30))
    assert np.allclose(stages["confidence"], scored.hypnodensity.max(axis=1))
    assert stages["stage"].tolist() == pd.read_csv(tmp_path / "stages.csv")["stage"].tolist()
    assert np.allclose(scored.hypnodensity_frame()[["W", "N1", "N2", "N3", "REM"]], scored.hypnodensity)


def test_a_night_plots_itself(scored, tmp_path: Path) -> None:
    picture = scored.plot()
    picture.save(tmp_path / "night.png")
    assert (tmp_path / "night.png").read_bytes()[:4] == b"\x89PNG"
    assert picture.width > 1000 and len(set(picture.convert("RGB").getdata())) > 10
