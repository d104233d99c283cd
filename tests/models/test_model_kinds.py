"""A kind of model is one entry of a table."""

from __future__ import annotations

from typing import Literal

import pytest
from torch import nn

from sleepfm.config import Config
from sleepfm.errors import ConfigError
from sleepfm.models.build import KINDS, Kind, build_model, model_config


class StackConfig(Config):
    kind: Literal["stack"] = "stack"
    encoder: dict[str, object] = {}
    width: int = 3


class Stack(nn.Module):
    def __init__(self, config: StackConfig, encoder: nn.Module) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder


def test_an_entry_is_all_that_a_kind_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = {"kind": "neuronet", "channels": ["ECG"], "encoder": {"dim": 64, "depth": 1, "heads": 4}}
    config = {"kind": "stack", "encoder": inner, "width": 5}
    with pytest.raises(ConfigError, match="unknown model kind 'stack'; known: neuronet, synthsleepnet, context, downstream"):
        build_model(config)
    monkeypatch.setitem(KINDS, "stack", Kind(StackConfig, Stack, on_encoder=True))
    model = build_model(config)
    assert isinstance(model, Stack) and type(model.encoder) is KINDS["neuronet"].model
    assert model_config(model) == config
    with pytest.raises(ConfigError, match=r"model: unknown key 'widht'; did you mean 'width'"):
        build_model(config | {"widht": 5})
    with pytest.raises(ConfigError, match=r"model\.encoder: unknown key 'chanels'"):
        build_model(config | {"encoder": inner | {"chanels": []}})
    with pytest.raises(ConfigError, match="Linear is not a model of this package"):
        model_config(nn.Linear(2, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_an_entry_stands_under_the_kind_that_its_configuration_says(kind: str) -> None:
    assert KINDS[kind].config.model_fields["kind"].default == kind
