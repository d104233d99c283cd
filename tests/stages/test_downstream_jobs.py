"""The probe and the fine-tune as stages, without the launcher (which tests/training has)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from sleepfm.config import load_config, read_yaml
from sleepfm.data.reader import ShardReader
from sleepfm.data.scored_events import scored_events
from sleepfm.errors import ConfigError, ModelError
from sleepfm.evaluation.event_results import EventResult
from sleepfm.evaluation.events import EventAgreement, events_from_seconds, match_events, positive_runs
from sleepfm.evaluation.prediction_figures import evaluate_predictions
from sleepfm.inference.embed import embed, stored_epochs
from sleepfm.inference.predict import predict
from sleepfm.inference.scorer import Scorer, prepare_night
from sleepfm.inference.subsets import modality_subsets
from sleepfm.models.band_powers import BandPowersConfig
from sleepfm.models.build import build_model, model_config
from sleepfm.models.context import ContextConfig
from sleepfm.models.downstream import Downstream
from sleepfm.models.masked_context import MaskedContext, MaskedContextConfig
from sleepfm.models.usage import LabelRule
from sleepfm.paths import config_root
from sleepfm.registry.package import write_package
from sleepfm.registry.registry import Resolved, load, load_package
from sleepfm.stages.classification_loss import class_weights, classification_loss
from sleepfm.stages.downstream_config import FinetuneConfig, ProbeConfig
from sleepfm.stages.embedding_cache import EmbeddingCache
from sleepfm.stages.finetune import FinetuneStage
from sleepfm.stages.probe import ProbeStage
from sleepfm.stages.run_results import read_event_results, read_events, read_groups, read_results, tells_seconds
from sleepfm.tasks import TASKS
from sleepfm.training.ranks.shared_work import ALONE


def job(schema, name, dataset, tmp_path, *overrides):
    fixed = [f"data.path={dataset.path}", f"train.output={tmp_path}"]
    if schema is ProbeConfig:
        fixed.append(f"cache={tmp_path / 'cache'}")
    return load_config(schema, config_root() / "downstream" / f"{name}.yaml", [*fixed, *overrides])


@pytest.fixture
def source(encoder_package):
    return Resolved(str(encoder_package), encoder_package)


def steps(stage, number, batch, rate=3e-3):
    stage.module.train()
    optimiser = torch.optim.AdamW([p for p in stage.module.parameters() if p.requires_grad], lr=rate)
    losses = []
    for step in range(number):
        torch.manual_seed(step)
        result = stage.loss(stage.module, stage.stream.batch(step * batch, batch), 0)
        optimiser.zero_grad()
        result.loss.backward()
        optimiser.step()
        losses.append(result.loss.item())
    stage.module.eval()
    return losses


def exported(stage, tmp_path):
    export = stage.export(stage.module, tmp_path)
    folder = tmp_path / "package"
    write_package(folder, stage.module, export.config, export.card)
    return export, folder


def members(recordings, names):
    """Grouping -> group -> those of the recordings in ``names`` that are in it, by the table of the cohort alone."""
    (path,) = recordings[0].parents[3].glob("datasets/*.csv")
    found = {"age": {}, "sex": {}, "ahi": {}}
    for row in pd.read_csv(path).itertuples():
        if (name := f"shhs1-{row.nsrrid}") in names:
            age = next(group for end, group in ((60, "40 to below 60"), (80, "60 to below 80")) if 40 <= row.age_s1 < end)
            bands = ((5, "below 5"), (15, "5 to below 15"), (30, "15 to below 30"), (999, "30 and above"))
            ahi = next(group for end, group in bands if row.ahi_a0h3a < end)
            sex = {1: "male", 2: "female"}[row.gender]
            for grouping, group in (("age", age), ("sex", sex), ("ahi", ahi)):
                found[grouping].setdefault(group, set()).add(name)
    return found


def assert_groups_of_both_splits(folder, recordings, figure):
    """The figures of groups of people that a job left in ``folder`` are those of the recordings of these people."""
    by_split = read_groups(folder)
    assert list(by_split) == ["val", "test"]
    card, page = (folder / "package" / "MODEL_CARD.md").read_text(), (folder / "evaluation.html").read_text()
    for split, by_group in by_split.items():
        rows = pd.read_parquet(folder / f"predictions-{split}.parquet")
        expected = members(recordings, set(rows["record"]))
        assert {grouping: set(part) for grouping, part in by_group.items()} == {g: set(part) for g, part in expected.items()}
        for grouping, part in by_group.items():
            for group, result in part.items():
                own = rows[rows["record"].isin(expected[grouping][group]) & (rows["truth"] >= 0)]
                assert (result.n_epochs, result.n_subjects) == (len(own), own["subject"].nunique())
                assert f"| {group} |" in card and f"<td>{group}</td>" in page
        assert f"{split}: {figure}" in card and f"People, {split}" in page


def test_probe_learns_and_its_package_repeats_its_test_predictions(dataset, recordings, source, tmp_path):
    stage = ProbeStage(job(ProbeConfig, "probe-stage-tiny", dataset, tmp_path), source, ALONE)
    before = {k: v.clone() for k, v in stage.module.encoder.state_dict().items()}
    losses = steps(stage, 60, 64)
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:3])
    assert all(torch.equal(v, before[k]) for k, v in stage.module.encoder.state_dict().items())
    figures = stage.validate(stage.module)
    assert 0 <= figures["val/accuracy"] <= 1 and "val/kappa" in figures
    stage.export(stage.module, tmp_path, final=False)
    assert not (tmp_path / "evaluation.html").exists()
    export, folder = exported(stage, tmp_path)
    assert export.metrics["val/accuracy"] == pytest.approx(figures["val/accuracy"])
    usage = load(folder).usage
    assert export.config["usage"]["task"] == usage.task == "stage" and usage.threshold is None and usage.label_rule is None
    written = pd.read_parquet(tmp_path / "predictions-test.parquet")
    again = predict(load(folder), dataset, "test", window=1)
    assert list(again.record) == list(written["record"]) and list(again.truth) == list(written["truth"])
    assert np.allclose(again.probability, written[[f"p{k}" for k in range(5)]], atol=1e-5)
    facts, results = read_results(tmp_path)
    assert facts["labelled epochs"] == len(stage.stream)
    assert results["test"].n_subjects == len(set(written["subject"]))
    page = (tmp_path / "evaluation.html").read_text()
    assert f"sleepfm-stage on test: {results['test'].n_epochs} epochs" in page and "Reliability curve of" in page
    assert f"{results['test'].metrics['kappa'].value:.3f}" in page and "Label curve" not in page
    assert f"Test people seen before: {facts['test people seen before']}." in page
    # What is tracked are the figures of both splits that are defined.
    defined = {
        f"{split}/{name}": metric.value
        for split, result in results.items()
        for name, metric in result.metrics.items()
        if not np.isnan(metric.value)
    }
    assert export.metrics == pytest.approx(defined) and "test/accuracy" in defined
    assert "majority_accuracy" in (folder / "MODEL_CARD.md").read_text()
    assert_groups_of_both_splits(tmp_path, recordings, "kappa")


def test_event_probe_stores_the_threshold_that_val_chose(dataset, recordings, source, tmp_path):
    overrides = ("weighting=inverse",)
    stage = ProbeStage(job(ProbeConfig, "probe-hypopnea-tiny", dataset, tmp_path, *overrides), source, ALONE)
    steps(stage, 10, 64)
    _, folder = exported(stage, tmp_path)
    usage = load(folder).usage
    _, results = read_results(tmp_path)
    assert usage.threshold == results["val"].threshold == results["test"].threshold
    assert usage.threshold_rule and usage.window == 1 and not usage.located
    assert usage.label_rule == LabelRule(name=dataset.config["event_rule"], version=dataset.config["event_rule_version"])
    written = pd.read_parquet(tmp_path / "predictions-test.parquet")
    assert list(read_events(tmp_path)) == ["val", "test"]
    total, counts = EventAgreement(0, 0, 0), {}
    for record, rows in written.groupby("record"):
        night = prepare_night(next(p for p in recordings if p.stem == record))
        found = positive_runs(rows["p1"], usage.threshold, "hypopnea")
        counts[record] = match_events(found, [e for e in night.events if e.type == "hypopnea"])
        total += counts[record]
    assert read_events(tmp_path)["test"] == total and not tells_seconds(tmp_path)
    assert_groups_of_both_splits(tmp_path, recordings, "auroc")
    by_group = read_event_results(tmp_path)["test"].by_group
    assert by_group == {
        grouping: {group: sum((counts[name] for name in names), EventAgreement(0, 0, 0)) for group, names in part.items()}
        for grouping, part in members(recordings, counts).items()
    }
    card, page = (folder / "MODEL_CARD.md").read_text(), (tmp_path / "evaluation.html").read_text()
    assert "test: F1 of positive runs (matched, missed, false)" in card and "F1 of positive runs, val" in page
    for agreement in by_group["sex"].values():
        assert f"({agreement.matched}, {agreement.missed}, {agreement.false})" in card
        assert f"({agreement.matched}, {agreement.missed}, {agreement.false})" in page


def test_stream_order_is_a_permutation_of_each_pass(dataset, source, tmp_path):
    stage = ProbeStage(job(ProbeConfig, "probe-stage-tiny", dataset, tmp_path), source, ALONE)
    size = len(stage.stream)
    batch = stage.stream.batch(0, 2 * size)
    # One embedding an item, which is there and counts.
    assert batch.signals.shape[:2] == batch.present.shape == batch.valid.shape == (2 * size, 1)
    assert batch.present.all() and batch.valid.all()
    seen = list(zip(batch.record, batch.first_epoch.tolist(), strict=True))
    assert len(set(seen[:size])) == size and sorted(seen[:size]) == sorted(seen[size:]) and seen[:size] != seen[size:]
    part = stage.stream.batch(size - 5, 10)
    assert torch.equal(part.signals, batch.signals[size - 5 : size + 5])
    assert torch.equal(part.labels["stage"], batch.labels["stage"][size - 5 : size + 5])


def test_label_fraction_is_obeyed_and_counted(dataset, source, tmp_path):
    sizes = []
    for fraction in (1.0, 0.25):
        drawn = (f"data.label_fraction={fraction}", "data.label_draw=epochs")
        config = job(ProbeConfig, "probe-stage-tiny", dataset, tmp_path, *drawn)
        sizes.append(len(ProbeStage(config, source, ALONE).stream))
    rows = dataset.select("label")
    assert sizes[0] == sum(dataset.records[row].scored_epochs for row in rows)
    assert 0.2 * sizes[0] < sizes[1] < 0.35 * sizes[0]
    config = job(FinetuneConfig, "finetune-stage-tiny", dataset, tmp_path, *drawn)
    assert FinetuneStage(config, source).n_labelled == sizes[1]


def test_embeddings_are_kept_checked_and_made_again(dataset, encoder_package, tmp_path):
    package = load_package(encoder_package)
    sha = package.config["weights"]["sha256"]

    def cache():
        return EmbeddingCache(tmp_path, dataset, package.module, sha)

    first = cache().split("val")
    # A stored tensor is a view of its file, which this test writes into.
    name, embedding = next((name, stored.clone()) for name, stored in first.items())
    want = embed(package.module, stored_epochs(dataset, name, package.module.channels, 13))
    assert torch.allclose(embedding, want, atol=1e-5)
    file = next(tmp_path.glob(f"*/{name}.safetensors"))
    stamp = file.stat().st_mtime_ns
    assert torch.equal(cache().split("val")[name], embedding) and file.stat().st_mtime_ns == stamp
    damaged = bytearray(file.read_bytes())
    damaged[-3] ^= 255
    file.write_bytes(damaged)
    assert torch.equal(cache().split("val")[name], embedding)
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(cache().split("val")[name], embedding)
    assert not list(tmp_path.glob("*/.*"))
    other = EmbeddingCache(tmp_path, dataset, package.module, "0" * 64)
    assert other.folder != cache().folder


def test_embeddings_are_kept_under_all_that_decides_them(dataset, tmp_path, monkeypatch):
    """The number of attention heads is in no weight, and changes every embedding."""
    plan = read_yaml(config_root() / "models" / "synthsleepnet-tiny.yaml")["model"]
    torch.manual_seed(0)
    four = build_model(plan).eval()
    two = build_model(plan | {"encoder": plan["encoder"] | {"heads": 2}}).eval()
    two.load_state_dict(four.state_dict())
    name = dataset.names[0]
    found = [EmbeddingCache(tmp_path, dataset, encoder, "0" * 64).get(name) for encoder in (four, two)]
    want = [embed(encoder, stored_epochs(dataset, name, encoder.channels, 64)) for encoder in (four, two)]
    assert not torch.allclose(want[0], want[1])
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
    folder = EmbeddingCache(tmp_path, dataset, four, "0" * 64).folder
    assert EmbeddingCache(tmp_path, dataset, four.double(), "0" * 64).folder != folder
    four.float()
    assert EmbeddingCache(tmp_path, dataset, four, "0" * 64).folder == folder
    monkeypatch.setattr("sleepfm.stages.embedding_cache.code_digest", lambda: "another version of the code")
    assert EmbeddingCache(tmp_path, dataset, four, "0" * 64).folder != folder


def test_models_of_equal_weights_and_other_configuration_do_not_share_embeddings(downstream_packages, recordings):
    """Two heads score one night; the encoder of one has half the heads in its attention."""
    stage, apnea = (Scorer.load([downstream_packages[task]]).models[task] for task in ("stage", "apnea"))
    plan = apnea.model.config.encoder
    other = plan | {"encoder": plan["encoder"] | {"heads": 2}}
    config = apnea.model.config.model_copy(update={"encoder": other})
    changed = Downstream(config, build_model(other)).eval()
    changed.load_state_dict(apnea.model.state_dict())
    night = prepare_night(recordings[0])
    alone = Scorer([replace(apnea, model=changed)]).score(night).probability["apnea"]
    assert np.array_equal(Scorer([stage, replace(apnea, model=changed)]).score(night).probability["apnea"], alone)
    assert not np.array_equal(Scorer([apnea]).score(night).probability["apnea"], alone)


def test_finetune_learns_and_its_package_repeats_its_test_predictions(dataset, recordings, source, tmp_path):
    config = job(FinetuneConfig, "finetune-stage-tiny", dataset, tmp_path, "sequence.length=10")
    stage = FinetuneStage(config, source)
    backbone = {k: v.clone() for k, v in stage.module.encoder.state_dict().items() if "lora" not in k}
    losses = steps(stage, 10, 4)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    after = stage.module.encoder.state_dict()
    frozen = [k for k in backbone if torch.equal(after[k], backbone[k])]
    assert len(frozen) == len(backbone)
    assert 0 <= stage.validate(stage.module)["val/accuracy"] <= 1
    _, folder = exported(stage, tmp_path)
    written = pd.read_parquet(tmp_path / "predictions-test.parquet")
    again = predict(load(folder), dataset, "test", window=load(folder).usage.window)
    assert np.allclose(again.probability, written[[f"p{k}" for k in range(5)]], atol=1e-5)
    assert not written.duplicated(["record", "epoch"]).any()
    epochs = {row.record: row.n_epochs for row in dataset.records if row.split == "test"}
    assert written.groupby("record").size().to_dict() == epochs
    # Numbered from 1, as in every file.
    assert written.groupby("record")["epoch"].apply(list).to_dict() == {name: [*range(1, n + 1)] for name, n in epochs.items()}
    assert_groups_of_both_splits(tmp_path, recordings, "kappa")


def test_fewer_modalities_change_predictions_and_an_unknown_one_is_refused(dataset, downstream_packages):
    model = load(downstream_packages["stage"])
    whole = predict(model, dataset, "test", window=20)
    one = predict(model, dataset, "test", window=20, modalities=["EEG"])
    assert list(one.record) == list(whole.record) and not np.allclose(one.probability, whole.probability)
    with pytest.raises(ModelError, match="RESP"):
        predict(model, dataset, "test", window=20, modalities=["RESP"])


def test_subsets_are_evaluated_of_a_model_that_is_told_powers_of_bands(dataset, downstream_packages):
    entry = Scorer.load([downstream_packages["stage"]]).models["stage"]
    config = entry.model.config.model_copy(update={"band_powers": BandPowersConfig(channels=("EEG_C4",))})
    powered = replace(entry, model=Downstream(config, entry.model.encoder).eval())
    (found,) = modality_subsets(powered, dataset, "test", [("EEG",)])
    alone = predict(powered.model, dataset, "test", window=entry.usage.window, modalities=["EEG"])
    assert found.evaluation == evaluate_predictions(TASKS["stage"], alone, math.nan)


def test_every_subset_of_modalities_is_evaluated(dataset, downstream_packages):
    entry = Scorer.load([downstream_packages["apnea"]]).models["apnea"]
    results = modality_subsets(entry, dataset, "test")
    assert len({r.modalities for r in results}) == len(results) == 15
    assert results[0].modalities == ("EEG", "EOG", "EMG", "ECG")
    whole = predict(entry.model, dataset, "test", window=entry.usage.window)
    assert results[0].evaluation == evaluate_predictions(TASKS["apnea"], whole, entry.usage.threshold)
    assert {r.evaluation.n_epochs for r in results} == {results[0].evaluation.n_epochs}
    for result in results[2::5]:
        alone = predict(entry.model, dataset, "test", window=entry.usage.window, modalities=result.modalities)
        expected = evaluate_predictions(TASKS["apnea"], alone, entry.usage.threshold)
        runs = EventResult.of(dataset, "apnea", alone, entry.usage.threshold)
        pairs = [(result.evaluation, expected), (result.event_result, runs)]
        for own, other in pairs:
            for name, metric in own.metrics.items():
                assert metric.value == pytest.approx(other.metrics[name].value, abs=1e-6, nan_ok=True), name
        assert not result.event_result.located and result.event_result.index.n_nights == runs.index.n_nights
    with pytest.raises(ModelError, match="RESP"):
        modality_subsets(entry, dataset, "test", [("RESP",)])


def test_downstream_models_are_no_encoders_and_names_must_fit(dataset, downstream_packages, tmp_path):
    folder = downstream_packages["apnea"]
    with pytest.raises(ConfigError, match="downstream"):
        FinetuneStage(job(FinetuneConfig, "finetune-stage-tiny", dataset, tmp_path), Resolved(str(folder), folder))
    with pytest.raises(ConfigError, match="sleepfm-apnea"):
        job(ProbeConfig, "probe-stage-tiny", dataset, tmp_path, "task=apnea", "registry.name=sleepfm-stage")
    # Unless it is stated, the name follows from the task.
    assert job(ProbeConfig, "probe-stage-tiny", dataset, tmp_path, "task=apnea").registry.name == "sleepfm-apnea"


def test_loss_is_a_mean_that_ranks_can_average():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4, 3), torch.randint(-1, 3, (6, 4))
    weights = torch.tensor([0.5, 1.0, 2.0])
    whole = classification_loss(logits, labels, weights).loss
    parts = [classification_loss(logits[i : i + 2], labels[i : i + 2], weights).loss for i in (0, 2, 4)]
    assert whole == pytest.approx(sum(parts) / 3)
    slow = 0.0
    for i in range(6):
        for j in range(4):
            if labels[i, j] >= 0:
                slow -= weights[labels[i, j]] * logits[i, j].log_softmax(0)[labels[i, j]]
    assert whole == pytest.approx(slow / 24)
    assert torch.isfinite(classification_loss(logits, torch.full((6, 4), -1), weights).loss)


def test_inverse_weights_give_every_class_the_same_total():
    labels = torch.tensor([0] * 90 + [1] * 10 + [-1] * 7)
    weights = class_weights(labels, 3, "inverse")
    assert weights[0] * 90 == pytest.approx(float(weights[1]) * 10) and weights[2] == 1
    assert (weights[0] * 90 + weights[1] * 10) / 100 == pytest.approx(1)
    half = class_weights(labels, 3, "inverse-root")
    assert half[1] / half[0] == pytest.approx(3) and half[2] == 1
    assert (half[0] * 90 + half[1] * 10) / 100 == pytest.approx(1)
    assert torch.equal(class_weights(labels, 3, "none"), torch.ones(3))


def context_package(encoder, tmp_path, **changes):
    """An untrained masked context over ``encoder``, in a package."""
    torch.manual_seed(5)
    config = MaskedContextConfig(context=ContextConfig(**{"bidirectional": True, **changes}), length=20)
    module = MaskedContext(config, encoder)
    folder = tmp_path / "context"
    write_package(folder, module, {"model": model_config(module)}, "card")
    return module, Resolved(str(folder), folder)


def test_finetune_starts_from_a_pretrained_context_or_refuses(dataset, encoder_package, tmp_path):
    module, source = context_package(load(encoder_package), tmp_path)
    same = ("context.bidirectional=true", "sequence.length=10")
    stage = FinetuneStage(job(FinetuneConfig, "finetune-stage-tiny", dataset, tmp_path, *same), source)
    held = module.context.state_dict()
    assert held.keys() == stage.module.context.state_dict().keys()
    assert all(torch.equal(value, held[name]) for name, value in stage.module.context.state_dict().items())
    assert stage.module.encoder.channels == module.channels
    with pytest.raises(ConfigError, match=r"bidirectional True \(this job: False\)"):
        FinetuneStage(job(FinetuneConfig, "finetune-stage-tiny", dataset, tmp_path), source)
    with pytest.raises(ConfigError, match=r"kind mamba \(this job: none\)"):
        ProbeStage(job(ProbeConfig, "probe-stage-tiny", dataset, tmp_path), source, ALONE)


def test_a_whole_night_in_one_sequence_is_padded_without_effect(dataset, source, tmp_path):
    config = job(FinetuneConfig, "finetune-stage-tiny", dataset, tmp_path, "sequence.length=70", "tune.mode=frozen")
    stage = FinetuneStage(config, source)
    batch = stage.stream.batch(0, 1)
    count = int(batch.valid.sum())
    assert batch.signals.shape[1] == 70 and count == 30
    stage.module.eval()
    with torch.no_grad():
        padded = stage.module(batch.signals, batch.present, batch.valid)
        alone = stage.module(batch.signals[:, :count], batch.present[:, :count])
    torch.testing.assert_close(padded[:, :count], alone, atol=1e-5, rtol=1e-5)


def test_an_event_head_trains_scores_seconds_and_is_evaluated_by_events(dataset, recordings, source, tmp_path):
    overrides = ("sequence.length=10", "tune.mode=frozen", "weighting=inverse")
    stage = FinetuneStage(job(FinetuneConfig, "finetune-hypopnea-events-tiny", dataset, tmp_path, *overrides), source)
    losses = steps(stage, 12, 4)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    _, folder = exported(stage, tmp_path)
    usage = load(folder).usage
    assert usage.located and usage.window == 10
    written = pd.read_parquet(tmp_path / "predictions-test.parquet")
    assert {len(row) for row in written["seconds"]} == {30}
    total, scorer = EventAgreement(0, 0, 0), Scorer.load([folder])
    for record, rows in written.groupby("record"):
        night = prepare_night(next(p for p in recordings if p.stem == record))
        score = scorer.score(night)
        assert score.events == events_from_seconds(np.concatenate(rows["seconds"].to_list()), usage.event_threshold, "hypopnea")
        assert all(event.duration >= 10 for event in score.events)
        total += match_events(score.events, [e for e in night.events if e.type == "hypopnea"])
    assert read_events(tmp_path)["test"] == total and tells_seconds(tmp_path)


def test_seconds_of_a_batch_are_those_of_its_recordings(dataset, source, tmp_path):
    stage = FinetuneStage(job(FinetuneConfig, "finetune-apnea-events-tiny", dataset, tmp_path, "sequence.length=7"), source)
    batch = stage.stream.batch(0, 6)
    labels = batch.labels["apnea"]
    found = batch.labels["seconds"]
    reader = ShardReader(dataset)
    for row, (record, first) in enumerate(zip(batch.record, batch.first_epoch.tolist(), strict=True)):
        events = [e for e in scored_events(dataset, reader, dataset.index_of(record)) if e.type.endswith("apnea")]
        for second in range(7 * 30):
            middle = first * 30 + second + 0.5
            inside = any(e.onset <= middle < e.onset + e.duration for e in events)
            want = -1 if labels[row, second // 30] < 0 else int(inside)
            assert found[row, second] == want


def test_sleep_stages_have_no_event_head(dataset, tmp_path):
    with pytest.raises(ConfigError, match="no onset and duration"):
        job(FinetuneConfig, "finetune-stage-tiny", dataset, tmp_path, "events={hidden: 8}")
