"""The files of a scored night agree with one another and with what was scored, and say where nothing was."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from sleepfm.config import read_yaml
from sleepfm.constants import STAGE_NAMES
from sleepfm.evaluation.lights import BY_OPTION, Lights
from sleepfm.inference.resolution import fine_hypnodensity, per_second
from sleepfm.inference.scorer import Scorer, prepare_night
from sleepfm.inference.task_model import TaskModel
from sleepfm.models.build import build_model, model_config
from sleepfm.models.context import ContextConfig
from sleepfm.models.downstream import Downstream, DownstreamConfig
from sleepfm.models.event_head import EventHeadConfig
from sleepfm.models.usage import Usage
from sleepfm.paths import config_root
from sleepfm.reports.night_files import write_night
from sleepfm.signals.quality import Quality
from sleepfm.signals.recording import read_recording
from sleepfm.signals.scorings.labels import event_labels, stage_labels
from sleepfm.signals.scorings.reader import read_scoring
from sleepfm.tasks import TASKS

SCORINGS = ("scoring.edf", "scoring.annot", "scoring-profusion.xml", "scoring-nsrr.xml")


def made_model(task, seed=0, located=False, channels=None):
    torch.manual_seed(seed)
    kind = "neuronet" if channels else "synthsleepnet-psg"
    config = read_yaml(config_root() / "models" / f"{kind}-tiny.yaml")["model"]
    encoder = build_model(config | ({"channels": channels} if channels else {}))
    plan = DownstreamConfig(
        task=task,
        classes=TASKS[task].classes,
        encoder=model_config(encoder),
        context=ContextConfig(kind="mamba"),
        events=EventHeadConfig() if located else None,
        evidence=TASKS[task].needed(encoder.channels),
    )
    model = Downstream(plan, encoder).eval()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.mul_(3.0)
    model.usage = Usage(
        task=task, classes=TASKS[task].classes, window=5, threshold=None if task == "stage" else 0.5,
        event_threshold=0.5 if located else None, resolution_s=1 if located else 30,
    )  # fmt: skip
    return TaskModel(model, model.usage, f"made-{task}")


def part_of(night, n_epochs):
    return replace(
        night,
        n_epochs=n_epochs,
        channels={name: samples[: n_epochs * 3000] for name, samples in night.channels.items()},
        quality={name: flags[:n_epochs] for name, flags in night.quality.items()},
    )


@pytest.fixture(scope="module")
def entries():
    return {task: made_model(task, number, task != "stage") for number, task in enumerate(("stage", "apnea", "hypopnea"))}


@pytest.fixture
def night(recordings):
    return prepare_night(recordings[0])


def test_every_file_of_a_night_says_the_same(entries, night, tmp_path):
    for name in ("EEG_C3", "EEG_C4"):
        if name in night.quality:
            night.quality[name][7:9] |= np.uint8(Quality.DISCONNECTED)
    for name in ("AIRFLOW", "THORAX", "ABDOMEN"):
        if name in night.quality:
            night.quality[name][20:] |= np.uint8(Quality.FLAT)
    seconds = Scorer([entries["apnea"]]).score(night).seconds["apnea"]
    usage = entries["apnea"].usage.model_copy(update={"event_threshold": float(np.nanquantile(seconds, 0.8))})
    score = Scorer([entries["stage"], replace(entries["apnea"], usage=usage), entries["hypopnea"]]).score(night)
    start = datetime(2021, 3, 4, 22, 59, 30)
    write_night(tmp_path, score, night, start)
    assert score.events and (score.stages == -1).sum() == 2

    stages = pd.read_csv(tmp_path / "stages.csv", keep_default_na=False)
    assert list(stages["epoch"]) == list(range(1, 31)) and list(stages["clock"][:2]) == ["22:59:30", "23:00:00"]
    assert [name or "" for name in stages["stage"]] == [STAGE_NAMES[s] if s >= 0 else "" for s in score.stages]
    lost = stages["stage"] == ""
    assert stages["unscored_because"][lost].str.contains("EEG_C4 disconnected").all() and (stages["confidence"][lost] == "").all()
    assert (stages["unscored_because"][~lost] == "").all()
    assert np.allclose(stages["confidence"][~lost].astype(float), np.nanmax(score.hypnodensity[~lost], axis=1), atol=1e-5)
    assert all(("breathing" in said) == (epoch >= 20) for epoch, said in enumerate(stages["events_not_assessed"]))

    hypnogram = np.load(tmp_path / "hypnogram.npy")
    assert hypnogram.dtype.kind == "i" and np.array_equal(np.where(hypnogram == -2, -1, hypnogram), score.stages)

    table = pq.read_table(tmp_path / "probabilities.parquet")
    assert table.num_rows == 900 and table.column("epoch")[29].as_py() == 1 and table.column("epoch")[30].as_py() == 2
    apnea = table.column("apnea").to_numpy()
    assert np.allclose(apnea, score.seconds["apnea"].astype(np.float32), equal_nan=True)
    assert table.column("apnea").null_count == np.isnan(score.seconds["apnea"]).sum() >= 300
    assert (
        table.schema.metadata[b"resolution of apnea"] == b"1 s" and table.schema.metadata[b"resolution of stage"] == b"30-s epoch"
    )

    written = sorted([*score.events, *(fall.as_event() for fall in score.desaturations)], key=lambda e: (e.onset, e.type))
    for name in SCORINGS:
        found = read_scoring(tmp_path / name, start, 900.0)
        assert np.array_equal(stage_labels(found, 30), score.stages), name
        assert [event.type for event in found.events] == [event.type for event in written], name
        assert (event_labels(found, 30, ("apnea",))[20:] != 0).all() and not (event_labels(found, 30, ("arousal",)) == 0).any()


def test_events_that_nobody_looked_for_are_never_written_as_none(entries, night, tmp_path):
    """Stages alone, and a recording without airflow and belts: the readers of the files must not see a night of health."""
    for name in ("AIRFLOW", "THORAX", "ABDOMEN", "SPO2"):
        night.channels.pop(name, None)
        night.quality.pop(name, None)
    for number, chosen in enumerate((["stage"], ["stage", "apnea", "hypopnea"])):
        score = Scorer([entries[task] for task in chosen]).score(night)
        folder = tmp_path / str(number)
        folder.mkdir()
        write_night(folder, score, night)
        for name in SCORINGS:
            found = read_scoring(folder / name, read_recording(folder / "scoring.edf").start, 900.0)
            for types in (("apnea", "obstructive_apnea"), ("hypopnea",), ("desaturation",), ("arousal",)):
                assert not (event_labels(found, 30, types) == 0).any(), (name, types)


def test_a_recording_without_eeg_gets_no_stages_and_no_index(entries, night, tmp_path):
    for name in [name for name in night.channels if name != "ECG"]:
        del night.channels[name], night.quality[name]
    score = Scorer(list(entries.values())).score(night)
    assert (score.stages == -1).all() and np.isnan(score.hypnodensity).all() and score.fine is None
    assert np.isnan(score.ahi) and not score.breathing.counted and not score.events
    told = "\n".join(score.warnings)
    assert (
        "stage: not assessed, since the recording has no usable channel of EEG_C3, EEG_C4" in told
        and "apnea: not assessed" in told
    )
    # The ECG is usable, though nothing can be told from it.
    assert "in any channel" not in told and f"{night.n_epochs} of {night.n_epochs} epochs are unscored, because none of" in told
    write_night(tmp_path, score, night)
    stages = pd.read_csv(tmp_path / "stages.csv", keep_default_na=False)
    assert set(stages["unscored_because"]) == {"the recording has no usable channel of EEG_C3, EEG_C4"}


def test_a_model_that_takes_no_eeg_stages_no_recording_without(night):
    entry = made_model("stage", channels=["ECG"])
    assert (Scorer([entry]).score(night).stages >= 0).any()
    for name in ("EEG_C3", "EEG_C4"):
        night.channels.pop(name, None)
        night.quality.pop(name, None)
    assert (Scorer([entry]).score(night).stages == -1).all()


def test_a_model_without_its_channels_leaves_the_others_to_score(entries, night):
    """Stages go on where a model of events has nothing to look at."""
    for name in [name for name in night.channels if name not in ("EEG_C3", "EEG_C4")]:
        del night.channels[name], night.quality[name]
    of_breathing = made_model("apnea", located=True, channels=["AIRFLOW", "THORAX", "ABDOMEN"])
    score = Scorer([entries["stage"], of_breathing]).score(night)
    assert (score.stages >= 0).all() and not score.breathing.counted and np.isnan(score.probability["apnea"]).all()
    assert any("apnea: not assessed" in warning for warning in score.warnings)


def test_short_recordings_are_told(entries, night):
    for n_epochs, told in ((9, True), (10, False)):
        warnings = Scorer([entries["stage"]]).score(part_of(night, n_epochs)).warnings
        assert any("4.5 min long" in warning for warning in warnings) == told


@pytest.mark.parametrize("seconds", [1, 5])
def test_a_finer_hypnodensity_is_what_the_model_says_of_epochs_that_begin_elsewhere(entries, night, seconds):
    entry = entries["stage"]
    night = part_of(night, 6)
    fine = fine_hypnodensity(entry, night, seconds)
    assert fine.probability.shape == (180 // seconds, 5) and np.isfinite(fine.probability).all()
    # By hand: the night without its first seconds, cut anew.
    offset, lead = (25, 10) if seconds == 5 else (7, 14)
    cut = {name: samples[offset * 100 : offset * 100 + 5 * 3000] for name, samples in night.channels.items()}
    flags = {name: quality[1:] | quality[:-1] for name, quality in night.quality.items()}
    want = Scorer([entry]).score(replace(night, n_epochs=5, channels=cut, quality=flags)).hypnodensity
    places = [(offset + 30 * epoch + lead) // seconds for epoch in range(5)]
    assert np.allclose(fine.probability[places], want, atol=1e-6)
    # The first and last stretches are in the first and last epoch; each epoch's own value is in its middle.
    whole = Scorer([entry]).score(night).hypnodensity
    assert np.allclose(fine.probability[0], whole[0], atol=1e-6) and np.allclose(fine.probability[-1], whole[-1], atol=1e-6)
    assert np.allclose(per_second(fine)[lead::30], whole, atol=1e-6) and not np.allclose(want, whole[:5], atol=1e-3)


def test_lights_bound_the_figures_of_sleep_and_nothing_else(entries, night):
    score = Scorer(list(entries.values())).score(night)
    stages = np.array([0] * 4 + [2] * 10 + [0] * 2 + [4] * 8 + [0] * 6, np.int8)
    score = replace(score, stages=stages)
    assert score.statistics.time_in_bed == 15.0 and score.statistics.latency == 2.0
    bound = replace(score, lights=Lights(60.0, 720.0, BY_OPTION, BY_OPTION))
    assert bound.statistics.time_in_bed == 11.0 and bound.statistics.latency == 1.0
    assert bound.statistics.total_sleep_time == 9.0 and bound.statistics.recorded == 15.0
    within = replace(score, lights=Lights(420.0, 600.0, BY_OPTION, BY_OPTION))
    assert within.statistics.stage_minutes["N2"] == 0.0 and within.breathing.hours < score.breathing.hours
    assert np.array_equal(within.stages, stages)
    unscored = replace(
        score, stages=np.where(np.arange(30) < 4, -1, stages).astype(np.int8), lights=Lights(60.0, None, BY_OPTION)
    )
    assert unscored.statistics.unscored_in_bed == 1.0 and unscored.statistics.time_in_bed == 14.0
