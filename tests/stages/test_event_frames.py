"""Event heads on a frozen encoder: frames that are made once give what signals give, kinds are told apart, and what has no
airflow and effort is not assessed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sleepfm.config import load_config, read_yaml
from sleepfm.data.reader import ShardReader
from sleepfm.data.record_labels import epochs_with_any
from sleepfm.data.scored_events import scored_events
from sleepfm.errors import ConfigError, ModelError
from sleepfm.evaluation.event_figures import event_metrics
from sleepfm.evaluation.event_results import EventResult
from sleepfm.evaluation.metrics import plain
from sleepfm.evaluation.night_agreement import ahi_agreement
from sleepfm.evaluation.prediction_figures import compared_nights
from sleepfm.evaluation.predictions import Predictions
from sleepfm.inference.embed import frame_features, stored_epochs
from sleepfm.inference.night_output import apply_to_epochs
from sleepfm.inference.predict import predict
from sleepfm.inference.scorer import Scorer, prepare_night
from sleepfm.inference.subsets import ahi_subsets, modality_subsets, predict_subsets
from sleepfm.inference.task_model import TaskModel
from sleepfm.models.amplitude import FrameGrid, frame_amplitudes
from sleepfm.models.build import build_model, model_config
from sleepfm.models.downstream import Downstream, DownstreamConfig
from sleepfm.models.event_head import EventHeadConfig
from sleepfm.models.neuronet import NeuroNetConfig
from sleepfm.models.usage import Usage
from sleepfm.paths import config_root
from sleepfm.registry.package import write_package
from sleepfm.registry.registry import Resolved
from sleepfm.reports.night_files import summary, write_night, written_night
from sleepfm.signals.quality import Quality
from sleepfm.stages.downstream_config import FinetuneConfig
from sleepfm.stages.finetune import FinetuneStage
from sleepfm.stages.run_results import read_event_results
from sleepfm.stages.second_labels import SecondLabels
from sleepfm.tasks import BREATHING, TASKS
from sleepfm.training.folder import RunFolder

KINDS = ("obstructive_apnea", "central_apnea", "mixed_apnea")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """An untrained NeuroNet of breathing."""
    folder = tmp_path_factory.mktemp("resp")
    torch.manual_seed(0)
    model = build_model(read_yaml(config_root() / "models" / "neuronet-tiny.yaml")["model"] | {"channels": list(BREATHING)})
    write_package(folder, model, {"model": model_config(model)}, "card")
    return Resolved(str(folder), folder)


def made(dataset, source, folder, task: str = "apnea", *overrides: str) -> FinetuneStage:
    fixed = [f"data.path={dataset.path}", f"train.output={folder}", f"cache={folder / 'cache'}", "evaluate.resamples=0"]
    config = load_config(
        FinetuneConfig, config_root() / "downstream" / f"events-{task}-tiny.yaml", [*fixed, "sequence.length=7", *overrides]
    )
    return FinetuneStage(config, source)


@pytest.fixture(scope="module")
def stage(dataset, source, tmp_path_factory):
    return made(dataset, source, tmp_path_factory.mktemp("run"))


def test_frames_give_what_signals_give(dataset, source, stage, tmp_path):
    signals = made(dataset, source, tmp_path, "apnea", "cache=null")
    assert type(signals.module) is Downstream and signals.module.state_dict().keys() == stage.module.state_dict().keys()
    signals.module.load_state_dict(stage.module.state_dict())
    for part in (signals, stage):
        part.module.eval()
    b = stage.stream.batch(0, 12)
    places = zip(b.record, b.first_epoch.tolist(), strict=True)
    of_frames = {place: slot for slot, place in enumerate(places)}
    compared = 0
    for position in range(24):
        batch = signals.stream.batch(position, 1)
        slot = of_frames.get((batch.record[0], int(batch.first_epoch[0])))
        if slot is None:
            continue
        compared += 1
        with torch.no_grad():
            want = signals.module(batch.signals, batch.present, batch.valid)
            got = stage.module(b.signals[slot, None], b.present[slot, None], b.valid[slot, None])
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        for name, values in batch.labels.items():
            assert torch.equal(values[0], b.labels[name][slot]), name
        assert signals.loss(signals.module, batch, 0).parts.keys() == stage.loss(stage.module, b, 0).parts.keys()
    assert compared >= 3


def test_a_night_passes_through_the_encoder_once_for_every_task(dataset, source, stage, tmp_path, monkeypatch):
    monkeypatch.setattr("sleepfm.stages.embedding_cache.frame_features", lambda *a: pytest.fail("encoded again"))
    cache = stage.config.cache
    again = made(dataset, source, tmp_path, "hypopnea", f"cache={cache}")
    assert len(again.stream) > 0
    monkeypatch.undo()
    row = int(dataset.select("label")[0])
    night = next(iter(again._caches.values())).get(dataset.names[row])
    assert night.shape == (30, 27, 128 + 6)
    own = frame_features(stage.module, stored_epochs(dataset, dataset.names[row], BREATHING, 64))
    torch.testing.assert_close(night, own, equal_nan=True)


def test_kinds_of_seconds_are_those_of_the_scored_events(dataset, stage):
    reader = ShardReader(dataset)
    held = set()
    for row in range(len(dataset.records)):
        found = SecondLabels(dataset, stage.config.task).kinds_of(row, KINDS).numpy()
        events = scored_events(dataset, reader, row)
        for second in range(0, len(found), 3):
            inside = [e.type for e in events if e.type in KINDS and e.onset <= second + 0.5 < e.onset + e.duration]
            assert (KINDS[found[second]] if found[second] >= 0 else None) == (inside[-1] if inside else None)
        held |= set(found.tolist())
    assert held >= {-1, 0}


def losses_of(stage: FinetuneStage, steps: int) -> list[float]:
    """Train the head of ``stage`` for a while."""
    module = stage.module.train()
    optimiser = torch.optim.AdamW([parameter for parameter in module.parameters() if parameter.requires_grad], lr=3e-3)
    losses = []
    for step in range(steps):
        result = stage.loss(module, stage.stream.batch(4 * step, 4), 0)
        optimiser.zero_grad()
        result.loss.backward()
        optimiser.step()
        losses.append(result.loss.item())
    return losses


def test_it_learns_and_its_package_scores_events_with_kinds(dataset, recordings, stage, tmp_path):
    module = stage.module
    before = {name: value.clone() for name, value in module.encoder.state_dict().items()}
    losses = losses_of(stage, steps=16)
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:2])
    assert all(torch.equal(value, before[name]) for name, value in module.encoder.state_dict().items())
    module.eval()
    export = stage.export(module, tmp_path)
    write_package(tmp_path / "package", module, export.config, export.card)
    scorer = Scorer.load([tmp_path / "package"])
    (entry,) = scorer.models.values()
    assert entry.model.config.events.kinds == KINDS and entry.usage.window == 7
    low = entry.usage.model_copy(update={"event_threshold": 0.01})
    score = Scorer([replace(entry, usage=low)]).score(prepare_night(recordings[0]))
    assert score.events and {event.type for event in score.events} <= set(KINDS)
    assert score.breathing.of("apnea").found == len(score.events)
    assert score.inputs["apnea"] == BREATHING
    # Its figures say how often a kind is told rightly, of the events that scoring finds.
    told = Predictions.read(RunFolder(tmp_path).predictions("test"))
    assert tuple(told.kinds) == KINDS
    nights = compared_nights(dataset, "apnea", told, 0.01)
    for night in nights:
        row = dataset.records[dataset.index_of(night.record)]
        (recording,) = (path for path in recordings if path.stem == Path(row.source).stem)
        scored = Scorer([replace(entry, usage=low)]).score(prepare_night(recording))
        assert [(e.onset, e.type) for e in night.detected] == [(e.onset, e.type) for e in scored.events]
    results = read_event_results(tmp_path)["test"].metrics
    want = event_metrics(compared_nights(dataset, "apnea", told, entry.usage.event_threshold), n_boot=0)
    assert {name for name in results if name.startswith("kind_")} == {"kind_accuracy", *(f"kind_recall_{k}" for k in KINDS)}
    assert plain(results["kind_accuracy"].value) == plain(want["kind_accuracy"].value)
    page = (tmp_path / "evaluation.html").read_text()
    assert "Kind of the matched events" in page and "Scored as central apnea" in page
    assert "kind_recall_mixed_apnea" in (tmp_path / "package" / "MODEL_CARD.md").read_text()


def entry_of(stage):
    usage = Usage(
        task=stage.config.task,
        classes=stage.task.classes,
        window=7,
        threshold=0.5,
        event_threshold=0.3,
        resolution_s=1,
    )
    return TaskModel(stage.module.eval(), usage, stage.config.task)


@pytest.fixture(scope="module")
def scorer(dataset, source, stage, downstream_packages, tmp_path_factory):
    other = made(dataset, source, tmp_path_factory.mktemp("hypopnea"), "hypopnea")
    # As scoring has it: from signals.
    entries = []
    for one in (stage, other):
        model = Downstream(one.module.config, build_model(one.module.config.encoder)).eval()
        model.load_state_dict(one.module.state_dict())
        entries.append(replace(entry_of(one), model=model))
    return Scorer([*entries, *Scorer.load([downstream_packages["stage"]]).models.values()])


@pytest.fixture(scope="module")
def located_eeg_only(downstream_packages):
    """Untrained models of four channels that tell seconds apart and call most of them."""
    entries = list(Scorer.load([downstream_packages["stage"]]).models.values())
    for task in ("apnea", "hypopnea"):
        encoder = build_model(read_yaml(config_root() / "models" / "synthsleepnet-tiny.yaml")["model"])
        plan = DownstreamConfig(
            task=task, classes=TASKS[task].classes, encoder=model_config(encoder), events=EventHeadConfig(hidden=32)
        )
        usage = Usage(task=task, classes=TASKS[task].classes, window=7, threshold=0.5, event_threshold=0.01, resolution_s=1)
        entries.append(TaskModel(Downstream(plan, encoder).eval(), usage, task))
    return Scorer(entries)


def test_a_recording_without_airflow_and_effort_has_no_ahi(scorer, located_eeg_only, recordings):
    """Also where a model of the paper's four channels is asked, which calls something in any night."""
    night = prepare_night(recordings[0])
    for name in BREATHING:
        del night.channels[name]
    # Models of airflow and belts have nothing to look at; that of stages goes on.
    staged = scorer.score(night)
    assert (staged.stages >= 0).all() and np.isnan(staged.ahi) and staged.breathing.counted == () and staged.events == ()
    assert any("apnea: not assessed, since the recording has none of the channels" in warning for warning in staged.warnings)
    score = located_eeg_only.score(night)
    assert np.isfinite(score.probability["apnea"]).all() and score.events
    assert np.isnan(score.ahi) and score.breathing.counted == () and score.breathing.to_json()["apneas"] is None
    assert written_night(score, night, None).events == tuple(fall.as_event() for fall in score.desaturations)


