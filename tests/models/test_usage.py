"""How a package says that its model is used: written and read by one class, also from packages of earlier versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sleepfm.config import read_yaml, validate
from sleepfm.errors import ConfigError, ModelError
from sleepfm.models.build import build_model, model_config
from sleepfm.models.context import ContextConfig
from sleepfm.models.downstream import Downstream, DownstreamConfig
from sleepfm.models.event_head import EventHeadConfig
from sleepfm.models.usage import LabelRule, Usage
from sleepfm.paths import config_root
from sleepfm.registry.load_test import load_test
from sleepfm.registry.package import write_package
from sleepfm.registry.registry import load

APNEA = ("none", "apnea")
EARLIER = {"task": "apnea", "window": 7, "threshold": 0.31, "threshold_rule": "max F1 on val", "event_threshold": 0.62}


def model(task: str = "apnea", classes: tuple[str, ...] = APNEA, events: bool = False) -> Downstream:
    torch.manual_seed(0)
    encoder = build_model(read_yaml(config_root() / "models" / "synthsleepnet-tiny.yaml")["model"])
    config = DownstreamConfig(
        task=task,
        classes=classes,
        encoder=model_config(encoder),
        context=ContextConfig(kind="none"),
        events=EventHeadConfig() if events else None,
    )
    return Downstream(config, encoder)


def loaded(folder: Path, module: Downstream, **content: Any) -> Usage:
    write_package(folder, module, {"model": model_config(module), "facts": {"encoder": "x"}} | content, "card")
    usage = load(folder).usage
    assert isinstance(usage, Usage)
    return usage


def test_a_package_gives_back_what_it_was_written_with(tmp_path: Path) -> None:
    usage = Usage(
        task="apnea", classes=APNEA, window=9, threshold=0.1 + 0.2, threshold_rule="max F1 on val", event_threshold=1e-5,
        resolution_s=1, label_rule=LabelRule(name="overlap", version=2),
    )  # fmt: skip
    assert usage.located and usage.detection_threshold == 1e-5
    assert loaded(tmp_path, model(events=True), **usage.to_package()) == usage


@pytest.mark.parametrize("events", [False, True])
def test_packages_of_earlier_versions_say_it_at_the_top(tmp_path: Path, events: bool) -> None:
    usage = loaded(tmp_path / "whole", model(events=events), **(EARLIER if events else EARLIER | {"event_threshold": None}))
    assert (usage.task, usage.classes, usage.window, usage.threshold) == ("apnea", APNEA, 7, 0.31)
    assert (usage.threshold_rule, usage.label_rule, usage.located) == ("max F1 on val", None, events)
    assert usage.detection_threshold == (0.62 if events else 0.31)
    # One that says nothing was scored like this, as were converted ones.
    nothing = loaded(tmp_path / "nothing", model(events=events))
    assert (nothing.window, nothing.threshold, nothing.detection_threshold) == (20, 0.5, 0.5)


@pytest.mark.parametrize("name", ["threshold", "event_threshold"])
@pytest.mark.parametrize("value", [-0.01, 1.01])
def test_a_threshold_that_is_no_probability_is_refused(name: str, value: float) -> None:
    probabilities = {"threshold": 0.0, "event_threshold": 1.0}
    assert validate(Usage, {"task": "apnea", "classes": APNEA, "window": 1, **probabilities}, "usage").threshold == 0.0
    with pytest.raises(ConfigError, match=name):
        validate(Usage, {"task": "apnea", "classes": APNEA, "window": 1, **probabilities, name: value}, "usage")


def test_sleep_stages_have_no_threshold(tmp_path: Path) -> None:
    stages = ("W", "N1", "N2", "N3", "REM")
    usage = loaded(tmp_path, model("stage", stages), task="stage", window=3, threshold=None, threshold_rule=None)
    assert usage.threshold is None and not usage.binary
    with pytest.raises(ModelError, match="stage finds no events"):
        _ = usage.detection_threshold


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (EARLIER | {"treshold": 0.5}, "unknown key 'treshold'"),
        ({"usage": EARLIER | {"classes": APNEA, "treshold": 0.5}}, "unknown key 'treshold'; did you mean 'threshold'"),
        ({"usage": EARLIER | {"classes": APNEA}, "window": 8}, "unknown key 'window'"),
        (EARLIER | {"window": 0}, "key 'window'"),
        (EARLIER | {"threshold": 1.5}, "key 'threshold'"),
        ({"usage": {"task": "apnea", "classes": APNEA, "window": 8}}, "has two classes and needs one"),
        (EARLIER | {"task": "hypopnea"}, "task hypopnea .the model: apnea"),
        ({"usage": EARLIER | {"classes": APNEA, "resolution_s": 1}}, "events to the second True .the model: False"),
    ],
)
def test_what_is_not_known_or_not_of_this_model_is_refused_by_name(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as error:
        loaded(tmp_path, model(), **_plain(content))
    assert str(tmp_path / "config.yaml") in str(error.value)
    # Nor does such a package pass the test before it is registered.
    with pytest.raises(ModelError, match=message):
        load_test(tmp_path)


def _plain(value: Any) -> Any:
    """As YAML holds it."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
