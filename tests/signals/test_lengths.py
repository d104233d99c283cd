"""Scorings that do not fit their recording: by how much is said, and what is certain of them is kept where a cohort says so."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from made_edf import Made, noise, write_edf

from shards.samples import epoch_labels
from sleepfm.config import load_config
from sleepfm.errors import AnnotationError, ConfigError
from sleepfm.signals.cohorts.cohort import Cohort
from sleepfm.signals.prepare import PreparedRecording, prepare

EPOCHS = 20
STAGES = [0] * 3 + [1] * 2 + [2] * 9 + [3] * 4 + [5] * 7


def scoring_of(form: str, epochs: int) -> tuple[str, str]:
    """Ending and content of a night's scoring of ``epochs`` epochs, with hypopneas at 100 and 400 s if it has events."""
    if form == "list":
        return ".csv", "".join(f"{stage}\n" for stage in STAGES[:epochs])
    events = [100, *([400] if epochs > 13 else [])]
    if form == "profusion":
        told = "".join(
            f"<ScoredEvent><Name>Hypopnea</Name><Start>{onset}</Start><Duration>15</Duration></ScoredEvent>" for onset in events
        )
        stages = "".join(f"<SleepStage>{stage}</SleepStage>" for stage in STAGES[:epochs])
        return "-nsrr.xml", (
            f"<CMPStudyConfig><EpochLength>30</EpochLength><ScoredEvents>{told}</ScoredEvents>"
            f"<SleepStages>{stages}</SleepStages></CMPStudyConfig>"
        )
    told = "".join(
        f"<ScoredEvent><EventType>Respiratory|Respiratory</EventType><EventConcept>Hypopnea|Hypopnea</EventConcept>"
        f"<Start>{onset}</Start><Duration>15</Duration></ScoredEvent>"
        for onset in events
    )
    told += "".join(
        f"<ScoredEvent><EventType>Stages|Stages</EventType><EventConcept>Stage|{stage}</EventConcept><Start>{30 * place}</Start>"
        "<Duration>30</Duration></ScoredEvent>"
        for place, stage in enumerate(STAGES[:epochs])
    )
    return "-nsrr.xml", f"<PSGAnnotation><ScoredEvents>{told}</ScoredEvents></PSGAnnotation>"


def night(folder: Path, form: str, epochs: int, rules: dict[str, str] | None = None) -> PreparedRecording:
    path = write_edf(folder / "a.edf", [Made("C4-M1", noise(200 * 30 * EPOCHS), 200)])
    ending, text = scoring_of(form, epochs)
    (folder / f"a{ending}").write_text(text)
    own = folder / "own.yaml"
    said = yaml.safe_dump({"extends": "generic.yaml", "name": "own", "source": "test", "scoring": rules or {}})
    own.write_text(said)
    return prepare(path, load_config(Cohort, own))


@pytest.mark.parametrize("form", ["list", "profusion", "nsrr"])
@pytest.mark.parametrize(
    ("epochs", "told", "kept"),
    [
        (
            12,
            "240.0 s (8.0 epochs) shorter than the recording of 600.0 s",
            "scoring ends 240.0 s (8.0 epochs) before the recording",
        ),
        (23, "90.0 s (3.0 epochs) longer than the recording of 600.0 s", "scoring goes on for 90.0 s"),
    ],
)
def test_the_reason_names_the_difference_and_the_line_that_keeps_what_is_certain(tmp_path, form, epochs, told, kept):
    refused = night(tmp_path, form, epochs)
    reason = refused.provenance["scoring_refused"]
    assert told in reason and (refused.stage == -1).all() and (refused.labels["hypopnea"] == -1).all()
    line = re.search(r"`scoring: (\{.+?\})` in a cohort file", reason)
    assert line, reason
    found = night(tmp_path, form, epochs, yaml.safe_load(line[1]))
    assert not found.provenance["scoring_refused"] and kept in " ".join(found.provenance["scoring"]["warnings"])
    meant = [{5: 4}.get(stage, stage) for stage in STAGES[:EPOCHS]]
    certain = min(epochs, EPOCHS)
    assert found.stage.tolist() == meant[:certain] + [-1] * (EPOCHS - certain)
    # As a data set keeps them: what has no stage has no label.
    kept = epoch_labels(found)
    for name, labels in ((name, kept[name]) for name in ("apnea", "hypopnea", "desaturation")):
        if form == "list":
            assert (labels == -1).all()
            continue
        assert (labels[certain:] == -1).all() and (labels[:certain] >= 0).all(), name
        held = {"hypopnea": [3, *([13] if certain > 13 else [])]}.get(name, [])
        assert np.flatnonzero(labels == 1).tolist() == held, name


