"""Models on one encoder: one copy, one pass over a night, and the same numbers as each alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sleepfm.config import read_yaml
from sleepfm.inference.scorer import Scorer, prepare_night
from sleepfm.inference.task_model import TaskModel
from sleepfm.models.band_powers import BandPowersConfig
from sleepfm.models.build import build_model, model_config
from sleepfm.models.device import choose_precision
from sleepfm.models.downstream import Downstream, DownstreamConfig
from sleepfm.models.event_head import EventHeadConfig
from sleepfm.models.sharing import same_encoder, share_encoder, state_digest
from sleepfm.models.usage import Usage
from sleepfm.registry.package import write_package
from sleepfm.registry.registry import load_package
from sleepfm.tasks import TASKS

MODELS = Path(__file__).parents[2] / "configs" / "models"


@pytest.fixture(scope="module")
def night(recordings):
    return prepare_night(recordings[0])


@pytest.fixture(scope="module")
def event_package(tmp_path_factory):
    """An untrained event head for apneas on the encoder of ``downstream_packages``."""
    torch.manual_seed(0)
    encoder = build_model(read_yaml(MODELS / "synthsleepnet-tiny.yaml")["model"])
    task, folder = TASKS["apnea"], tmp_path_factory.mktemp("events")
    events = EventHeadConfig(hidden=32, amplitudes=("ECG",))
    config = DownstreamConfig(task="apnea", classes=task.classes, encoder=model_config(encoder), events=events)
    torch.manual_seed(1)
    model = Downstream(config, encoder)
    usage = Usage(task="apnea", classes=task.classes, window=20, threshold=0.5, event_threshold=0.5, resolution_s=1)
    write_package(folder, model, {"model": model_config(model)} | usage.to_package(), "card")
    return folder


def test_a_mapped_package_is_the_same_module(event_package):
    mapped, copied = (load_package(event_package, mapped=way).module for way in (True, False))
    assert model_config(mapped) == model_config(copied) and not mapped.training
    mine, theirs = dict(mapped.state_dict()), dict(copied.state_dict())
    assert list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)
    trains = [{name: p.requires_grad for name, p in module.named_parameters()} for module in (mapped, copied)]
    assert trains[0] == trains[1]
    # What stands in no file, too.
    buffers = [dict(module.named_buffers()) for module in (mapped, copied)]
    assert buffers[0].keys() == buffers[1].keys() > mine.keys() - dict(mapped.named_parameters()).keys()
    assert all(torch.equal(buffers[0][name], buffers[1][name]) for name in buffers[0])


def test_equal_encoders_become_one_and_others_stay(downstream_packages, event_package):
    scorer = Scorer.load([downstream_packages["stage"], event_package, downstream_packages["hypopnea"]])
    assert len({id(entry.model.encoder) for entry in scorer.models.values()}) == 1
    # Nothing holds the file of an encoder that was let go.
    mapped = Path("/proc/self/maps").read_text()
    assert str(downstream_packages["stage"]) in mapped
    assert str(event_package) not in mapped and str(downstream_packages["hypopnea"]) not in mapped
    one, other = (TaskModel.load(downstream_packages[task]).model for task in ("stage", "apnea"))
    assert same_encoder(one, other) and one.encoder is not other.encoder
    with torch.no_grad():
        next(other.encoder.parameters()).view(-1)[0] += 1e-3
    share_encoder(other, [one])
    assert not same_encoder(one, other) and one.encoder is not other.encoder
    assert state_digest(one) == state_digest(TaskModel.load(downstream_packages["stage"]).model) != state_digest(other)


def test_one_pass_gives_what_each_model_gives_alone(downstream_packages, event_package, night):
    """Also the model of stages, whose embedding is then made of the frames that the event head needs."""
    together = Scorer.load([downstream_packages["stage"], event_package])
    done = []
    score = together.score(night, chunk=7, progress=done.append)
    assert together.passes() == 1 and sum(done) == night.n_epochs and max(done) == 7
    alone = [Scorer.load([package]).score(night) for package in (downstream_packages["stage"], event_package)]
    np.testing.assert_allclose(score.hypnodensity, alone[0].hypnodensity, atol=1e-6)
    np.testing.assert_allclose(score.seconds["apnea"], alone[1].seconds["apnea"], atol=1e-6)
    fine = []
    assert together.score(night, resolution=5, progress=fine.append).fine is not None
    assert night.n_epochs * 6 < sum(fine) <= night.n_epochs * together.passes(5)


@pytest.mark.parametrize("embedding", [True, False])
def test_a_model_that_is_told_the_powers_of_bands_passes_over_the_night_by_itself(event_package, night, tmp_path, embedding):
    encoder = build_model(read_yaml(MODELS / "synthsleepnet-tiny.yaml")["model"])
    encoder.load_state_dict(load_package(event_package).module.encoder.state_dict(), strict=False)
    task, powers = TASKS["stage"], BandPowersConfig(channels=("EEG_C4",), embedding=embedding)
    config = DownstreamConfig(task="stage", classes=task.classes, encoder=model_config(encoder), band_powers=powers)
    usage = Usage(task="stage", classes=task.classes, window=20)
    model = Downstream(config, encoder)
    write_package(tmp_path, model, {"model": model_config(model)} | usage.to_package(), "card")
    together, done = Scorer.load([tmp_path, event_package]), []
    score = together.score(night, chunk=7, progress=done.append)
    assert together.passes() == 2 and sum(done) == 2 * night.n_epochs
    alone = [Scorer.load([package]).score(night) for package in (tmp_path, event_package)]
    np.testing.assert_allclose(score.hypnodensity, alone[0].hypnodensity, atol=1e-6)
    np.testing.assert_allclose(score.seconds["apnea"], alone[1].seconds["apnea"], atol=1e-6)


def test_a_model_that_sees_no_embedding_shares_none_with_one_that_does(night):
    """Of one encoder and with powers of the same channels."""
    encoder = build_model(read_yaml(MODELS / "synthsleepnet-tiny.yaml")["model"])

    def model(task, embedding):
        powers = BandPowersConfig(channels=("EEG_C4",), embedding=embedding)
        classes = TASKS[task].classes
        torch.manual_seed(len(task))
        config = DownstreamConfig(task=task, classes=classes, encoder=model_config(encoder), band_powers=powers)
        usage = Usage(task=task, classes=classes, window=20, threshold=0.5 if task == "apnea" else None)
        return TaskModel(Downstream(config, encoder).eval(), usage, task)

    models = [model("stage", False), model("apnea", True)]
    together, alone = Scorer(models).score(night), [Scorer([own]).score(night) for own in models]
    np.testing.assert_array_equal(together.hypnodensity, alone[0].hypnodensity)
    np.testing.assert_array_equal(together.probability["apnea"], alone[1].probability["apnea"])
    assert Scorer(models).passes() == 2


def test_encoders_in_bf16_say_nearly_the_same(downstream_packages, event_package, night):
    packages = [downstream_packages["stage"], event_package]
    exact, rounded = (Scorer.load(packages, precision=kind).score(night) for kind in ("fp32", "bf16"))
    for one, other in ((exact.hypnodensity, rounded.hypnodensity), (exact.seconds["apnea"], rounded.seconds["apnea"])):
        assert 0 < np.abs(one - other).max() < 0.03


def test_bf16_is_for_large_encoders_where_the_processor_has_it(monkeypatch):
    small, large = (torch.nn.Linear(size, 5000, bias=False) for size in (100, 5000))
    for native in (False, True):
        monkeypatch.setattr("sleepfm.models.device.native_bf16", lambda device, native=native: native)
        assert choose_precision("auto", large) == ("bf16" if native else "fp32")
        assert choose_precision("auto", small) == choose_precision("fp32", large) == "fp32"
        assert choose_precision("bf16", small) == "bf16"
