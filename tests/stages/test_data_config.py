"""How the data of a job is read, from its configuration."""

from __future__ import annotations

import os

import pytest

from sleepfm.config import load_config
from sleepfm.errors import ConfigError
from sleepfm.paths import config_root
from sleepfm.stages import data_config
from sleepfm.stages.pretrain import PretrainConfig
from sleepfm.training.run_config import config_digest


def pretraining(*overrides: str) -> PretrainConfig:
    return load_config(PretrainConfig, config_root() / "pretrain" / "eeg-tiny.yaml", ["data.path=set", *overrides])


@pytest.mark.parametrize(
    ("device", "cores", "ranks", "asked", "expected"),
    [
        ("cpu", 64, 1, "auto", 0),
        ("cpu", 64, 1, "3", 3),
        ("cuda", 128, 8, "auto", 4),
        ("cuda", 48, 8, "auto", 3),
        ("cuda", 8, 8, "auto", 1),
        ("cuda", 4, 8, "auto", 1),
        ("cuda", 128, 8, "0", 0),
        ("cuda", 128, 8, "9", 9),
    ],
)
def test_processes_that_read_are_as_many_as_asked_for_or_as_a_gpu_can_use(
    monkeypatch: pytest.MonkeyPatch, device: str, cores: int, ranks: int, asked: str, expected: int
) -> None:
    monkeypatch.setattr(data_config, "accelerator", lambda: device)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setenv("LOCAL_SIZE", str(ranks))
    assert pretraining(f"data.workers={asked}").reading().workers == expected


def test_they_are_no_part_of_what_a_run_learns() -> None:
    assert (
        len({config_digest(pretraining("deepspeed.dtype=fp32", f"data.workers={number}")) for number in ("0", "4", "auto")}) == 1
    )
    for wrong in ("-1", "many"):
        with pytest.raises(ConfigError, match=r"data\.workers"):
            pretraining(f"data.workers={wrong}")