@pytest.mark.parametrize("flag", [Quality.FLAT, Quality.DISCONNECTED])
def test_epochs_without_airflow_and_effort_are_not_assessed(scorer, recordings, tmp_path, flag):
    night = prepare_night(recordings[0])
    for name in BREATHING:
        night.quality[name][10:] |= np.uint8(flag)
    score = scorer.score(night)
    assert (score.stages >= 0).all()
    for task in ("apnea", "hypopnea"):
        assert np.isfinite(score.probability[task][:10]).all() and np.isnan(score.probability[task][10:]).all()
        assert any(f"{task}: not assessed in 20 of 30 epochs" in warning for warning in score.warnings)
    assert all(event.onset + event.duration <= 300 for event in score.events)
    asleep = (score.stages > 0)[:10].sum() * 30 / 3600
    assert score.breathing.hours == pytest.approx(asleep)

    for name in BREATHING:
        night.quality[name][:] |= np.uint8(flag)
    nothing = scorer.score(night)
    content = summary(nothing, night)
    assert np.isnan(nothing.ahi) and nothing.events == () and nothing.breathing.counted == ()
    assert content["breathing"]["ahi"] is content["breathing"]["apneas"] is content["breathing"]["hypopneas"] is None
    assert set(content["ahi_by_definition"].values()) == {None}
    assert any("apnea: not assessed, since the recording has no usable channel of AIRFLOW" in w for w in nothing.warnings)
    write_night(tmp_path, nothing, night)


