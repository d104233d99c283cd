"""The model of scaling: its parts against draws and counts, and what the manual promises of the shipped recipes."""

from __future__ import annotations

import random
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sleepfm.config import load_config
from sleepfm.errors import ConfigError
from sleepfm.models import negatives
from sleepfm.paths import config_root
from sleepfm.stages.pretrain import PretrainConfig
from sleepfm.training.tracking.devices import NAMED
from sleepfm.training.tracking.run_time import Conditions, expected_maximum, run_seconds
from sleepfm.training.tracking.step_time import Contrast, Work, step_seconds, work_of
from sleepfm.training.tracking.traffic import StepTraffic, Traffic

H100 = NAMED[1]


@pytest.fixture(scope="module")
def scaling() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "scaling.py"))


@pytest.mark.parametrize("count", [1, 8, 256])
def test_the_slowest_of_many_ranks_is_as_slow_as_draws_say(count: int) -> None:
    drawn = np.random.default_rng(count).normal(size=(20_000, count)).max(1).mean()
    assert expected_maximum(count) == pytest.approx(drawn, abs=0.02)


def test_faults_cost_what_a_run_with_drawn_faults_loses() -> None:
    step, steps, every, restart = 0.5, 20_000, 2_000, 300.0
    # One fault in an hour, of a run of nearly three.
    met = Conditions(0.0, 0.0, save_every=every, gpu_mtbf_h=8.0, restart_s=restart, start_s=0.0, end_s=0.0)
    modelled = run_seconds(step, steps, 8, met)
    draws, lost = random.Random(3), []
    for _ in range(400):
        now, done, saved = 0.0, 0, 0
        fault = draws.expovariate(1 / 3600)
        while done < steps:
            until_save = (min(saved + every, steps) - done) * step
            if now + until_save <= fault:
                now, done = now + until_save, min(saved + every, steps)
                saved = done
                continue
            now, done = fault + restart, saved
            # None comes while it restarts.
            fault = now + draws.expovariate(1 / 3600)
        lost.append(now - steps * step)
    assert modelled["restarts"] == pytest.approx(np.mean(lost), rel=0.15)
    assert modelled["all"] == pytest.approx(steps * step + modelled["restarts"])


def test_the_causes_of_a_run_add_up() -> None:
    met = Conditions(validation_s=2, validate_every=100, save_s=1, save_every=50)
    run = run_seconds(0.1, 1000, 64, met)
    causes = ("step", "data", "validation", "saves", "restarts", "start", "end")
    assert run["all"] == pytest.approx(sum(run[cause] for cause in causes))
    assert run["validation"] == 20 and run["saves"] == 20
    assert run["stragglers"] == pytest.approx(100 * 0.01 * expected_maximum(64))
    assert run["goodput"] == run["step"] / run["all"]


def test_a_loss_costs_its_products_its_passes_and_its_bytes() -> None:
    without = step_seconds(Work(Traffic(1e12), 1e6, 0), 64, H100)
    contrast = Contrast(pairs=32, width=512, losses=4, ranks=8)
    found = step_seconds(Work(Traffic(1e12), 1e6, 0, contrast=contrast), 64, H100)
    similarities = 64 * 64 * 8
    arithmetic = 4 * (4 * similarities * 512 / (0.5 * 989e12) + 96 * similarities / (0.7 * 3.35e12))
    assert found["loss"] == pytest.approx(arithmetic)
    assert contrast.sent_bytes == 4 * negatives.sent_bytes(32, 512, 8, bf16=True)
    assert found["exchange"] == pytest.approx(contrast.sent_bytes / (0.7 * 450e9))
    assert found["step"] == pytest.approx(without["step"] + found["loss"] + found["exchange"])


def test_the_work_of_a_configuration_is_that_of_its_model() -> None:
    def contrast(name: str, *more: str) -> Contrast | None:
        config = load_config(PretrainConfig, config_root() / "pretrain" / f"{name}.yaml", more)
        return work_of(config, 64, StepTraffic(Traffic(), Traffic(1e9)), 1e6).contrast

    assert contrast("eeg-64gpu") == Contrast(128, 512, 1, 64)
    assert contrast("eeg-64gpu", "model.negatives=node", "train.accumulation=2") == Contrast(64, 512, 2, 8)
    assert contrast("multimodal-64gpu", "model.negatives={group: 16}") == Contrast(128, 256, 4, 16, sets=4)
    assert contrast("context-64gpu") is None
    with pytest.raises(ConfigError, match="groups of 24 ranks"):
        contrast("eeg-64gpu", "model.negatives={group: 24}")


def test_recipes_for_many_gpus_keep_them_busy(scaling: dict[str, Any]) -> None:
    """Nine tenths of what a GPU alone does, with loss, links, stragglers, data, validations, saves and faults counted."""
    for name in ("pretrain/eeg", "pretrain/multimodal"):
        run = scaling["modelled"](name, "512gpu", 1024, H100, scaling["MANY_NIGHTS"])
        assert run["efficiency"] >= 0.9, (name, run)
    # Context is too small for that, as the manual says.
    assert scaling["modelled"]("pretrain/context", "512gpu", 1024, H100, 5000)["efficiency"] < 0.9
    exchanged = scaling["exchanges"]()
    assert exchanged["before"]["gigabytes"] > 3 and exchanged["node"]["gigabytes"] < exchanged["{group: 512}"]["gigabytes"] < 0.3


@pytest.mark.parametrize(
    ("name", "nights"), [("pretrain/eeg", 5000), pytest.param("pretrain/multimodal", 500, marks=pytest.mark.slow)]
)
def test_at_the_shipped_cadence_a_base_run_is_in_its_steps(
    scaling: dict[str, Any], tmp_path: Path, name: str, nights: int
) -> None:
    found = scaling["simulate"](name, nights, tmp_path)
    assert found["share"] >= 0.95, found
