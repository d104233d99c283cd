"""How the data of a job is read, from its configuration."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sleepfm.config import load_config
from sleepfm.errors import ConfigError, DatasetError
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


def sources(text: str, *overrides: str) -> PretrainConfig:
    return pretraining("data.path=null", f"data.sources={text}", *overrides)


def test_several_data_sets_and_their_shares_are_stated_in_one_way() -> None:
    found = sources("[{path: a, weight: 2}, {path: s3://b/c, weight: 1, name: c}]").data
    assert [(plan.path, plan.weight) for plan in found.plans()] == [("a", 2), ("s3://b/c", 1)]
    assert [plan.path for plan in pretraining().data.plans()] == ["set"]
    assert sources("[{path: a, epochs: 0.5}]").data.plans()[0].epochs == 0.5
    assert sources("[{path: a}, {path: b}]", "data.temperature=3").data.temperature == 3
    for text, said in (
        ("[{path: a, weight: 1}, {path: b}]", "give weight for every source, or epochs for every source, or neither"),
        ("[{path: a, weight: 1}, {path: b, epochs: 1}]", "give weight for every source"),
        ("[{path: a, weight: 1, epochs: 1}]", "give weight for every source"),
        ("[{path: a, weight: 0}, {path: b, weight: 1}]", "greater than 0"),
        ("[{path: a, weigth: 1}]", r"did you mean .*weight"),
        ("[{path: a, name: x/y}]", "letters, digits"),
        ("[]", "data.path: missing"),
    ):
        with pytest.raises(ConfigError, match=said):
            sources(text)
    with pytest.raises(ConfigError, match="shares are already given by weight or epochs"):
        sources("[{path: a, weight: 1}]", "data.temperature=2")
    with pytest.raises(ConfigError, match=r"set only one of them; data\.path=null"):
        pretraining("data.sources=[{path: a}]")


def test_sources_are_known_by_their_digests_and_not_by_the_settings_of_a_run() -> None:
    one = config_digest(pretraining("deepspeed.dtype=fp32"))
    assert one == config_digest(sources("[{path: a, weight: 2}, {path: b, weight: 1}]", "deepspeed.dtype=fp32"))


def test_a_data_set_that_is_none_is_told_with_the_key_that_names_it(tmp_path: Path) -> None:
    found = pretraining(f"data.path={tmp_path / 'none'}")
    with pytest.raises(DatasetError) as caught:
        data_config.dataset_digest(found)
    assert str(caught.value) == (
        f"{tmp_path / 'none'}: no dataset.json here; not a data set; make one with `sleepfm build SRC OUT`; this is data.path of "
        "the configuration; data.path=FOLDER names another data set"
    )
    with pytest.raises(DatasetError, match=r"2 of 2 sources cannot be read: .*; see data\.sources of the configuration$"):
        data_config.dataset_digest(sources(f"[{{path: {tmp_path}/a}}, {{path: {tmp_path}/b}}]"))