def test_one_scoring_gives_every_index_and_its_evidence(scorer, recordings, tmp_path):
    score = scorer.score(prepare_night(recordings[0]))
    content = summary(score, prepare_night(recordings[0]))
    assert set(content["ahi_by_definition"]) == {"ahi_3_percent", "ahi_3_percent_or_arousal", "ahi_4_percent"}
    # No model of arousals was there.
    assert content["ahi_by_definition"]["ahi_3_percent_or_arousal"] is None and content["arousal_index"] is None
    assert content["oximetry"]["hours"] > 0 and 50 < content["oximetry"]["nadir"] <= 100
    if np.isfinite(score.ahi):
        assert score.ahi_by_definition["ahi_4_percent"] <= score.ahi_by_definition["ahi_3_percent"] <= score.ahi + 1e-9


@pytest.fixture(scope="module")
def arousals(dataset, tmp_path_factory):
    """An event head for arousals on an untrained NeuroNet of EEG."""
    folder = tmp_path_factory.mktemp("eeg")
    torch.manual_seed(0)
    model = build_model(read_yaml(config_root() / "models" / "neuronet-tiny.yaml")["model"] | {"channels": ["EEG_C3", "EEG_C4"]})
    write_package(folder, model, {"model": model_config(model)}, "card")
    return made(dataset, Resolved(str(folder), folder), tmp_path_factory.mktemp("arousal"), "arousal", "cache=null")


