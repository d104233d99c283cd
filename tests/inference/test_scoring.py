from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_nights import make_dataset

import sleepfm
from sleepfm.config import read_yaml
from sleepfm.errors import ModelError, MontageError
from sleepfm.evaluation.events import AHI_DEFINITION, event_family, join_overlapping, positive_runs
from sleepfm.inference.embed import embed_frames, prepared_epochs, stored_epochs
from sleepfm.inference.night_output import apply_to_epochs
from sleepfm.inference.predict import predict
from sleepfm.inference.scorer import Scorer, prepare_night
from sleepfm.inference.task_model import TaskModel
from sleepfm.inference.windows import locate_night
from sleepfm.models.build import build_model, model_config
from sleepfm.models.context import ContextConfig
from sleepfm.models.downstream import Downstream, DownstreamConfig
from sleepfm.models.event_head import EventHeadConfig
from sleepfm.models.usage import Usage
from sleepfm.registry.package import write_package
from sleepfm.registry.registry import load
from sleepfm.reports.night_comparison import compared_figures
from sleepfm.reports.night_files import agreement_with, summary
from sleepfm.signals.quality import Quality
from sleepfm.tasks import TASKS

MODELS = Path(__file__).parents[2] / "configs" / "models"


@pytest.fixture(scope="module")
def night(recordings):
    return prepare_night(recordings[0])


@pytest.fixture(scope="module")
def scorer(downstream_packages):
    return Scorer.load(list(downstream_packages.values()))


def test_every_epoch_is_scored_and_runs_of_epochs_are_no_events(scorer, night):
    score = scorer.score(night)
    assert score.n_epochs == night.n_epochs == 30
    assert np.allclose(score.hypnodensity.sum(axis=1), 1)
    assert np.array_equal(score.stages, score.hypnodensity.argmax(axis=1))
    for kind in ("apnea", "hypopnea"):
        want = positive_runs(score.probability[kind], 0.4, kind)
        assert tuple(run for run in score.runs if run.type == kind) == want
        row = score.breathing.of(kind, located=False)
        assert row.found == len(want) and score.breathing.of(kind) is None
    assert list(score.runs) == sorted(score.runs, key=lambda run: run.onset)
    assert score.events == () and np.isnan(score.ahi) and "AHI" not in str(score.breathing)
    assert score.inputs == dict.fromkeys(("stage", "apnea", "hypopnea"), score.channels)


def test_a_night_with_dead_stretches_equals_its_shards(recordings, tmp_path):
    """Bad epochs too: what is absent in scoring is absent and 0 from shards."""
    names = ("EEG_C4", "EOG_L", "SPO2")
    night = prepare_night(recordings[2])
    night.channels = {name: night.channels[name] for name in names}
    flags = (Quality.FLAT, Quality.DISCONNECTED, Quality.GAP, Quality.MAINS, Quality.CLIPPED, Quality.OUT_OF_RANGE)
    for number, name in enumerate(names):
        for place, flag in enumerate(flags):
            night.quality[name][3 * place + number] |= np.uint8(flag)
    night.quality["SPO2"][20:] |= np.uint8(Quality.DISCONNECTED)
    own = [tuple(part.clone() for part in epochs) for epochs in prepared_epochs(night, names, 7)]
    made = make_dataset(tmp_path / "out", [night])
    for (signals, present), (mine, there) in zip(stored_epochs(made, night.record, names, 7), own, strict=True):
        assert torch.equal(signals, mine) and torch.equal(present, there)
        assert not signals[~present].any()
    absent = torch.cat([~there for _, there in own])
    assert torch.nonzero(absent[:, 0])[:, 0].tolist() == [0, 3, 6] and absent[:, 2].sum() >= 10


def test_prepared_night_equals_its_shards(dataset, recordings):
    night = prepare_night(recordings[2])
    channels = ("EEG_C4", "ECG", "SPO2", "AIRFLOW")
    stored = list(stored_epochs(dataset, night.record, channels, 17))
    prepared = list(prepared_epochs(night, channels, 17))
    assert len(stored) == len(prepared) == 2
    for (signals, present), (own, there) in zip(stored, prepared, strict=True):
        assert torch.equal(signals, own) and torch.equal(present, there)


