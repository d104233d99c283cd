"""``train.compile``: what it takes, what it decides, and that it belongs to the device and not to the run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sleepfm.config import load_config
from sleepfm.errors import ConfigError
from sleepfm.models.frame_encoder import FrameEncoder, FrameEncoderConfig
from sleepfm.models.recompute import is_unit
from sleepfm.stages.pretrain import PretrainConfig
from sleepfm.training import compilation
from sleepfm.training.compilation import compile_module
from sleepfm.training.ranks.batch_norm import synchronise
from sleepfm.training.run_config import config_digest, decisive_settings

CONFIG = Path(__file__).parents[2] / "configs" / "pretrain" / "eeg-tiny.yaml"
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def config(*overrides: str) -> PretrainConfig:
    return load_config(PretrainConfig, CONFIG, list(overrides))


def encoder() -> nn.Module:
    return FrameEncoder(FrameEncoderConfig(stem=4, channels=(4,), strides=(1,), kernels=(3,), pools=(2,), feature=8), 120)


def compiled_units(module: nn.Module) -> list[str]:
    return [type(part).__name__ for part in module.modules() if is_unit(part) and vars(part).get("_is_compiled")]


@pytest.mark.parametrize(
    ("given", "taken"),
    [("on", "on"), ("off", "off"), ("auto", "auto"), ("true", "on"), ("false", "off"), ("yes", "on"), ('"off"', "off")],
)
def test_what_yaml_makes_of_on_and_off_is_understood(given: str, taken: str) -> None:
    assert config(f"train.compile={given}").train.compile == taken


@pytest.mark.parametrize("given", ["sometimes", "1", "null"])
def test_anything_else_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.compile"):
        config(f"train.compile={given}")


def test_the_default_leaves_digests_of_earlier_runs_as_they_are() -> None:
    assert config().train.compile == "auto"
    kept = "deepspeed.dtype=fp32"
    assert decisive_settings(config(kept))["train"]["compile"] is False
    digest = config_digest(config(kept))
    assert digest == config_digest(config(kept, "train.compile=off")) != config_digest(config(kept, "train.compile=on"))


def test_it_goes_with_recomputing() -> None:
    assert config("train.compile=on", "train.recompute=true").train.recompute


@pytest.mark.parametrize(
    ("asked", "device", "lacking", "units"),
    [
        ("auto", CPU, "", []),
        ("off", CPU, "", []),
        ("on", CPU, "", ["Stem", "ResidualBlock"]),
        ("auto", CUDA, "", ["Stem", "ResidualBlock"]),
        ("off", CUDA, "", []),
    ],
)
def test_it_decides_by_the_device(
    monkeypatch: pytest.MonkeyPatch, asked: Any, device: torch.device, lacking: str, units: list[str]
) -> None:
    monkeypatch.setattr(compilation, "lacking", lambda _: lacking)
    module = encoder()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compile_module(module, asked, device) == len(units)
    assert compiled_units(module) == units


def test_what_the_compiler_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"train\.compile: on, but there is no compiler \(CXX=no-such-compiler\)"):
        compile_module(encoder(), "on", CPU)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"there is none of g\+\+, clang\+\+ on the path"):
        compile_module(encoder(), "on", CPU)
    # This build of torch has no Triton.
    with pytest.warns(UserWarning, match="not compiled and therefore slower: there is no Triton"):
        assert compile_module(encoder(), "auto", CUDA) == 0


def test_units_that_exchange_statistics_are_left_out() -> None:
    module = nn.ModuleList([encoder(), nn.Module()])
    module[1].add_module("encoder", encoder())
    synchronise(module[1])
    assert compile_module(module, "on", CPU) == 2
    assert compiled_units(module[0]) == ["Stem", "ResidualBlock"] and compiled_units(module[1]) == []