def test_arousals_are_learnt_from_the_eeg(dataset, arousals):
    assert arousals.module.channels == arousals.module.evidence == ("EEG_C3", "EEG_C4")
    losses = losses_of(arousals, steps=12)
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:2])


def test_with_a_model_of_arousals_their_index_and_the_ahi_by_rule_1a_are_known(arousals, scorer, recordings):
    low = {"event_threshold": 0.01}
    models = [*scorer.models.values(), entry_of(arousals)]
    models = [replace(entry, usage=entry.usage.model_copy(update=low)) if entry.usage.located else entry for entry in models]
    night = prepare_night(recordings[0])
    score = Scorer(models).score(night)
    asleep = score.stages > 0
    found = [event for event in score.events if event.type == "arousal"]
    seen = [event for event in found if asleep[int(event.onset // 30) : int(-(-(event.onset + event.duration) // 30))].any()]
    assert seen and score.arousal_index == pytest.approx(len(seen) / (asleep.sum() * 30 / 3600))
    content = summary(score, night)
    assert content["arousal_index"] == pytest.approx(score.arousal_index)
    definitions = content["ahi_by_definition"]
    assert definitions["ahi_4_percent"] <= definitions["ahi_3_percent"] <= definitions["ahi_3_percent_or_arousal"]
    for name in arousals.module.channels:
        del night.channels[name]
    # Nobody has looked for arousals without the EEG.
    content = summary(Scorer(models).score(night), night)
    assert content["arousal_index"] is content["ahi_by_definition"]["ahi_3_percent_or_arousal"] is None


def test_labels_of_what_is_not_assessed_are_not_learnt(dataset, stage):
    batch = stage.stream.batch(0, 4)
    hidden = replace(batch, present=torch.zeros_like(batch.present))
    with torch.no_grad():
        assert stage.loss(stage.module.eval(), hidden, 0).loss == 0
    row = int(dataset.select("label")[0])
    assert epochs_with_any(dataset, ShardReader(dataset), row, ()).all()


def test_a_slow_pass_gives_the_same_seconds(dataset, scorer):
    name = dataset.names[int(dataset.select("test")[0])]
    model = scorer.models["apnea"].model
    found = apply_to_epochs(model, stored_epochs(dataset, name, BREATHING, 11), 7)
    (signals, present), *_ = stored_epochs(dataset, name, BREATHING, 64)
    with torch.no_grad():
        logits = model(signals[None, :7], present[None, :7])[1][0, :3]
    want = logits[..., :2].softmax(-1)[..., 1].reshape(-1)
    np.testing.assert_allclose(found.seconds[:90], want.numpy(), atol=1e-4)
    assert found.kinds.shape == (30 * 30, 3) and np.allclose(found.kinds.sum(1), 1)


def test_events_and_the_ahi_have_figures_for_a_subset_of_the_modalities(dataset, scorer, located_eeg_only):
    entry = located_eeg_only.models["apnea"]
    (found,) = modality_subsets(entry, dataset, "test", [("EEG", "ECG")])
    alone = predict(entry.model, dataset, "test", window=7, modalities=["EEG", "ECG"])
    want = EventResult.of(dataset, "apnea", alone, entry.usage.event_threshold)
    assert found.event_result.located and found.event_result.to_dict() == want.to_dict()
    assert {"f1_iou_0.2", "f1_iou_0.5"} <= want.metrics.keys() and want.index.name == "apnea_index"
    # Models of different modalities together.
    models = scorer.models
    predictions = {task: predict_subsets(models[task], dataset, "test", [("EEG",)]) for task in ("stage",)}
    predictions |= {task: predict_subsets(models[task], dataset, "test") for task in ("apnea", "hypopnea")}
    both, without = ahi_subsets(models, dataset, predictions, [("EEG", "RESP"), ("EEG",)], resamples=20)
    events = {task: predictions[task][("RESP",)] for task in ("apnea", "hypopnea")}
    want = ahi_agreement(dataset, predictions["stage"][("EEG",)], events, dict.fromkeys(events, 0.3), resamples=20)
    assert both.missing == "" and plain(both.ahi.to_dict()) == plain(want.to_dict())
    assert without.ahi is None and "the model of apnea takes none of them (RESP)" in without.missing
    assert len(ahi_subsets({"apnea": models["apnea"]}, dataset, predictions)) == 1


def test_amplitudes_are_those_of_each_frame():
    grid = FrameGrid.of(NeuroNetConfig().frame_times)
    generator = torch.Generator().manual_seed(0)
    signals = torch.randn(2, 2, 3000, generator=generator) * torch.tensor([0.5, 2.0])[None, :, None]
    signals[:, 1] = 92.0
    present = torch.tensor([[True, True], [True, False]])
    found = frame_amplitudes(signals, present, ("AIRFLOW", "SPO2"), ("SPO2", "AIRFLOW", "THORAX"), grid)
    assert found.shape == (2, 27, 6)
    rms = signals[1, 0, 500:900].square().mean().sqrt().log()
    assert found[1, 5, 2] == pytest.approx(rms.item(), abs=1e-5) and found[1, 5, 3] == 1
    assert found[0, 5, :2].tolist() == [-1, 1] and found[1, 5, :2].tolist() == [0, 0] and not found[..., 4:].any()
    assert frame_amplitudes(0 * signals, present, ("AIRFLOW", "SPO2"), ("AIRFLOW",), grid)[0, 0, 0] == pytest.approx(np.log(1e-3))


def test_what_does_not_fit_is_refused(dataset, source, tmp_path):
    with pytest.raises(ConfigError, match="cache: only a frozen encoder can be computed once"):
        made(dataset, source, tmp_path, "apnea", "tune.mode=lora")
    with pytest.raises(ModelError, match=r"events\.amplitudes: SPO2: not among the encoder's channels AIRFLOW"):
        made(dataset, source, tmp_path, "apnea", "events.amplitudes=[SPO2]")
    with pytest.raises(ConfigError, match="different types of events"):
        made(dataset, source, tmp_path, "apnea", "events.kinds=[snore, apnea]")