def test_scoring_a_file_equals_predicting_its_shards(dataset, recordings, downstream_packages, scorer):
    model = load(downstream_packages["stage"])
    predictions = predict(model, dataset, "test", window=20)
    for record in np.unique(predictions.record):
        path = next(p for p in recordings if p.stem == record)
        rows = predictions.record == record
        score = scorer.score(prepare_night(path))
        assert np.array_equal(predictions.epoch[rows], np.arange(score.n_epochs))
        assert np.allclose(predictions.probability[rows], score.hypnodensity, atol=1e-6)


def test_probability_of_an_epoch_equals_a_slow_pass(downstream_packages, night):
    model = load(downstream_packages["apnea"])
    score = Scorer.load([downstream_packages["apnea"]]).score(night)
    signals, present = next(prepared_epochs(night, model.channels, 30))
    for epoch in (0, 7, 29):
        with torch.inference_mode():
            logits = model(signals[epoch][None, None], present[epoch][None, None])
        assert score.probability["apnea"][epoch] == pytest.approx(logits.softmax(-1)[0, 0, 1].item(), abs=1e-5)
    assert (score.stages == -1).all() and np.isnan(score.ahi)


def test_probes_of_one_encoder_share_its_pass(downstream_packages, night):
    scorer = Scorer.load(list(downstream_packages.values()))
    encoder, calls = scorer.models["stage"].model.encoder, []
    assert all(entry.model.encoder is encoder for entry in scorer.models.values())
    encode = encoder.encode_frames
    encoder.encode_frames = lambda *a: calls.append(len(a[0])) or encode(*a)
    scorer.score(night, chunk=16)
    assert calls == [16, 14]


def test_a_subset_of_channels_is_enough_and_none_is_refused(scorer, recordings):
    night = prepare_night(recordings[0])
    for name in ("EOG_L", "EMG_CHIN"):
        del night.channels[name]
    score = scorer.score(night)
    assert np.isfinite(score.hypnodensity).all()
    assert "EOG_L" in score.warnings[0] and "EMG_CHIN" in score.warnings[0]
    assert set(score.channels) == {"EEG_C4", "ECG"}
    night.channels = {"AIRFLOW": night.channels["AIRFLOW"]}
    with pytest.raises(MontageError, match="AIRFLOW"):
        scorer.score(night)


@pytest.mark.parametrize("flag", [Quality.GAP, Quality.FLAT, Quality.DISCONNECTED])
def test_epochs_without_a_usable_channel_are_left_unscored_and_told(scorer, recordings, flag):
    night = prepare_night(recordings[0])
    night.provenance["clock"] = "23:58:00"
    for name in night.channels:
        night.quality[name][10:13] |= np.uint8(flag)
    night.quality["ECG"][20:25] |= np.uint8(flag)
    del night.channels["EMG_CHIN"]
    night.provenance["missing"]["EMG_CHIN"] = "flat for the whole recording"
    score = scorer.score(night)
    assert list(np.flatnonzero(score.stages == -1)) == [10, 11, 12]
    assert np.isnan(score.hypnodensity[10:13]).all() and np.isfinite(score.hypnodensity[20:25]).all()
    assert all(np.isnan(values[10:13]).all() for values in score.probability.values())
    assert not [e for e in score.events if e.onset < 13 * 30 and e.onset + e.duration > 10 * 30]
    assert score.statistics.unscored == 1.5
    told = "\n".join(score.warnings)
    assert "EMG_CHIN (flat for the whole recording)" in told
    assert "EEG_C4, EOG_L have no usable signal from 00:03:00 to 00:04:30" in told
    assert "ECG has no usable signal from 00:03:00 to 00:04:30, from 00:08:00 to 00:10:30" in told
    assert "3 of 30 epochs hold no usable signal in any channel" in told
    clean = prepare_night(recordings[0])
    assert scorer.score(clean).warnings == ()


