"""On which device a process trains."""

from __future__ import annotations

import pytest
import torch

from sleepfm.errors import ConfigError
from sleepfm.training.ranks.distributed import World


@pytest.mark.parametrize(
    ("asked", "gpu", "expected"),
    [
        (None, False, "cpu"),
        (None, True, "cuda"),
        ("cpu", True, "cpu"),
        ("cpu", False, "cpu"),
        ("cuda", True, "cuda"),
        ("", True, "cuda"),
    ],
)
def test_the_device_is_what_deepspeed_is_told(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, gpu: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    if asked is not None:
        monkeypatch.setenv("DS_ACCELERATOR", asked)
    assert World(3, 4, 1, 2).device.type == expected


@pytest.mark.parametrize("asked", ["cuda", "xpu"])
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("DS_ACCELERATOR", asked)
    with pytest.raises(ConfigError, match=asked):
        _ = World(0, 1, 0, 1).device
