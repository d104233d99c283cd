"""A night whose C4 is missing or comes off is scored with C3, and says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sleepfm.errors import MontageError
from sleepfm.inference.backup import with_backup
from sleepfm.inference.scorer import Scorer, prepare_night
from sleepfm.reports.night_files import summary
from sleepfm.signals.prepare import PreparedRecording
from sleepfm.signals.quality import Quality

LOST = slice(8, 20)


@pytest.fixture(scope="module")
def night(recordings) -> PreparedRecording:
    found = prepare_night(recordings[0])
    assert {"EEG_C3", "EEG_C4"} <= set(found.channels)
    return found


@pytest.fixture(scope="module")
def scorer(downstream_packages) -> Scorer:
    return Scorer.load([downstream_packages["stage"], downstream_packages["apnea"]])


def lacking(night: PreparedRecording, *names: str) -> PreparedRecording:
    return replace(
        night,
        channels={name: values for name, values in night.channels.items() if name not in names},
        quality={name: values for name, values in night.quality.items() if name not in names},
    )


def come_off(night: PreparedRecording, name: str) -> PreparedRecording:
    quality = night.quality[name].copy()
    quality[LOST] = Quality.FLAT
    return replace(night, quality=night.quality | {name: quality})


def test_c3_alone_is_scored_as_the_same_signal_at_c4(scorer: Scorer, night: PreparedRecording) -> None:
    alone = lacking(night, "EEG_C4")
    renamed = lacking(
        replace(
            night,
            channels=night.channels | {"EEG_C4": night.channels["EEG_C3"]},
            quality=night.quality | {"EEG_C4": night.quality["EEG_C3"]},
        ),
        "EEG_C3",
    )
    before = {name: values.copy() for name, values in alone.channels.items()}
    found = scorer.score(alone, resolution=5)
    want = scorer.score(renamed, resolution=5)
    assert np.array_equal(found.hypnodensity, want.hypnodensity) and found.fine is not None and want.fine is not None
    assert np.array_equal(found.fine.probability, want.fine.probability)
    assert np.array_equal(found.probability["apnea"], want.probability["apnea"])
    assert found.inputs["stage"][0] == "EEG_C3" and "EEG_C4" not in found.channels
    told = [line for line in found.warnings if "stands in" in line]
    assert told == ["EEG_C3 stands in for EEG_C4 in 30 of 30 epochs, as its backup (AASM), for stage, apnea"]
    assert not any("stands in" in line for line in want.warnings)
    assert list(before) == list(alone.channels) and all(np.array_equal(before[name], alone.channels[name]) for name in before)
    assert summary(found, alone)["inputs"]["stage"][0] == "EEG_C3"


def test_where_c4_comes_off_c3_stands_in_and_elsewhere_nothing_changes(scorer: Scorer, night: PreparedRecording) -> None:
    off = come_off(night, "EEG_C4")
    seen = with_backup(off, ("EEG_C4", "EOG_L"))
    first, stop = LOST.start * 3000, LOST.stop * 3000
    assert np.array_equal(seen.night.channels["EEG_C4"][first:stop], night.channels["EEG_C3"][first:stop])
    assert np.array_equal(seen.night.channels["EEG_C4"][:first], night.channels["EEG_C4"][:first])
    assert np.array_equal(seen.night.channels["EEG_C4"][stop:], night.channels["EEG_C4"][stop:])
    assert seen.replaced == {"EEG_C4": 12} and off.quality["EEG_C4"][LOST].all()
    score = scorer.score(off)
    assert (score.stages >= 0).all() and {"EEG_C3", "EEG_C4"} <= set(score.inputs["stage"])
    assert any(line.startswith("EEG_C3 stands in for EEG_C4 in 12 of 30 epochs") for line in score.warnings)
    both = come_off(off, "EEG_C3")
    assert with_backup(both, ("EEG_C4",)).night is both


def test_a_sound_night_and_a_model_of_both_sides_are_left_alone(night: PreparedRecording) -> None:
    assert with_backup(night, ("EEG_C4",)).night is night
    off = come_off(night, "EEG_C4")
    assert with_backup(off, ("EEG_C3", "EEG_C4")).night is off
    assert with_backup(off, ("EOG_L", "ECG")).night is off


def test_a_night_without_any_channel_of_the_models_is_refused(scorer: Scorer, night: PreparedRecording) -> None:
    with pytest.raises(MontageError, match="none of the channels"):
        scorer.score(lacking(night, "EEG_C3", "EEG_C4", "EOG_L", "EMG_CHIN", "ECG"))