def test_a_scoring_that_cannot_be_used_does_not_stop_the_models_and_is_told(scorer, recordings, tmp_path):
    """Stages that nobody's parser knows: the night is scored, and its reader hears why nothing is compared."""
    path = tmp_path / "night.csv"
    path.write_text("onset,duration,stage\n" + "".join(f"{30 * i},30,{'ZZ' if i % 2 else 'N2'}\n" for i in range(30)))
    score = scorer.score(prepare_night(recordings[0], scoring=path))
    assert (score.stages >= 0).all()
    assert any("'ZZ'" in warning and "not compared with its human scoring" in warning for warning in score.warnings)
    other = "onset,duration,stage\n90000,30,W\n"
    for content, reason in (("<PSGAnnotation", "not well-formed"), (other, "belongs to another night")):
        path.write_text(content)
        score = scorer.score(prepare_night(recordings[0], scoring=path))
        assert (score.stages >= 0).all() and any(reason in warning for warning in score.warnings)


def test_texts_and_repairs_of_a_recording_are_told_beside_its_score(scorer, recordings, tmp_path):
    path = tmp_path / "night.csv"
    rows = [f"{30 * i},30,Sleep stage N2" for i in range(30)] + ["95,20,Resp. arrest", "300,5,Leg movement"]
    path.write_text("onset,duration,event\n" + "\n".join(rows) + "\n")
    night = prepare_night(recordings[0], scoring=path)
    night.provenance["warnings"] = ["its time stamps leave 1 gap of 315 s"]
    told = "\n".join(scorer.score(night).warnings)
    assert "recording: its time stamps leave 1 gap of 315 s" in told
    assert "human scoring: not understood" in told and "'Resp. arrest' 1" in told and "Leg movement" not in told


def test_many_stretches_are_told_in_a_sum(scorer, recordings):
    night = prepare_night(recordings[0])
    night.provenance["clock"] = None
    for first in range(0, 20, 2):
        night.quality["ECG"][first] |= np.uint8(Quality.FLAT)
    night.quality["ECG"][20:24] |= np.uint8(Quality.FLAT)
    told = "\n".join(scorer.score(night).warnings)
    assert "from +0:10:00 to +0:12:00" in told and "and in 6 shorter stretches of 3 min together" in told
    night.quality["ECG"][:10] = 0
    told = "\n".join(scorer.score(night).warnings)
    assert "and in 1 shorter stretch of 0.5 min together" in told
    night.quality["ECG"][0] |= np.uint8(Quality.FLAT)
    told = "\n".join(scorer.score(night).warnings)
    assert "and in 2 shorter stretches of 1 min together" in told
    night.quality["ECG"][:] = 0
    for first, stop in ((1, 3), (4, 7), (8, 11), (12, 15), (16, 19), (20, 23)):
        night.quality["ECG"][first:stop] |= np.uint8(Quality.FLAT)
    told = "\n".join(scorer.score(night).warnings)
    assert "and in 1 shorter stretch of 1 min together" in told


def test_wrong_models_are_refused(downstream_packages, encoder_package, night):
    with pytest.raises(ModelError, match="two models for one task"):
        Scorer.load([downstream_packages["stage"]] * 2)
    with pytest.raises(ModelError, match="gives no stages or events"):
        Scorer.load([encoder_package])
    with pytest.raises(ModelError, match="Linear"):
        sleepfm.score(night.path, torch.nn.Linear(2, 2))


def test_score_takes_paths_recordings_and_modules(downstream_packages, recordings, scorer, night):
    want = scorer.score(night)
    packages = list(downstream_packages.values())
    got = sleepfm.score(str(recordings[0]), packages)
    assert np.array_equal(got.stages, want.stages) and got.events == want.events
    got = sleepfm.score(sleepfm.read_recording(recordings[0]), load(downstream_packages["stage"]))
    assert np.array_equal(got.stages, want.stages)


