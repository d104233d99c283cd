"""Every awkward real file is read, or refused with a reason to act on; test_recording compares them with edfio."""

from __future__ import annotations

import re

import pytest

from sleepfm.errors import RecordingError
from sleepfm.signals.discover import discover
from sleepfm.signals.doctor import examine_recordings
from sleepfm.signals.recording import read_recording

SHORT = r"{} s long, shorter than one 30-s epoch"
NO_CHANNEL = r"no canonical channel by the rules of cohort generic among {} signals? .*; name them in a cohort file"

# What is read: variant, signals, seconds, annotations. And why it makes no training data.
READ = {
    "edfio/mne_test.bdf": ("BDF+C", 139, 6.0, 5, SHORT.format(6)),
    "edfio/test_subsecond.bdf": ("BDF+C", 1, 698.0, 4, NO_CHANNEL.format(1)),
    "mne-python/duplicate_channel_labels.edf": ("EDF+C", 3, 10.0, 0, SHORT.format(10)),
    "mne-python/test.bdf": ("BDF", 73, 1.0, 0, SHORT.format(1)),
    "mne-python/test.edf": ("EDF+C", 139, 6.0, 5, SHORT.format(6)),
    "mne-python/test_edf_stim_channel.edf": ("EDF", 25, 9.59375, 0, SHORT.format(9.59375)),
    "mne-python/test_stim_channel.edf": ("EDF+C", 3, 600.0, 0, NO_CHANNEL.format(3)),
    "mne-python/test_uneven_samp.edf": ("EDF", 2, 110.0, 0, NO_CHANNEL.format(2)),
    "nsrr-edfize/simulated-01.edf": ("EDF", 3, 10.0, 0, SHORT.format(10)),
    "openpsg-edf-ts/discontinuous.edf": ("EDF+D", 1, 0.0, 12, "records have no duration, .* export it again"),
    "pyedflib/test_generator.bdf": ("BDF+C", 5, 30.0, 0, NO_CHANNEL.format(5)),
    "pyedflib/test_generator_datarec_generator_0_5.bdf": ("BDF+C", 5, 30.0, 0, NO_CHANNEL.format(5)),
    "pyedflib/test_generator_datarec_generator_2.bdf": ("BDF+C", 5, 30.0, 0, NO_CHANNEL.format(5)),
    "pyedflib/test_legacy.edf": ("EDF", 11, 600.0, 2, NO_CHANNEL.format(11)),
    "pyedflib/test_subsecond.edf": ("EDF+C", 1, 698.0, 4, NO_CHANNEL.format(1)),
    "pyedflib/test_utf8.edf": ("EDF+C", 1, 698.0, 5, NO_CHANNEL.format(1)),
    "wfdb-python/test_edfann.edf": ("EDF+C", 0, 0.0, 856, "856 annotations and no signal, .* put it beside its recording"),
}
REFUSED = {
    "nsrr-edfize/invalid-date.edf": "a header and no data records; download or export it again",
    "nsrr-edfize/zero-data-records.edf": "a header and no data records; download or export it again",
    "preraulab-deidentify/test.edf": r"samples per record of signal 1 \('C1'\) is '', not a whole number; .* export it again",
}


def test_the_lists_name_every_file(shared_data):
    zoo = shared_data / "edf-zoo"
    assert {path.relative_to(zoo).as_posix() for path in zoo.rglob("*.[be]df")} == READ.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", READ)
def test_what_can_be_read_is_read(shared_data, name):
    recording = read_recording(shared_data / "edf-zoo" / name)
    variant, signals, seconds, annotations, _ = READ[name]
    assert (recording.format, len(recording.signals), recording.duration, len(recording.annotations)) == (
        variant, signals, pytest.approx(seconds), annotations,
    )  # fmt: skip
    for index, info in enumerate(recording.signals):
        if info.problem:
            with pytest.raises(RecordingError, match="no sampling rate"):
                recording.read(index)
        else:
            assert len(recording.read(index)) == round(info.rate * seconds)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_says_why(shared_data, name):
    with pytest.raises(RecordingError, match=f"{name}: .*{REFUSED[name]}"):
        read_recording(shared_data / "edf-zoo" / name)


def test_a_build_would_quarantine_each_with_a_reason(shared_data):
    reasons = {name: reason for name, (*_, reason) in READ.items()} | REFUSED
    zoo = shared_data / "edf-zoo"
    found = {finding.path: finding.refused for finding in examine_recordings(discover(zoo), zoo, None)}
    assert len(found) == len(reasons)
    for name, reason in reasons.items():
        refused = found[str(shared_data / "edf-zoo" / name)]
        assert re.search(reason, refused), refused
