"""Runs and configurations of earlier versions, whose settings had other names, still load and go on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sleepfm.config import load_config
from sleepfm.errors import ConfigError
from sleepfm.stages.pretrain import PretrainConfig
from sleepfm.training.folder import RunFolder
from sleepfm.training.run_config import config_digest

# Both were written by the version before `data.lanes` became `data.partitions` and `essence` became `settings`.
STORED = Path(__file__).parent / "stored"
CONFIG, RECORD = STORED / "config-with-former-names.yaml", STORED / "run-with-former-names.json"
DIGEST = "7fdcf69386a0af3de237f3c0833da47b26bf3e5ca3fd06159776f25b130c6561"


def test_a_configuration_with_former_names_loads_and_keeps_its_digest() -> None:
    config = load_config(PretrainConfig, CONFIG)
    assert config.data.partitions == 2 and config.reading().block == 32
    assert config_digest(config) == DIGEST
    assert load_config(PretrainConfig, CONFIG, ["data.lanes=4"]).data.partitions == 4
    with pytest.raises(ConfigError, match=r"unknown key 'data\.lanes'"):
        load_config(PretrainConfig, CONFIG, ["data.partitions=4"])


def test_a_run_recorded_under_former_names_goes_on(tmp_path: Path) -> None:
    shutil.copy(RECORD, tmp_path / "run.json")
    folder = RunFolder(tmp_path)
    config = load_config(PretrainConfig, CONFIG, [f"train.output={tmp_path}"])
    assert folder.check(config, "a" * 64, "auto") is None
    assert folder.sources() == {"models:/x@champion": "models:/x/3"}
    other = load_config(PretrainConfig, CONFIG, [f"train.output={tmp_path}", "data.lanes=1"])
    with pytest.raises(ConfigError, match=r"another configuration: data\.partitions \(2 -> 1\)"):
        folder.check(other, "a" * 64, "auto")
    folder.begin(config, "a" * 64, {})
    assert (tmp_path / "run.json").read_bytes() == RECORD.read_bytes()
    folder.clear()
    assert not list(tmp_path.iterdir())