def test_a_loaded_module_scores_as_its_address_does(tmp_path, night):
    """With windows and thresholds that are nobody's defaults."""
    packages = []
    for number, task in enumerate(("stage", "apnea", "hypopnea")):
        torch.manual_seed(number)
        encoder = build_model(read_yaml(MODELS / "synthsleepnet-tiny.yaml")["model"])
        located = task == "hypopnea"
        plan = DownstreamConfig(
            task=task,
            classes=TASKS[task].classes,
            encoder=model_config(encoder),
            context=ContextConfig(kind="mamba"),
            events=EventHeadConfig() if located else None,
        )
        model = Downstream(plan, encoder).eval()
        with torch.no_grad():
            for parameter in model.head.parameters():
                parameter.mul_(3.0)
        found = apply_to_epochs(model, prepared_epochs(night, model.channels, 64), 5)
        # Thresholds that some of the night reaches, and 0.5 does not stand for.
        threshold = None if task == "stage" else float(np.quantile(found.epochs[:, 1], 0.3))
        event_threshold = float(np.quantile(found.seconds, 0.2)) if located else None
        usage = Usage(
            task=task,
            classes=TASKS[task].classes,
            window=5,
            threshold=threshold,
            event_threshold=event_threshold,
            resolution_s=1 if located else 30,
        )
        write_package(tmp_path / task, model, {"model": model_config(model)} | usage.to_package(), "card")
        packages.append(tmp_path / task)
    by_address = sleepfm.score(night.path, packages)
    by_module = sleepfm.score(night.path, [load(package) for package in packages])
    assert by_address.events and by_address.runs
    for name in ("stages", "hypnodensity"):
        assert np.array_equal(getattr(by_module, name), getattr(by_address, name))
    for task, values in by_address.probability.items():
        assert np.array_equal(by_module.probability[task], values)
    for name in ("threshold", "event_threshold", "events", "runs", "inputs", "warnings"):
        assert getattr(by_module, name) == getattr(by_address, name)
    # The window shows in the figures.
    entry = TaskModel.load(packages[0])
    other = replace(entry, usage=entry.usage.model_copy(update={"window": 20}))
    assert not np.array_equal(Scorer([other]).score(night).hypnodensity, by_address.hypnodensity)


def test_a_module_that_does_not_say_how_it_is_used_is_refused(downstream_packages, night):
    bare = Downstream(load(downstream_packages["apnea"]).config, load(downstream_packages["apnea"]).encoder).eval()
    with pytest.raises(ModelError, match=r"model of apnea that does not say how it is used.*sleepfm\.load"):
        sleepfm.score(night.path, bare)
    bare.usage = load(downstream_packages["stage"]).usage
    with pytest.raises(ModelError, match="another model"):
        sleepfm.score(night.path, bare)


def test_an_mne_raw_is_scored_like_its_file(downstream_packages, recordings, night):
    mne = pytest.importorskip("mne")
    raw = mne.io.read_raw_edf(recordings[0], verbose="ERROR")
    own = prepare_night(raw)
    for name in ("EEG_C4", "EMG_CHIN", "ECG"):
        assert np.allclose(own.channels[name], night.channels[name], atol=2e-3), name
    got = sleepfm.score(raw, list(downstream_packages.values()))
    assert got.record == night.record and got.n_epochs == night.n_epochs


@pytest.fixture(scope="module")
def located_packages(tmp_path_factory):
    """Untrained models that tell seconds apart."""
    found = {}
    for number, task in enumerate(("apnea", "hypopnea")):
        torch.manual_seed(7)
        encoder = build_model(read_yaml(MODELS / "synthsleepnet-tiny.yaml")["model"])
        plan = DownstreamConfig(
            task=task, classes=TASKS[task].classes, encoder=model_config(encoder), context=ContextConfig(kind="none"),
            events=EventHeadConfig(),
        )  # fmt: skip
        torch.manual_seed(10 + number)
        model = Downstream(plan, encoder)
        found[task] = tmp_path_factory.mktemp(task)
        usage = Usage(
            task=task, classes=TASKS[task].classes, window=20, threshold=0.5, event_threshold=0.5, resolution_s=1
        )  # fmt: skip
        write_package(found[task], model, {"model": model_config(model)} | usage.to_package(), "card")
    return found


