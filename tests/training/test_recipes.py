"""The shipped configurations for 8, 64 and 512 GPUs: they pass their checks, follow their rules, and are what the manual says."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path

import pytest

from sleepfm.config import load_config, read_yaml
from sleepfm.models.build import build_model
from sleepfm.paths import config_root
from sleepfm.stages.downstream_config import FinetuneConfig
from sleepfm.stages.pretrain import PretrainConfig
from sleepfm.training.feed import Shares
from sleepfm.training.preflight.configuration import faults_of_plan
from sleepfm.training.ranks.distributed import World
from sleepfm.training.run_config import RunConfig
from sleepfm.training.tracking.step_time import COMPILED

ROOT = Path(__file__).parents[2]
SIZES = {8: (8,), 64: (64,), 512: (512, 1024)}
PRETRAINED = ("eeg", "eog", "emg", "ecg", "multimodal", "resp", "psg", "context")
FINETUNED = [f"finetune-{task}" for task in ("stage", "apnea", "hypopnea")]
EVENT_HEADS = [f"events-{task}" for task in ("apnea", "hypopnea", "arousal")]
NAMES = [f"pretrain/{name}" for name in PRETRAINED] + [f"downstream/{name}" for name in FINETUNED + EVENT_HEADS]


def load(name: str, suffix: str) -> RunConfig:
    schema: type[RunConfig] = PretrainConfig if name.startswith("pretrain") else FinetuneConfig
    return load_config(schema, config_root() / f"{name}-{suffix}.yaml")


@pytest.mark.parametrize("gpus", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_passes_its_checks_at_its_size_and_follows_the_rules(name: str, gpus: int) -> None:
    base, recipe = load(name, "base"), load(name, f"{gpus}gpu")
    for processes in SIZES[gpus]:
        world = World(0, processes, 0, 8)
        assert faults_of_plan(recipe, world) == []
        assert Shares.of(recipe.train, world).micro_batch * recipe.rows_per_item() >= 2
    train = recipe.train
    factor = train.global_batch / base.train.global_batch
    assert train.lr == pytest.approx(base.train.lr * math.sqrt(factor), rel=0.01)
    assert factor == 1 or train.warmup >= 100
    assert recipe.deepspeed.zero == 1
    # All else is the base's.
    assert (train.passes, train.weight_decay, train.clip) == (base.train.passes, base.train.weight_decay, base.train.clip)
    assert recipe.registry == base.registry and train.output == base.train.output
    if isinstance(base, FinetuneConfig) and isinstance(recipe, FinetuneConfig):
        assert (recipe.task, recipe.events, recipe.cache, recipe.encoder) == (base.task, base.events, base.cache, base.encoder)


def test_the_base_configuration_is_refused_where_recipes_are_for() -> None:
    assert faults_of_plan(load("pretrain/eeg", "base"), World(0, 1024, 0, 8))
    assert faults_of_plan(load("pretrain/eeg", "base"), World(0, 256, 0, 8))


def test_the_manual_has_the_table_of_the_configurations() -> None:
    names = runpy.run_path(str(ROOT / "benchmarks" / "scaling.py"))
    rows = names["recipe_rows"]()
    assert len(rows) == 12
    text = (ROOT / "docs" / "scaling.md").read_text()
    for row in rows:
        assert row in text, row


def test_the_recipe_of_the_paper_has_the_hours_of_the_model() -> None:
    rows = runpy.run_path(str(ROOT / "benchmarks" / "scaling.py"))["paper_rows"]()
    text = (ROOT / "docs" / "paper.md").read_text()
    assert len(rows) == 8
    for row in rows:
        assert row in text, row


def test_the_parameters_that_the_model_of_scaling_counts_are_those_of_the_model() -> None:
    counted = runpy.run_path(str(ROOT / "benchmarks" / "scaling.py"))["NEURONET"]
    module = build_model(read_yaml(config_root() / "models" / "neuronet-base.yaml")["model"])
    assert counted.trained == sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def test_the_work_that_the_model_of_scaling_counts_is_that_of_the_roofline() -> None:
    names = runpy.run_path(str(ROOT / "benchmarks" / "scaling.py"))
    measured = json.loads(max((ROOT / "benchmarks" / "results").glob("roofline-*.json")).read_text(encoding="utf-8"))
    for counted, model in ((names["NEURONET"], "NeuroNet"), (names["SYNTHSLEEPNET"], "SynthSleepNet")):
        step = measured["steps"][model]
        traffic = counted.traffic.of(measured["items"])
        assert traffic.flops == pytest.approx(1e9 * measured["items"] * step["eager"]["gflop_an_item"], rel=0.005), model
        assert traffic.product_bytes == pytest.approx(step["eager"]["product_bytes"], rel=0.01), model
        # The roofline counts that the optimiser reads weights, gradients and moments; each counts some copies that the other's
        # processor does not make.
        others = step["eager"]["other_bytes"] - step["eager"]["largest"].get("_fused_adamw_", 0)
        assert traffic.other_bytes == pytest.approx(others, rel=0.04), model
        share = step["compiled"]["other_bytes"] / step["eager"]["other_bytes"]
        assert share == pytest.approx(COMPILED, abs=0.03), model