def test_other_words_than_these_are_refused_in_a_cohort_file(tmp_path):
    with pytest.raises(ConfigError, match=r"scoring\.shorter': must be 'keep' or 'error'"):
        night(tmp_path, "list", 12, {"shorter": "stretch"})


def test_an_epoch_too_many_or_too_few_is_no_fault(tmp_path):
    for epochs in (EPOCHS - 1, EPOCHS + 1):
        found = night(tmp_path, "nsrr", epochs)
        assert not found.provenance["scoring_refused"]
        assert (found.stage >= 0).sum() == (epoch_labels(found)["hypopnea"] >= 0).sum() == min(epochs, EPOCHS)


def test_nothing_is_moved_to_make_a_scoring_fit(tmp_path):
    path = write_edf(tmp_path / "a.edf", [Made("C4-M1", noise(200 * 30 * EPOCHS), 200)])
    (tmp_path / "a.csv").write_text("onset,duration,event\n" + "".join(f"{9000 + 30 * n},30,N2\n" for n in range(EPOCHS)))
    own = tmp_path / "own.yaml"
    own.write_text("extends: generic.yaml\nname: own\nsource: test\nscoring: {longer: cut, shorter: keep}\n")
    assert "belongs to another night" in prepare(path, load_config(Cohort, own)).provenance["scoring_refused"]
    with pytest.raises(AnnotationError, match="belongs to another night"):
        prepare(path, load_config(Cohort, own), use="require")


CUT = {"longer": "cut"}


def own_table(folder: Path, text: str, rules: dict[str, str] | None = None, seconds: int = 1200) -> PreparedRecording:
    path = write_edf(folder / "b.edf", [Made("C4-M1", noise(200 * seconds), 200)])
    (folder / "b.csv").write_text(text)
    own = folder / "own.yaml"
    own.write_text(yaml.safe_dump({"extends": "generic.yaml", "name": "own", "source": "test", "scoring": rules or {}}))
    return prepare(path, load_config(Cohort, own))


STRANGE = {
    "20-s epochs": ("".join(f"{n % 4}\n" for n in range(60)), "its epochs seem to have 20 s, not 30"),
    "10-s epochs": ("epoch,stage\n" + "".join(f"{n},{n % 4}\n" for n in range(120)), "its epochs seem to have 10 s, not 30"),
    "milliseconds": (
        "onset,duration,event\n" + "".join(f"{30000 * n},30000,N{1 + n % 3}\n" for n in range(40)),
        "it is 1000 times as long, as if its times were milliseconds",
    ),
    "samples": (
        "onset,duration,event\n" + "".join(f"{30 * 256 * n},{30 * 256},N{1 + n % 3}\n" for n in range(40)),
        "it is 256 times as long, as if its times were samples",
    ),
    "several nights": ("".join(f"{n % 4}\n" for n in range(95)), "one of them belongs to another night"),
}


@pytest.mark.parametrize("form", STRANGE)
@pytest.mark.parametrize("rules", [None, CUT])
def test_a_scoring_that_counts_something_else_is_not_cut(tmp_path, form, rules):
    text, why = STRANGE[form]
    refused = own_table(tmp_path, text, rules)
    reason = refused.provenance["scoring_refused"]
    assert why in reason and "longer: cut" not in reason and (refused.stage == -1).all()


def test_the_line_that_cuts_is_named_up_to_ten_minutes(tmp_path):
    lines = "".join(f"{n % 4}\n" for n in range(100))
    for seconds, named in ((2400, True), (2370, False)):
        reason = own_table(tmp_path, lines, seconds=seconds).provenance["scoring_refused"]
        assert f"{3000 - seconds}.0 s" in reason and ("{longer: cut}" in reason) == named
    # Whoever asks for it gets it where less than half is cut off.
    assert own_table(tmp_path, lines, CUT, 1530).stage.tolist() == [n % 4 for n in range(51)]
    assert "(49.0 epochs) longer" not in own_table(tmp_path, lines, CUT, 1530).provenance["scoring_refused"]


def test_a_night_all_of_whose_events_lie_after_it_has_none_that_were_scored(tmp_path):
    rows = "".join(f"{30 * n},30,N{1 + n % 3}\n" for n in range(50))
    night = own_table(tmp_path, f"onset,duration,event\n{rows}1300,20,Hypopnea\n1400,20,Hypopnea\n", CUT)
    assert (night.labels["hypopnea"] == -1).all() and (night.labels["apnea"] == -1).all() and (night.stage >= 0).all()
    assert "none of its events lies in the recording" in " ".join(night.provenance["scoring"]["warnings"])
