"""Every stage on a mixture of two data sets that have other channels: a step that waits for nothing, and figures by source."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from device_steps import build, take_step
from made_nights import EVERY_CHANNEL, make_dataset, make_night

from sleepfm.errors import DatasetError, EmptySplitError
from sleepfm.training.preflight.report import describe
from sleepfm.training.ranks.shared_work import ALONE

EVEN = [f"split.{name}=0.25" for name in ("pretrain", "label", "val", "test")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sets")
    for name, channels, number in (("whole", EVERY_CHANNEL, 12), ("sparse", ("EEG_C4", "ECG"), 12)):
        nights = [make_night(f"night{n}", 12 + n % 3, channels, subject=f"{name}{n}", seed=n) for n in range(number)]
        own = [*EVEN, f"segment_epochs={5 if name == 'sparse' else 60}"]
        splits = {row.split for row in make_dataset(folder / name, nights, per_shard=4, overrides=own).records}
        assert splits == {"pretrain", "label", "val", "test"}
    nights = [make_night(f"plain{n}", 9, ("EEG_C4",), seed=n, scored=False) for n in range(12)]
    make_dataset(folder / "unscored", nights, overrides=["split.pretrain=0.8", "split.label=0.2", "split.val=0", "split.test=0"])
    nights = [make_night(f"ruled{n}", 12, EVERY_CHANNEL, seed=n) for n in range(12)]
    make_dataset(folder / "ruled", nights, overrides=[*EVEN, "event_rule=reference"])
    return folder


def of(made: Path, *names: str) -> list[str]:
    return ["data.path=null", f"data.sources=[{', '.join(f'{{path: {made / name}}}' for name in names)}]"]


@pytest.mark.parametrize("kind", ["unimodal", pytest.param("multimodal", marks=pytest.mark.slow)])
def test_encoders_learn_from_a_mixture(made: Path, packages: Path, tmp_path: Path, kind: str) -> None:
    figures = take_step(kind, torch.device("cpu"), Path(), packages, tmp_path, of(made, "whole", "sparse"))
    assert all(math.isfinite(value) for value in figures.values())
    assert {"val/probe_kappa", "val/probe_kappa/whole", "val/probe_kappa/sparse"} <= figures.keys()


def test_who_has_nothing_to_validate_on_is_said_and_no_label_is_no_hindrance(made: Path, packages: Path, tmp_path: Path) -> None:
    stage = build("unimodal", Path(), packages, tmp_path, data=of(made, "whole", "unscored"))
    assert set(stage.stream.names) == {"whole", "unscored"} and stage.validation.names == ("whole",)
    stage.config = stage.config.model_copy(  # type: ignore[attr-defined]
        update={"deepspeed": stage.config.deepspeed.model_copy(update={"dtype": "fp32"})}  # type: ignore[attr-defined]
    )
    lines = [line for line in describe(stage.config, stage, ALONE.world, ALONE.world).splitlines() if line.startswith("data: ")]  # type: ignore[attr-defined]
    assert len(lines) == 2
    for line in lines:
        assert ("nothing to validate on" in line) == line.startswith("data: unscored ("), line
    found = stage.validate(stage.module.eval(), ALONE)
    assert "val/probe_kappa/whole" in found and "val/probe_kappa/unscored" not in found
    with pytest.raises(EmptySplitError, match=r"unscored: no recording of split 'pretrain' has any of ECG"):
        build("unimodal", Path(), packages, tmp_path, data=[*of(made, "whole", "unscored"), "model.channels=[ECG]"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["context", "probe", "fine-tune", "events"])
def test_what_builds_on_encoders_learns_from_a_mixture(made: Path, packages: Path, tmp_path: Path, kind: str) -> None:
    figures = take_step(kind, torch.device("cpu"), Path(), packages, tmp_path, of(made, "whole", "sparse"))
    assert figures
    if kind == "context":
        return
    assert {"val/kappa", "val/kappa/whole", "val/kappa/sparse"} <= figures.keys()
    written = pd.read_parquet(tmp_path / "run" / "predictions-test.parquet")
    # The same names of recordings in both, told apart; people by cohort.
    assert {record.split("/")[0] for record in written["record"]} == {"whole", "sparse"}
    assert all(person.startswith("made/") for person in written["subject"])
    facts = json.loads((tmp_path / "run" / "evaluation.json").read_text())["facts"]
    assert {"mixture_digest", "source.whole", "source.sparse"} <= facts.keys()


def test_events_labelled_by_different_rules_are_refused(made: Path, packages: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"by different rules \(.*(overlap|reference) \d.*\); build them with the same event_rule"
    ):
        build("events", Path(), packages, tmp_path, data=of(made, "whole", "ruled"))
