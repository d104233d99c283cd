"""From files to canonical channels and labels, on synthetic, damaged and real recordings."""

from __future__ import annotations

import json
import os
import weakref
from pathlib import Path

import numpy as np
import pytest
from made_edf import Made, noise, tal, write_edf

from sleepfm.cli import main
from sleepfm.constants import CHANNELS, EPOCH_SAMPLES
from sleepfm.errors import AnnotationError, MontageError, RecordingError, SignalError, SleepFMError
from sleepfm.signals.cohorts.catalogue import load_cohort
from sleepfm.signals.filters import preprocess, robust_scale
from sleepfm.signals.polarity import POLAR
from sleepfm.signals.prepare import discover, prepare, prepare_in_turn
from sleepfm.signals.quality import Quality
from sleepfm.signals.rates import at_model_rate, recording_rate
from sleepfm.signals.recording import read_recording
from sleepfm.synthetic.cohort import write_cohort


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Two synthetic nights of half an hour, laid out as NSRR does."""
    root = tmp_path_factory.mktemp("shhs")
    write_cohort(root, 2, 0.5, 3)
    return root


def chin_and_eeg(tmp_path, seconds=90, name="a.edf", **keywords) -> Path:
    signals = [
        Made("C3-M2", noise(seconds * 100), 100),
        Made("Chin", noise(seconds * 200, 1), 200),
        Made("C4-M1", np.zeros(seconds * 100, int), 100),
    ]
    return write_edf(tmp_path / name, signals, **keywords)


def test_a_night_of_shhs(tree):
    paths = list(discover(tree))
    assert [path.name for path in paths] == ["shhs1-200001.edf", "shhs1-200002.edf"]
    night = prepare(paths[0], root=tree)
    assert (night.record, night.subject, night.visit, night.cohort) == ("shhs1-200001", "shhs-200001", "1", "shhs1")
    assert night.n_epochs == 60 and list(night.channels) == list(CHANNELS)
    assert night.provenance["scoring"]["source"] == "NSRR XML shhs1-200001-nsrr.xml"
    assert night.stage.shape == (60,) and (night.stage >= 0).any()
    assert set(night.labels) == {"apnea", "hypopnea", "desaturation", "arousal"}
    assert all(set(np.unique(values)) <= {0, 1} for name, values in night.labels.items() if name != "desaturation")
    # Documented to be unreliable: none is offered, and none is said to be absent.
    assert set(night.labels["desaturation"]) == {-1} and not any(event.type == "desaturation" for event in night.events)
    assert any("unreliable" in text and "desaturation" in text for text in night.provenance["scoring"]["warnings"])
    recording = read_recording(paths[0])
    labels = [signal.label for signal in recording.signals]
    for channel, samples in night.channels.items():
        assert samples.dtype == np.float32 and samples.shape == (60 * EPOCH_SAMPLES,) and np.isfinite(samples).all()
        assert night.quality[channel].shape == (60,)
        entry = night.provenance["channels"][channel]
        source = recording.read(labels.index(entry["signal"]))
        stored = recording_rate(night.provenance, channel)
        assert stored == {"AIRFLOW": 10, "THORAX": 10, "ABDOMEN": 10, "SPO2": 4}.get(channel, 100)
        expected = preprocess(source, entry["rate"], channel, target=stored)
        if channel != "SPO2":
            expected, median, iqr = robust_scale(expected)
            assert (median, iqr) == (night.median[channel], night.iqr[channel])
        np.testing.assert_array_equal(samples, at_model_rate(expected, stored))
    assert 70 < night.median["SPO2"] <= 100
    assert night.provenance["channels"]["EOG_L"]["band_cut"].endswith("25 Hz")
    assert night.provenance["channels"]["THORAX"]["polarity"]["header_inverted"] == ["THOR RES"]
    json.dumps(night.provenance)


def test_it_is_the_same_wherever_it_lies(tree, tmp_path):
    elsewhere = tmp_path / "copy"
    elsewhere.mkdir()
    for source in (*tree.rglob("*200001.edf"), *tree.rglob("*200001-nsrr.xml")):
        (elsewhere / source.name).write_bytes(source.read_bytes())
    one, other = prepare(next(iter(discover(tree))), root=tree), prepare(elsewhere / "shhs1-200001.edf")
    assert one.provenance == other.provenance
    for channel in CHANNELS:
        assert one.channels[channel].tobytes() == other.channels[channel].tobytes()
    np.testing.assert_array_equal(one.stage, other.stage)


def test_a_scoring_of_another_night_is_refused(tree, tmp_path):
    edf = chin_and_eeg(tmp_path)
    xml = next(tree.rglob("*200001-nsrr.xml"))
    with pytest.raises(AnnotationError, match=r"1710\.0 s \(57\.0 epochs\) longer"):
        prepare(edf, scoring=xml, use="require")
    night = prepare(edf, scoring=xml)
    assert "(57.0 epochs) longer" in night.provenance["scoring_refused"] and (night.stage == -1).all() and night.channels
    assert all((labels == -1).all() for labels in night.labels.values())
    assert prepare(edf, scoring=xml, use="ignore").provenance["scoring_refused"] == ""
    (tmp_path / "a-nsrr.xml").write_text("<PSGAnnotation/>", encoding="utf-8")
    with pytest.raises(AnnotationError, match="without any stage"):
        prepare(edf, use="require")
    assert "without any stage" in prepare(edf).provenance["scoring_refused"]
    (tmp_path / "a-nsrr.xml").unlink()
    with pytest.raises(AnnotationError, match=r"no scoring was found \(cohort generic looks for \{stem\}-nsrr.xml, "):
        prepare(edf, use="require")


def test_channels_in_turn_are_those_of_the_whole_and_live_no_longer_than_needed(tree):
    path = next(iter(discover(tree)))
    whole = prepare(path, root=tree)
    description, channels = prepare_in_turn(read_recording(path), root=tree)
    passed = {}
    for channel, samples in channels:
        # Polarity of what has one is decided together; of the others, the last one is gone when the next one comes.
        assert channel in POLAR or not any(kept() is not None for kept in passed.values())
        passed[channel] = weakref.ref(samples)
        found = at_model_rate(samples, recording_rate(description.provenance, channel))
        assert found.tobytes() == whole.channels[channel].tobytes()
        del samples, found
    assert set(passed) == set(whole.channels) and not any(kept() is not None for kept in passed.values())
    assert (description.median, description.iqr, description.provenance) == (whole.median, whole.iqr, whole.provenance)


def test_names_are_relative_to_a_folder_from_the_start(tree, tmp_path):
    folder = tmp_path / "source" / "nights"
    folder.mkdir(parents=True)
    xml = next(tree.rglob("*200001-nsrr.xml")).read_text(encoding="utf-8")
    (folder / "shhs1-200001.edf").write_bytes(next(iter(discover(tree))).read_bytes())
    (folder / "shhs1-200001-nsrr.xml").write_text(xml.replace("Wake|0", "Weird|99"), encoding="utf-8")
    recording = read_recording(folder / "shhs1-200001.edf", names_below=tmp_path / "source")
    provenance = prepare(recording).provenance
    assert provenance["scoring_refused"].startswith("nights/shhs1-200001-nsrr.xml: unknown stage texts: 'Weird|99'")
    assert str(tmp_path) not in json.dumps(provenance)
    (folder / "shhs1-200001-nsrr.xml").write_text("<a", encoding="utf-8")
    with pytest.raises(AnnotationError, match=r"^nights/shhs1-200001-nsrr\.xml: not well-formed"):
        prepare(recording, use="require")
    with pytest.raises(MontageError, match=r"^nights/shhs1-200001\.edf: no canonical channel by the rules"):
        prepare(recording, load_cohort("sleep-edf"), scoring=next(tree.rglob("*200001-nsrr.xml")))
    (folder / "broken.edf").write_bytes(b"no recording" * 30)
    with pytest.raises(RecordingError, match=r"^nights/broken\.edf: neither EDF nor BDF \(starts with ['\"]"):
        read_recording(folder / "broken.edf", names_below=tmp_path / "source")
    with pytest.raises(RecordingError, match=rf"^{folder}/broken\.edf: neither"):
        read_recording(folder / "broken.edf", names_below=tmp_path / "elsewhere")


def test_absent_and_flat_channels_are_left_out(tmp_path):
    night = prepare(chin_and_eeg(tmp_path))
    assert set(night.channels) == {"EEG_C3", "EMG_CHIN"} and night.cohort == "generic"
    assert night.provenance["missing"]["EEG_C4"] == "flat for the whole recording"
    assert (night.stage == -1).all() and all((values == -1).all() for values in night.labels.values())
    assert night.provenance["scoring"] is None
    with pytest.raises(SignalError, match=r"EEG_C4.*flat"):
        prepare(tmp_path / "a.edf", require=["EEG_C4"])
    with pytest.raises(MontageError, match="ECG is missing"):
        prepare(tmp_path / "a.edf", require=["ECG", "EEG_C3"])


def test_only_flat_channels_are_refused(tmp_path):
    path = write_edf(tmp_path / "f.edf", [Made("C3-M2", np.zeros(4000, int), 100)])
    with pytest.raises(SignalError, match="no usable signal in any channel"):
        prepare(path)


@pytest.mark.parametrize(("seconds", "epochs"), [(29, 0), (30, 1), (89, 2), (90, 3)])
def test_only_whole_epochs_count(tmp_path, seconds, epochs):
    path = chin_and_eeg(tmp_path, seconds)
    if epochs:
        assert prepare(path).n_epochs == epochs
    else:
        with pytest.raises(RecordingError, match="shorter than one"):
            prepare(path)


def test_an_ambiguous_channel_refuses_the_recording(tmp_path):
    signals = [Made("C3-M2", noise(4000), 100), Made("C3-A2", noise(4000, 1), 100)]
    with pytest.raises(MontageError, match=r"EEG_C3 is ambiguous: 'C3-M2' \(signal 1\), 'C3-A2' \(signal 2\)"):
        prepare(write_edf(tmp_path / "a.edf", signals))


def test_gaps_are_zero_flagged_and_unscored(tmp_path):
    starts = [*range(40), *range(75, 135)]  # nothing from 40 to 75 s
    stamps = [tal(f"+{start}") for start in starts]
    stamps[0] += b"".join(tal(f"+{30 * i}", "30", "Sleep stage N2") for i in range(4))
    path = write_edf(tmp_path / "d.edf", [Made("C3-M2", noise(10_000), 100)], variant="EDF+D", stamps=stamps)
    night = prepare(path)
    assert night.n_epochs == 4 and night.stage.tolist() == [2, -1, -1, 2]
    assert [bool(flag & Quality.GAP) for flag in night.quality["EEG_C3"]] == [False, True, True, False]
    samples = night.channels["EEG_C3"]
    assert (samples[4000:7500] == 0).all() and samples[3500:4000].any() and samples[7500:8000].any()
    assert night.provenance["gaps"] == [[40.0, 35.0]]
    assert night.provenance["channels"]["EEG_C3"]["epochs_flagged"] == {"GAP": 2}
    assert night.provenance["scoring"]["source"] == "annotations of the recording"


def test_sleep_edf(shared_data):
    root = shared_data / "sleep-edf"
    paths = list(discover(root))
    assert [path.name for path in paths] == ["short_psg.bdf", "short_psg.edf"]
    nights = [prepare(path, root=root) for path in paths]
    for night in nights:
        assert night.n_epochs == 10 and night.stage.tolist() == [0] * 10 and set(night.channels) == {"EEG_C4", "EOG_L"}
        assert "1 Hz" in night.provenance["missing"]["EMG_CHIN"]
        assert "cut" in night.provenance["scoring"]["warnings"][0]
        assert (night.labels["apnea"] == -1).all()
    np.testing.assert_allclose(nights[0].channels["EEG_C4"], nights[1].channels["EEG_C4"], atol=0.01)


def test_nox(shared_data):
    night = prepare(shared_data / "nox-a1" / "subject1.edf")
    assert night.n_epochs == 4 and list(night.channels) == list(CHANNELS) and night.provenance["scoring"] is None
    with pytest.raises(AnnotationError, match="another night"):
        prepare(
            shared_data / "nox-a1" / "subject1.edf",
            scoring=shared_data / "nox-a1" / "noxturnal_events_example_unicode.csv",
            use="require",
        )


def test_every_awkward_file_is_refused_with_a_reason(shared_data):
    root = shared_data / "edf-zoo"
    paths = list(discover(root))
    assert len(paths) == len([path for path in root.rglob("*") if path.suffix in (".edf", ".bdf")])
    for path in paths:
        with pytest.raises(SleepFMError) as caught:
            prepare(path, root=root)
        assert str(path) in str(caught.value) and len(str(caught.value)) > len(str(path)) + 25


def test_discover_sees_files_not_links_to_folders(tmp_path, tree):
    chin_and_eeg(tmp_path, name="b.EDF")
    chin_and_eeg(tmp_path, name="._b.edf")
    (tmp_path / "sub").mkdir()
    chin_and_eeg(tmp_path / "sub", name="a.bdf.edf")
    os.symlink(tree, tmp_path / "link")
    (tmp_path / "c.edf").write_bytes(b"no EDF at all")
    names = [str(path.relative_to(tmp_path)) for path in discover(tmp_path)]
    assert names == ["b.EDF", "c.edf", "sub/a.bdf.edf"]
    assert list(discover(tmp_path / "b.EDF")) == [tmp_path / "b.EDF"]
    (tmp_path / "empty").mkdir()
    for missing in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(RecordingError, match=missing.name):
            discover(missing)


def test_channels_without_a_band_are_only_resampled(tmp_path):
    cohort = load_cohort("generic")
    unfiltered = cohort.model_copy(update={"filters": {}})
    night = prepare(chin_and_eeg(tmp_path), unfiltered)
    assert night.provenance["channels"]["EEG_C3"]["band"] == [None, None]
    raw = read_recording(tmp_path / "a.edf").read(0)
    np.testing.assert_allclose(night.channels["EEG_C3"], robust_scale(raw)[0], atol=1e-4)


class TestDoctor:
    def test_usable_folders(self, shared_data, tree, capsys):
        assert main(["doctor", str(shared_data / "nox-a1")]) == 0
        text = capsys.readouterr().out
        assert "EEG_C3    C3-M2, 200 Hz, V" in text and "1 recording: 1 usable, 0 would be refused" in text
        assert main(["doctor", str(tree), "--json"]) == 0
        findings = json.loads(capsys.readouterr().out)
        assert [finding["record"] for finding in findings] == ["shhs1-200001", "shhs1-200002"]
        assert findings[0]["scored_epochs"] > 0 and findings[0]["channels"]["SPO2"]["unit"] == "%"
        assert main(["doctor", str(shared_data / "sleep-edf")]) == 0
        text = capsys.readouterr().out
        assert "substitute" in text and "1 Hz is below the 60 Hz" in text and "10 epochs scored" in text

    def test_what_would_be_refused(self, shared_data, capsys):
        assert main(["doctor", str(shared_data / "edf-zoo")]) == 1
        text = capsys.readouterr().out
        assert text.count("REFUSED") == 20 and "0 usable, 20 would be refused" in text

    def test_nothing_to_examine(self, tmp_path, capsys):
        assert main(["doctor", str(tmp_path)]) == 1
        assert "no recording in this folder" in capsys.readouterr().err
        assert main(["doctor", str(tmp_path), "--cohort", "nonsense"]) == 2
        assert "shhs1" in capsys.readouterr().err
