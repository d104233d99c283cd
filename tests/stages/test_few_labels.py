"""Learning with few labels: draws of people and epochs, grids of linear heads, learning curves."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from made_nights import make_dataset, make_night
from torch import nn

from sleepfm.config import load_config
from sleepfm.data.mixture import Mixture
from sleepfm.data.reader import ShardReader
from sleepfm.data.record_labels import RecordLabels
from sleepfm.errors import ConfigError, TrainingError
from sleepfm.evaluation.agreement import kappa
from sleepfm.evaluation.metrics import evaluate
from sleepfm.evaluation.prediction_figures import validation_figures
from sleepfm.paths import config_root
from sleepfm.registry.registry import Resolved
from sleepfm.stages import linear_probes
from sleepfm.stages.classification_loss import classification_loss
from sleepfm.stages.downstream_config import FinetuneConfig, LabelledData, ProbeConfig
from sleepfm.stages.finetune import FinetuneStage
from sleepfm.stages.label_curve import draws, read_curve
from sleepfm.stages.label_draw import LabelDraw, count_of, nested_order
from sleepfm.stages.linear_grid import Tried, best_of, predictions_of, train_heads
from sleepfm.stages.probe import ProbeStage
from sleepfm.stages.run_results import read_results, run_result
from sleepfm.tasks import TASKS
from sleepfm.training.folder import RunFolder
from sleepfm.training.ranks.shared_work import ALONE
from sleepfm.training.run_config import decisive_settings
from sleepfm.training.schedule import learning_rate, parameter_groups

GRID = ("head={kind: linear}", "train.clip=0", "grid={lr: [0.03, 0.0001], weight_decay: [0.0, 0.1]}")


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """Twenty-four people of 8 epochs, every other with a second night."""
    made = []
    for number in range(24):
        for visit in range(1 + number % 2):
            made.append(make_night(f"p{number}-{visit}", 8, ["EEG_C4", "ECG"], subject=f"person{number}", seed=visit))
    overrides = ("split.pretrain=0.1", "split.label=0.4", "split.val=0.3", "split.test=0.2")
    return make_dataset(tmp_path_factory.mktemp("few") / "set", made, 8, overrides)


@pytest.fixture(scope="module")
def mixture(nights):
    return Mixture.of(nights)


@pytest.fixture
def source(encoder_package):
    return Resolved(str(encoder_package), encoder_package)


def cache_of(nights):
    """One for all tests: each night is embedded once."""
    return nights.path.parent / "cache"


def probe(nights, tmp_path, *overrides, name="probe-stage-tiny"):
    fixed = [f"data.path={nights.path}", f"train.output={tmp_path / 'run'}", f"cache={cache_of(nights)}", "train.steps=20"]
    fixed += [
        "train.global_batch=32",
        "train.checkpoint_every=20",
        "train.validate_every=10",
        "deepspeed.dtype=fp32",
        "evaluate.resamples=20",
    ]
    return load_config(ProbeConfig, config_root() / "downstream" / f"{name}.yaml", [*fixed, *overrides])


def data(nights, fraction, seed=0, draw="people"):
    return LabelledData(path=str(nights.path), label_fraction=fraction, label_seed=seed, label_draw=draw)


def people_of(nights, split):
    return {row.subject for row in nights.records if row.split == split}


def labelled(nights, draw, split):
    """Epochs of which a label is left, by recording and number."""
    labels = draw.labels(nights)
    rows = nights.select(split).tolist()
    return {(row, epoch) for row in rows for epoch in np.flatnonzero(labels.of(row)["stage"] >= 0).tolist()}


def test_an_order_of_people_brings_every_class_early_and_depends_on_keys_alone():
    rng = np.random.default_rng(0)
    keys = [f"person{number}" for number in range(60)]
    counts = rng.poisson(20, (60, 4)) * np.array([1, 1, 1, 0])
    counts[17, 3], counts[41, 3] = 5, 3
    seen, distances, by_chance = set(), [], []
    shares = counts.sum(0) / counts.sum()
    for seed in range(30):
        order = nested_order(keys, counts, seed)
        assert sorted(order) == list(range(60)) and (counts[order[:1]].sum(0) > 0).all()
        shuffled = rng.permutation(60)
        again = nested_order([keys[n] for n in shuffled], counts[shuffled], seed)
        assert [keys[n] for n in order] == [keys[shuffled[n]] for n in again]
        seen.add(tuple(order[1:4]))
        for found, chosen in ((distances, order[1:6]), (by_chance, rng.choice(60, 5, replace=False))):
            part = counts[chosen].sum(0)
            found.append(np.abs(part / part.sum() - shares).sum())
    assert len(seen) > 25, "another seed draws other people"
    assert np.mean(distances) < np.mean(by_chance)


@pytest.mark.parametrize("seed", [0, 1])
def test_people_are_drawn_with_all_their_nights_nested_and_val_in_proportion(nights, mixture, seed):
    before = {"label": set(), "val": set()}
    for fraction in (0.01, 0.3, 0.6, 1.0):
        draw = LabelDraw(mixture, "stage", data(nights, fraction, seed))
        for split in before:
            found = labelled(nights, draw, split)
            people = {nights.subjects[row] for row, _ in found}
            assert before[split] <= found
            assert len(people) == count_of(fraction, len(people_of(nights, split)))
            # With all of their nights and labels.
            whole = labelled(nights, LabelDraw(mixture, "stage", data(nights, 1.0)), split)
            assert found == {(row, epoch) for row, epoch in whole if nights.subjects[row] in people}
            if fraction < 1:
                drawn = draw.drawn[split]
                assert (drawn.people, drawn.of_people, drawn.epochs) == (len(people), len(people_of(nights, split)), len(found))
            before[split] = found
        test = labelled(nights, draw, "test")
        assert fraction == 1 or not test
    other = LabelDraw(mixture, "stage", data(nights, 0.5, seed + 1))
    assert labelled(nights, other, "label") != labelled(nights, LabelDraw(mixture, "stage", data(nights, 0.5, seed)), "label")


def test_epochs_are_drawn_of_every_recording_as_before(nights, mixture):
    draw = LabelDraw(mixture, "stage", data(nights, 0.3, 3, "epochs"))
    row = int(nights.select("label")[0])
    expected = RecordLabels(nights, ShardReader(nights), ("stage",), "stage", 0.3, 3).of(row)["stage"]
    assert (draw.labels(nights).of(row)["stage"] == expected).all()
    assert {nights.subjects[row] for row, _ in labelled(nights, draw, "val")} == people_of(nights, "val")
    assert draw.drawn["val"].epochs == len(labelled(nights, draw, "val"))
    # More labels are the fewer ones and others.
    fewer, more = (
        set(labelled(nights, LabelDraw(mixture, "stage", data(nights, part, 3, "epochs")), "label")) for part in (0.3, 0.6)
    )
    assert fewer < more


def test_a_class_without_a_label_is_said(tmp_path, capsys):
    """Of one person in twelve the whole is scored; the others have no REM."""
    made = [make_night(f"n{number}", 12, ["EEG_C4"]) for number in range(40)]
    for night in made[:38]:
        night.stage[night.stage > 1] = 0
    dataset = make_dataset(
        tmp_path / "set", made, 20, ("split.pretrain=0.05", "split.label=0.8", "split.val=0.1", "split.test=0.05")
    )
    draw = LabelDraw(Mixture.of(dataset), "apnea", data(dataset, 0.02))
    draw.warn_of_missing()
    told = capsys.readouterr().err
    for split, drawn in draw.drawn.items():
        assert (f"labels drawn of {split}" in told) == bool(drawn.missing)
        assert (f"classes without a label in {split}" in draw.facts()) == bool(drawn.missing)


def test_heads_that_learn_together_are_those_that_learn_alone(nights, source, tmp_path):
    config = probe(nights, tmp_path, "weighting=inverse", "train.warmup=3", *GRID)
    stage = ProbeStage(config.model_copy(update={"grid": None}), source, ALONE)
    start, pairs = stage.module.head.layers, config.tried()
    found = train_heads(stage.stream, "stage", pairs, start, config.train, 20, stage.weights, torch.device("cpu"))
    assert len(found) == len(pairs) == 4 and len({tuple(pair) for pair in pairs}) == 4
    for (rate, decay), head in zip(pairs, found, strict=True):
        alone = nn.Linear(start.in_features, start.out_features)
        alone.load_state_dict(start.state_dict())
        optimiser = torch.optim.AdamW(parameter_groups(alone, decay), lr=rate, betas=config.train.betas)
        own = config.train.model_copy(update={"lr": rate})
        for step in range(20):
            batch = stage.stream.batch(step * 32, 32)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(own, step, 20)
            optimiser.zero_grad()
            classification_loss(alone(batch.signals), batch.labels["stage"], stage.weights).loss.backward()
            optimiser.step()
        assert torch.allclose(head.weight, alone.weight, atol=1e-5) and torch.allclose(head.bias, alone.bias, atol=1e-5)
        assert not torch.allclose(head.weight, start.weight, atol=1e-5)


def test_the_pair_is_chosen_on_val_told_and_found_again(nights, source, tmp_path, monkeypatch):
    shutil.rmtree(cache_of(nights) / "grids", ignore_errors=True)
    stage = ProbeStage(probe(nights, tmp_path, *GRID), source, ALONE)
    assert [(each.lr, each.weight_decay) for each in stage.tried] == [(1e-4, 0.0), (1e-4, 0.1), (0.03, 0.0), (0.03, 0.1)]
    heads = stage._linear._heads(stage.stream)
    val = stage._linear.joined(stage.validation, stage.draw)
    figures = [validation_figures(stage.task, predictions_of(head, val))["val/kappa"] for head in heads]
    assert [each.figure for each in stage.tried] == pytest.approx(figures)
    best = stage.tried[int(np.argmax(figures))]
    assert stage.chosen == (best.lr, best.weight_decay)
    # What the engine trains with.
    assert stage.rate_of("head.layers.weight") * stage.config.train.lr == pytest.approx(best.lr)
    assert stage.weight_decay == best.weight_decay
    # The module says the same of val as the head does.
    stage.module.head.layers.load_state_dict(heads[int(np.argmax(figures))].state_dict())
    stage.module.eval()
    assert stage.validate(stage.module)["val/kappa"] == pytest.approx(max(figures))
    stage.export(stage.module, tmp_path)
    told = json.loads((tmp_path / "evaluation.json").read_text())["grid"]
    assert told["metric"] == "val/kappa" and [Tried.from_plain(each) for each in told["tried"]] == stage.tried
    facts, _ = read_results(tmp_path)
    assert "best of 4 pairs" in facts["learning rate, weight decay"]

    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(linear_probes, "train_heads", refuse)
    again = ProbeStage(probe(nights, tmp_path, *GRID), source, ALONE)
    assert again.tried == stage.tried and again.chosen == stage.chosen
    for changed in ("train.steps=21", "data.label_fraction=0.5", "weighting=inverse"):
        with pytest.raises(AssertionError, match="trained again"):
            ProbeStage(probe(nights, tmp_path, *GRID, changed), source, ALONE)


def test_the_best_pair_is_the_first_of_equals_and_never_an_undefined_one():
    nan = float("nan")
    assert best_of([Tried(1, 0, nan), Tried(2, 0, 0.1), Tried(3, 0, 0.1), Tried(4, 0, -0.5)]) == 1
    assert best_of([Tried(1, 0, nan), Tried(2, 0, nan)]) == 0


def test_a_learning_curve_is_what_probes_of_its_fractions_choose(nights, source, tmp_path):
    fixed = (*GRID, "evaluate.resamples=50", "curve={fractions: [0.2, 1.0], seeds: 2}")
    stage = ProbeStage(probe(nights, tmp_path, *fixed), source, ALONE)
    stage.module.eval()
    # As training from all labels leaves its head: no point may begin with what that has learnt.
    torch.nn.init.normal_(stage.module.head.layers.weight, std=3)
    stage.export(stage.module, tmp_path)
    curve = read_curve(RunFolder(tmp_path).label_curve)
    points = curve["points"]
    assert [(point["fraction"], point["seed"]) for point in points] == [(0.2, 0), (0.2, 1), (1.0, 0)]
    assert curve["test_people"] == len(people_of(nights, "test")) and curve["draw"] == "people"
    for point, asked in zip(points, draws(stage.config.data, stage.config.curve), strict=True):
        overrides = (f"data.label_fraction={point['fraction']}", f"data.label_seed={point['seed']}")
        alone = ProbeStage(probe(nights, tmp_path, *GRID, *overrides), source, ALONE)
        assert alone.chosen == (point["lr"], point["weight_decay"]) and alone.n_labelled == point["epochs"]
        draw = LabelDraw(alone.mixture, "stage", asked)
        assert point["people"] == len({nights.subjects[row] for row, _ in labelled(nights, draw, "label")})
        assert point["val_people"] == len({nights.subjects[row] for row, _ in labelled(nights, draw, "val")})
        heads = alone._linear._heads(alone.stream)
        number = alone.config.tried().index(alone.chosen)
        everything = LabelDraw(alone.mixture, "stage", stage.config.data)
        held = predictions_of(heads[number], alone._linear.joined(alone._nights("test"), everything))
        result = evaluate(TASKS["stage"], held.truth, held.probability, held.subject, n_boot=50)
        for name in ("kappa", "macro_f1"):
            metric = result.metrics[name]
            mine = (point[name], point[f"{name}_low"], point[f"{name}_high"])
            assert mine == pytest.approx((metric.value, metric.ci_low, metric.ci_high))
    few, whole = curve["summary"]
    values = [point["kappa"] for point in points if point["fraction"] == 0.2]
    assert few["kappa"] == pytest.approx(np.mean(values)) and few["seeds"] == 2 and whole["seeds"] == 1
    assert (few["lowest"], few["highest"]) == pytest.approx((min(values), max(values)))
    assert few["kappa_low"] <= few["kappa"] <= few["kappa_high"]
    assert list(run_result(tmp_path, "a model").label_curve) == points
    assert f"Label curve, mean kappa by share of labelled people: 20 %: {few['kappa']:.2f}, 100 %" in (
        (tmp_path / "evaluation.html").read_text()
    )
    (tmp_path / "label_curve.json").write_text("[]")
    with pytest.raises(TrainingError, match="not a learning curve"):
        read_curve(tmp_path / "label_curve.json")


def test_few_labels_select_by_few_and_are_compared_with_their_like(nights, source, tmp_path):
    whole = ProbeStage(probe(nights, tmp_path), source, ALONE)
    few = ProbeStage(probe(nights, tmp_path, "data.label_fraction=0.3"), source, ALONE)
    by_epoch = ProbeStage(probe(nights, tmp_path, "data.label_fraction=0.3", "data.label_draw=epochs"), source, ALONE)
    for stage in (whole, few, by_epoch):
        stage.module.eval()
        stage.export(stage.module, tmp_path)
        _, results = read_results(tmp_path)
        wanted = len(labelled(nights, stage.draw, "val") if stage.draw.drawn else labelled(nights, whole.draw, "val"))
        assert results["val"].n_epochs <= wanted and results["val"].n_epochs > 0.7 * wanted
        assert results["test"].n_epochs > 0.7 * sum(row.scored_epochs for row in nights.records if row.split == "test")
    assert whole.measure("val/kappa") == {}
    assert few.measure("val/kappa") == {"label_fraction": 0.3, "label_draw": "people", "label_seed": 0}
    assert few.measure("val/kappa") != by_epoch.measure("val/kappa")


def fine_tune(nights, folder, *asked):
    """Of stages, by short sequences of ``nights``, with what is ``asked`` for besides."""
    fixed = [f"data.path={nights.path}", f"train.output={folder / 'run'}", "sequence={length: 6, stride: 6}"]
    return load_config(FinetuneConfig, config_root() / "downstream" / "finetune-stage-tiny.yaml", [*fixed, *asked])


def shown(stage, batches):
    """The signals, and what is present, that a model sees of each of ``batches``."""
    signals, present = [], []

    def model(heard, there, valid):
        signals.append(heard), present.append(there)
        return torch.zeros(*there.shape[:2], 5, requires_grad=True)

    for batch in batches:
        stage.loss(model, batch, 0)
    return signals, present


def test_a_fine_tune_learns_from_the_people_who_are_drawn(nights, source, tmp_path):
    stage = FinetuneStage(fine_tune(nights, tmp_path, "data.label_fraction=0.3"), source)
    drawn = {nights.names[row] for row, _ in labelled(nights, stage.draw, "label")}
    assert set(stage.stream.batch(0, 2 * len(stage.stream)).record) <= drawn
    assert stage.n_labelled == len(labelled(nights, stage.draw, "label")) == stage.draw.drawn["label"].epochs
    assert stage.measure("val/kappa")["label_draw"] == "people"


def test_a_fine_tune_varies_recordings_by_the_item(nights, source, tmp_path):
    stage = FinetuneStage(fine_tune(nights, tmp_path, "modality_dropout=0.6", "gain=2"), source)
    assert FinetuneStage(fine_tune(nights, tmp_path), source).stream.batch(0, 1).noise is None
    whole = stage.stream.batch(0, 24)
    scaled, seen = shown(stage, [whole, *(stage.stream.batch(place, 1) for place in range(24))])
    for found in (seen, scaled):
        assert torch.equal(found[0], torch.cat(found[1:])), "the same for an item in every batch"
    heard = whole.signals.abs().amax(-1) > 0
    factors = (scaled[0].abs().amax(-1) / whole.signals.abs().amax(-1))[heard]
    assert 0.5 <= factors.min() < 0.6 and 1.7 < factors.max() <= 2
    one = (scaled[0] / whole.signals)[0, :, 0][whole.signals[0, :, 0] != 0]
    torch.testing.assert_close(one, one[:1].expand_as(one), rtol=1e-4, atol=0)
    eeg = [name.startswith("EEG") for name in stage.module.channels]
    assert torch.equal(seen[0][..., eeg], whole.present[..., eeg])
    assert 0.2 < seen[0][..., [not own for own in eeg]].float().mean() / whole.present.float().mean() < 0.7
    with pytest.raises(ConfigError, match="band_powers: a cache holds none; remove cache or band_powers"):
        fine_tune(nights, tmp_path, "band_powers.channels=[EEG_C4]", "tune={mode: frozen}", "cache=x")
    reason = "modality_dropout, channel_dropout, gain, filter_db: what a cache holds cannot be changed"
    with pytest.raises(ConfigError, match=reason):
        fine_tune(nights, tmp_path, "modality_dropout=0.6", "tune={mode: frozen}", "cache=x")


def test_a_fine_tune_hears_one_channel_of_a_modality_through_another_filter(nights, source, tmp_path):
    stage = FinetuneStage(fine_tune(nights, tmp_path, "channel_dropout=1", "filter_db=6"), source)
    whole = stage.stream.batch(0, 8)
    heard, seen = shown(stage, [whole])
    eeg = [name.startswith("EEG") for name in stage.module.channels]
    assert torch.equal(seen[0][..., eeg].sum(-1), whole.present[..., eeg].any(-1).long())
    spectrum, before = (torch.fft.rfft(signals).abs() for signals in (heard[0], whole.signals))
    power, former = (x[..., 15:].square().sum(-1) for x in (spectrum, before))
    ratio = 10 * (power / former)[former > 0].log10()
    assert ratio.abs().max() <= 6.01
    assert ratio.std() > 1


@pytest.mark.slow
def test_a_frozen_encoder_is_passed_once_and_gives_what_it_gives_in_every_step(nights, source, tmp_path):
    """Context and head on kept embeddings: losses and predictions are those of a frozen encoder that computes in every step."""
    fixed = [
        f"data.path={nights.path}",
        f"train.output={tmp_path / 'run'}",
        "sequence={length: 6, stride: 6}",
        "tune={mode: frozen}",
    ]
    file = config_root() / "downstream" / "finetune-stage-tiny.yaml"
    direct = FinetuneStage(load_config(FinetuneConfig, file, fixed), source)
    kept = FinetuneStage(load_config(FinetuneConfig, file, [*fixed, f"cache={cache_of(nights)}"]), source)
    assert kept.n_labelled == direct.n_labelled
    # The same windows in another order; those without a usable channel have a substitute where signals are read.
    by_window = {}
    for name, stage in (("direct", direct), ("kept", kept)):
        stage.module.eval()
        found = {}
        # The encoder takes its time in every step of the first.
        for start in range(8 if name == "direct" else len(stage.stream)):
            batch = stage.stream.batch(start, 1)
            found[batch.record[0], int(batch.first_epoch[0])] = stage.loss(stage.module, batch, 0).loss.item()
        by_window[name] = found
    common = by_window["direct"].keys() & by_window["kept"].keys()
    assert len(common) > 0.8 * len(by_window["direct"])
    for window in common:
        assert by_window["kept"][window] == pytest.approx(by_window["direct"][window], abs=1e-5)
    left, right = (stage._predict(stage.module, "val", ALONE) for stage in (direct, kept))
    assert np.allclose(left.probability, right.probability, atol=1e-5, equal_nan=True)
    with pytest.raises(ConfigError, match=r"cache: only a frozen encoder can be computed once"):
        load_config(FinetuneConfig, file, [*fixed, "cache=x", "tune.mode=lora"])


def test_layers_of_an_encoder_learn_at_falling_rates(nights, source, tmp_path):
    fixed = [f"data.path={nights.path}", f"train.output={tmp_path / 'run'}", "sequence={length: 6, stride: 6}"]
    file = config_root() / "downstream" / "finetune-stage-tiny.yaml"
    stage = FinetuneStage(load_config(FinetuneConfig, file, [*fixed, "layer_decay=0.5", "tune={mode: full}"]), source)
    rate = stage.rate_of
    assert rate("head.layers.0.weight") == rate("context.0.weight") == 1
    # Two blocks above, two in each NeuroNet.
    assert [rate(f"encoder.blocks.{number}.mlp.fc1.weight") for number in (1, 0)] == [0.5, 0.25]
    assert rate("encoder.norm.weight") == 0.5 and rate("encoder.adapters.ECG.0.weight") == rate("encoder.modality_token") == 0.125
    below = "encoder.backbones.encoders.EEG"
    assert [rate(f"{below}.blocks.{number}.attn.qkv.weight") for number in (1, 0)] == [0.0625, 0.03125]
    assert rate(f"{below}.norm.weight") == 0.0625
    assert rate(f"{below}.frame_backbone.stem.0.weight") == rate(f"{below}.patch_embed.weight") == 0.015625
    groups = parameter_groups(stage.module, 0.1, rate)
    assert {group["lr_factor"] for group in groups} == {0.5**power for power in range(7)}
    count = sum(len(group["params"]) for group in groups)
    assert count == sum(parameter.requires_grad for parameter in stage.module.parameters())
    with pytest.raises(ConfigError, match="layer_decay: a frozen encoder has no layer that learns"):
        load_config(FinetuneConfig, file, [*fixed, "layer_decay=0.5", "tune.mode=frozen"])


def test_what_is_new_is_absent_from_the_settings_of_runs_without_it(nights, tmp_path):
    """Runs that began before there were grids, draws and patience go on."""
    settings = decisive_settings(probe(nights, tmp_path, "data.label_draw=people"))
    assert (
        not {"grid", "curve"} & settings.keys() and "label_draw" not in settings["data"] and "patience" not in settings["train"]
    )
    drawn = decisive_settings(probe(nights, tmp_path, "data.label_fraction=0.5", *GRID, "train.patience=3"))
    assert drawn["data"]["label_draw"] == "people" and drawn["grid"] and drawn["train"]["patience"] == 3


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("grid={lr: [0.1], weight_decay: [0]}", "train.clip=0"), "set head.kind=linear"),
        ((*GRID, "train.clip=1"), "set train.clip=0"),
        ((*GRID, "curve={}", "data.label_fraction=0.5"), "leave data.label_fraction at 1"),
        (("train.patience=2", "train.validate_every=0"), "train.validate_every is needed"),
        (("head={kind: linear}", "train.clip=0", "grid={lr: [0.0], weight_decay: [0]}"), "greater than 0"),
    ],
)
def test_what_contradicts_itself_is_refused(nights, tmp_path, overrides, reason):
    with pytest.raises(ConfigError, match=reason):
        probe(nights, tmp_path, *overrides)


def test_kappa_of_summed_confusions_is_that_of_their_epochs():
    rng = np.random.default_rng(1)
    parts = rng.integers(0, 9, (5, 3, 3)).astype(float)
    assert kappa(np.tensordot(np.ones((1, 5)), parts, axes=1))[0] == pytest.approx(kappa(parts.sum(0)))