def test_apneas_and_hypopneas_to_the_second_make_an_ahi_and_overlap_nowhere(located_packages, downstream_packages, night):
    entries = []
    for package in located_packages.values():
        (entry,) = Scorer.load([package]).models.values()
        frames = embed_frames(entry.model.encoder, prepared_epochs(night, entry.model.channels, 30))
        # Most seconds positive: the events of two untrained models then overlap.
        seconds = locate_night(entry.model, frames, entry.usage.window)
        changed = entry.usage.model_copy(update={"event_threshold": float(np.quantile(seconds, 0.2))})
        entries.append(replace(entry, usage=changed))
    apneas, hypopneas = (Scorer([entry]).score(night).events for entry in entries)
    shared = [h for h in hypopneas if any(a.onset < h.onset + h.duration and h.onset < a.onset + a.duration for a in apneas)]
    assert shared
    score = Scorer([*entries, *Scorer.load([downstream_packages["stage"]]).models.values()]).score(night)
    assert score.events == join_overlapping([*apneas, *hypopneas]) and score.runs == ()
    assert len(score.events) == len(apneas) + len(hypopneas) - len(shared)
    content = summary(score, night)
    assert content["event_thresholds"] == {entry.task: entry.usage.event_threshold for entry in entries}
    breathing = content["breathing"]
    assert breathing["ahi"] == score.ahi if np.isfinite(score.ahi) else breathing["ahi"] is None
    assert (breathing["apneas"], breathing["hypopneas"]) == (len(apneas), len(hypopneas) - len(shared))
    assert breathing["definitions"] == [f"AHI: {AHI_DEFINITION}"] and "AHI" in score.headline
    assert set(content["agreement"]) == {"stage", "apnea", "hypopnea", "ahi"}
    assert not content["agreement"]["apnea"]["positive_runs"]

    # The AHI of either side counts what lies in that side's sleep, where both scored breathing.
    stages, human = np.arange(30) % 3, np.where(np.arange(30) < 24, np.arange(30) % 2, 0)
    night = replace(night, stage=human, labels={kind: np.where(np.arange(30) < 24, 0, -1) for kind in ("apnea", "hypopnea")})
    found = agreement_with(replace(score, stages=stages), night)["ahi"]

    def slow_ahi(events, stage):
        asleep = [epoch for epoch in range(24) if stage[epoch] > 0]
        inside = [e for e in events if any(e.onset < 30 * (i + 1) and 30 * i < e.onset + e.duration for i in asleep)]
        return len(inside) / (len(asleep) * 30 / 3600)

    assert found["model"] == pytest.approx(slow_ahi(score.events, stages))
    breaths = [event for event in join_overlapping(night.events) if event_family(event.type) in ("apnea", "hypopnea")]
    assert found["scored"] == pytest.approx(slow_ahi(breaths, human))

    # Where much of the human's sleep has events that were not understood, no AHI of the human is known.
    night = replace(night, stage=np.ones(30, int))
    unknown = agreement_with(replace(score, stages=stages), night)["ahi"]
    assert math.isnan(unknown["scored"]) and unknown["model"] == found["model"]
    assert summary(replace(score, stages=stages), night)["agreement"]["ahi"]["scored"] is None
    assert not any(figure.name == "AHI" and figure.human == 0 for figure in compared_figures(score, night))


def test_what_was_not_scored_is_null(downstream_packages, night):
    stage = Scorer.load([downstream_packages["stage"]]).score(night)
    content = summary(stage, night)
    empty = {key: value for key, value in content["breathing"].items() if key != "definitions"}
    assert set(empty.values()) == {None} and content["breathing"]["definitions"] == []
    assert set(content["agreement"]) == {"stage"}
    assert stage.headline == f"30 epochs, {stage.statistics.total_sleep_time:.0f} min of sleep"

    lost = np.arange(30) < 3
    partly = replace(
        stage, stages=np.where(lost, -1, stage.stages), hypnodensity=np.where(lost[:, None], np.nan, stage.hypnodensity)
    )
    both = ~lost & (night.stage >= 0)
    accuracy = (stage.stages == night.stage)[both].mean()
    assert agreement_with(partly, night)["stage"]["accuracy"] == pytest.approx(accuracy)

    apnea = Scorer.load([downstream_packages["apnea"]]).score(night)
    content = summary(apnea, night)
    sleep = content["sleep"]
    assert sleep.pop("recorded") == sleep.pop("unscored") == 15.0 and sleep.pop("unscored_in_bed") == 0
    assert {*sleep.pop("stage_minutes").values(), *sleep.pop("stage_percent").values(), *sleep.values()} == {None}
    breathing = content["breathing"]
    assert breathing["apnea_positive_runs"] == len(apnea.runs) and breathing["apnea_positive_runs_in_sleep"] is None
    assert breathing["ahi"] is breathing["apneas"] is breathing["hypopneas"] is breathing["hypopnea_positive_runs"] is None
    assert set(content["agreement"]) == {"apnea"} and content["agreement"]["apnea"]["positive_runs"]
    assert "sleep," not in apnea.headline and "AHI" not in apnea.headline
