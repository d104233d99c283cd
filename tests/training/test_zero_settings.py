"""DeepSpeed's settings of a run: buckets whose reduction overlaps with the backward pass, and the same losses without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launching import launch, trace

from sleepfm.training.feed import Shares
from sleepfm.training.run_config import DeepSpeedConfig, RegistryConfig, RunConfig, TrainConfig
from sleepfm.training.zero import bucket_bytes, deepspeed_config, trained_sizes, zero_settings

MILLION = 1_000_000


def test_a_bucket_is_an_eighth_of_what_trains_and_holds_every_parameter() -> None:
    options = DeepSpeedConfig(zero=1)
    assert zero_settings(options, [10 * MILLION] * 8) == {
        "stage": 1,
        "overlap_comm": True,
        "reduce_bucket_size": 10 * MILLION,
    }
    # One parameter larger than that; a model so small that a collective's latency would count more.
    assert zero_settings(options, [30 * MILLION, MILLION])["reduce_bucket_size"] == 30 * MILLION
    assert zero_settings(options, [100, 200])["reduce_bucket_size"] == 2_500_000
    assert zero_settings(DeepSpeedConfig(zero=0), [100, 200]) == {"stage": 0}
    stated = DeepSpeedConfig(zero=2, extra={"zero_optimization": {"reduce_bucket_size": 10, "overlap_comm": False}})
    assert zero_settings(stated, [100]) == {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 10}


def test_what_deepspeed_sets_aside_follows_its_settings() -> None:
    sizes = [10 * MILLION] * 8
    assert bucket_bytes(DeepSpeedConfig(zero=0), sizes) == 0
    assert bucket_bytes(DeepSpeedConfig(zero=1), sizes) == 2 * 4 * 10 * MILLION
    # One pair for matrices, whose gradients travel in bf16, and one for the rest.
    assert bucket_bytes(DeepSpeedConfig(zero=2, reduce_dtype="bf16"), sizes) == 2 * 2 * 4 * 10 * MILLION
    small = {"zero_optimization": {"reduce_bucket_size": 10}}
    assert bucket_bytes(DeepSpeedConfig(zero=2, extra=small), sizes) == 80
    whole = {"zero_optimization": {"reduce_bucket_size": 10, "overlap_comm": False}}
    assert bucket_bytes(DeepSpeedConfig(zero=2, extra=whole), sizes) == 40
    elsewhere = {"zero_optimization": {"contiguous_gradients": False}}
    assert bucket_bytes(DeepSpeedConfig(zero=2, extra=elsewhere), sizes) == 0


def test_what_the_engine_does_itself_is_not_done_by_deepspeed() -> None:
    train = TrainConfig(output="", steps=1, lr=0.1, clip=0.5, global_batch=8)
    config = RunConfig(train=train, registry=RegistryConfig(name="x", metric="val/x"), deepspeed=DeepSpeedConfig(zero=1))
    settings = deepspeed_config(config, Shares(8, 1, 8), [100], from_universal=False)
    assert settings["gradient_clipping"] == 0 and settings["timers"] == {"throughput": {"enabled": False}}
    assert settings["optimizer"]["params"]["fused"] is True


@pytest.mark.slow
@pytest.mark.parametrize("zero", [1, 2])
def test_losses_are_the_same_whether_reductions_overlap_and_in_whatever_buckets(tmp_path: Path, zero: int) -> None:
    """A sum over two ranks does not depend on what it is sent with."""
    # Of the second, some parameters fit and some are reduced by themselves.
    variants: dict[str, dict[str, int]] = {"run": {}, "small": {"reduce_bucket_size": 20}, "alone": {"overlap_comm": False}}
    for run, settings in variants.items():
        extra = "deepspeed.extra=" + json.dumps({"zero_optimization": settings})
        done = launch(tmp_path, 2, f"deepspeed.zero={zero}", extra, f"train.output={run}", node=True)
        assert done.returncode == 0, done.stderr
        assert trace(tmp_path, run) == trace(tmp_path)


def test_parameters_that_do_not_train_need_no_bucket() -> None:
    from torch import nn

    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
    module[0].requires_grad_(False)
    assert trained_sizes(module) == [8]
