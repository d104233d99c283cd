"""An MNE Raw and the file it was read from give the same night."""

from __future__ import annotations

import mne
import numpy as np
from made_edf import Made, noise, tal, write_edf

from sleepfm.signals.prepare import prepare
from sleepfm.signals.raw import recording_from_raw


def test_a_raw_is_prepared_like_its_file(tmp_path):
    stamps = [tal(f"+{second}") for second in range(90)]
    stamps[0] += b"".join(tal(f"+{30 * i}", "30", f"Sleep stage N{i + 1}") for i in range(3))
    signals = [Made("C3-M2", noise(90 * 200), 200), Made("ECG", noise(90 * 200, 1), 200, "mV", ("-5", "5"))]
    path = write_edf(tmp_path / "a.edf", signals, variant="EDF+C", stamps=stamps)
    raw = mne.io.read_raw_edf(path, verbose="error")
    night, same = prepare(path), prepare(recording_from_raw(raw))
    assert (same.record, same.n_epochs) == ("a", 3) and same.stage.tolist() == night.stage.tolist() == [1, 2, 3]
    assert same.channels.keys() == night.channels.keys() == {"EEG_C3", "ECG"}
    for channel, samples in night.channels.items():
        np.testing.assert_allclose(same.channels[channel], samples, atol=2e-3)
        np.testing.assert_allclose(same.iqr[channel], night.iqr[channel], rtol=1e-4)


def test_a_cropped_raw_keeps_its_annotations_in_place(tmp_path):
    stamps = [tal(f"+{second}") for second in range(90)]
    stamps[0] += tal("+60", "30", "Sleep stage R") + tal("+0", "60", "Sleep stage W")
    path = write_edf(tmp_path / "a.edf", [Made("C3-M2", noise(9000), 100)], variant="EDF+C", stamps=stamps)
    raw = mne.io.read_raw_edf(path, verbose="error").crop(30.0, 89.99)
    assert prepare(recording_from_raw(raw)).stage.tolist() == [0, 4]


def test_a_raw_in_memory_needs_no_file():
    info = mne.create_info(["EEG C4-M1", "Airflow"], 100.0, ["eeg", "misc"])
    data = np.random.default_rng(0).standard_normal((2, 6000)) * [[2e-5], [1.0]]
    night = prepare(recording_from_raw(mne.io.RawArray(data, info, verbose="error")))
    assert set(night.channels) == {"EEG_C4", "AIRFLOW"} and 1 < night.iqr["EEG_C4"] < 40


def test_channels_of_a_raw_that_are_named_as_ours_are_taken_for_them():
    names = ["EEG_C4", "EOG_L", "ECG", "SPO2"]
    info = mne.create_info(names, 100.0, ["eeg", "eog", "ecg", "misc"])
    data = np.random.default_rng(0).standard_normal((4, 6000)) * [[2e-5], [2e-5], [2e-4], [1.0]] + [[0.0], [0.0], [0.0], [95.0]]
    night = prepare(recording_from_raw(mne.io.RawArray(data, info, verbose="error")))
    assert set(night.channels) == set(names)
    assert night.provenance["channels"]["EEG_C4"]["derivation"] == "C4-M1"
