"""EDF and BDF as they are and as they should not be."""

from __future__ import annotations

import os
import warnings
from datetime import datetime

import edfio
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_edf import Made, noise, tal, write_edf

from sleepfm.errors import RecordingError
from sleepfm.signals.files import MemoryFile
from sleepfm.signals.recording import SignalInfo, open_recording, opened_recording, read_edf_extent, read_recording
from sleepfm.wording import counted

READABLE = [
    "nox-a1/subject1.edf",
    "sleep-edf/short_psg.edf",
    "sleep-edf/short_psg.bdf",
    "sleep-edf/SC4001EC-Hypnogram.edf",
    "sleep-edf/SC4001EC-Hypnogram.bdf",
    "edf-zoo/edfio/mne_test.bdf",
    "edf-zoo/edfio/test_subsecond.bdf",
    "edf-zoo/mne-python/duplicate_channel_labels.edf",
    "edf-zoo/mne-python/test.bdf",
    "edf-zoo/mne-python/test.edf",
    "edf-zoo/mne-python/test_edf_stim_channel.edf",
    "edf-zoo/mne-python/test_stim_channel.edf",
    "edf-zoo/mne-python/test_uneven_samp.edf",
    "edf-zoo/nsrr-edfize/simulated-01.edf",
    "edf-zoo/pyedflib/test_generator.bdf",
    "edf-zoo/pyedflib/test_generator_datarec_generator_0_5.bdf",
    "edf-zoo/pyedflib/test_generator_datarec_generator_2.bdf",
    "edf-zoo/pyedflib/test_legacy.edf",
    "edf-zoo/pyedflib/test_subsecond.edf",
    "edf-zoo/pyedflib/test_utf8.edf",
    "edf-zoo/wfdb-python/test_edfann.edf",
]


@pytest.mark.parametrize("name", READABLE)
def test_equals_edfio_on_real_files(shared_data, name):
    path = shared_data / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = edfio.read_edf(path) if path.suffix == ".edf" else edfio.read_bdf(path)
    recording = read_recording(path)
    assert len(recording.signals) == len(other.signals)
    for index, (info, signal) in enumerate(zip(recording.signals, other.signals, strict=True)):
        assert info.rate == pytest.approx(signal.sampling_frequency, rel=1e-9)
        samples = recording.read(index)
        assert samples.dtype == np.float32 and len(samples) == info.n_samples
        np.testing.assert_allclose(samples, signal.data, rtol=1e-6, atol=1e-6 * np.abs(signal.data).max())
    theirs = [annotation for annotation in other.annotations if annotation.text]
    assert [annotation.text for annotation in recording.annotations] == [annotation.text for annotation in theirs]
    for mine, its in zip(recording.annotations, theirs, strict=True):
        assert (mine.onset, mine.duration) == pytest.approx((its.onset, its.duration or 0.0))
    assert recording.start is not None and recording.start.time().replace(microsecond=0) == other.starttime.replace(microsecond=0)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nsrr-edfize/zero-data-records.edf", "no data records"),
        ("nsrr-edfize/invalid-date.edf", "no data records"),
        ("preraulab-deidentify/test.edf", "not a whole number"),
    ],
)
def test_unusable_real_files_say_why(shared_data, name, reason):
    with pytest.raises(RecordingError, match=reason):
        read_recording(shared_data / "edf-zoo" / name)


def test_labels_in_every_encoding(tmp_path, shared_data):
    labels = {recording.label for recording in read_recording(shared_data / "nox-a1" / "subject1.edf").signals}
    assert {"1 Impédance", "C3-M2"} <= labels
    for raw, text in [
        ("Impédance".encode(), "Impédance"),
        ("Impédance".encode("latin-1"), "Impédance"),
        ("fifteen bytes +é".encode(), "fifteen bytes +"),  # cut after 16 bytes, inside the last character
        (b"EEG\x00\x00", "EEG"),
    ]:
        path = write_edf(tmp_path / "labels.edf", [Made(raw, noise(10), 10)])
        assert read_recording(path).signals[0].label == text


@st.composite
def files(draw):
    bdf = draw(st.booleans())
    bits = 23 if bdf else 15
    records = draw(st.integers(1, 5))
    seconds = draw(st.sampled_from(["1", "0.5", "2", "10", "9.59375", "30", "0,25"]))
    signals = []
    for number in range(draw(st.integers(1, 3))):
        per_record = draw(st.integers(1, 7))
        values = st.integers(-(2**bits), 2**bits - 1)
        digital = np.array(draw(st.lists(values, min_size=records * per_record, max_size=records * per_record)))
        physical = draw(st.sampled_from([("-100", "100"), ("100", "-100"), ("0", "1.5e-3"), ("-3276.8", "3276,7")]))
        signals.append(Made(f"S{number}", digital, per_record, "uV", physical, (str(-(2**bits)), str(2**bits - 1))))
    return bdf, seconds, signals


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(made=files())
def test_samples_follow_the_specification(tmp_path, made):
    bdf, seconds, signals = made
    path = write_edf(tmp_path / "made.edf", signals, seconds=seconds, bdf=bdf)
    recording = read_recording(path)
    length = float(seconds.replace(",", "."))
    assert recording.duration == pytest.approx(length * len(signals[0].digital) / signals[0].per_record)
    for index, signal in enumerate(signals):
        low, high = (float(value.replace(",", ".")) for value in signal.physical)
        first, last = map(int, signal.limits)
        expected = low + (signal.digital - first) * (high - low) / (last - first)
        np.testing.assert_allclose(recording.read(index), expected, rtol=1e-6, atol=1e-6 * max(abs(low), abs(high)))
        info = recording.signals[index]
        assert info.rate == pytest.approx(signal.per_record / length) and info.inverted == (low > high)


def test_large_records_are_read_in_part(tmp_path):
    signals = [Made("A", noise(300_000), 150_000), Made("B", noise(40, 1), 20), Made("C", noise(200_000, 2), 100_000)]
    recording = read_recording(write_edf(tmp_path / "large.edf", signals, seconds="100"))
    for index, signal in enumerate(signals):
        expected = -100 + (signal.digital + 32768) * 200 / 65535
        np.testing.assert_allclose(recording.read(index), expected, atol=1e-4)


class Counted(MemoryFile):
    """Counts the bytes that are asked of it."""

    asked = 0

    def read(self, start: int, length: int, keep: bool = True) -> bytes:
        self.asked += length
        return super().read(start, length, keep)

    def view(self, start: int, length: int) -> memoryview:
        self.asked += length
        return super().view(start, length)


def test_a_small_file_whose_samples_are_wanted_is_read_once(tmp_path, monkeypatch):
    signals = [Made("A", noise(400), 100), Made("B", noise(400, 1), 100)]
    path, read = write_edf(tmp_path / "x.edf", signals), []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *place: read.append(place[1:]) or pread(*place))
    with opened_recording(path) as recording:
        whole = [place for place in read if place[0] == path.stat().st_size]
        found = [recording.read(index) for index in range(2)]
        assert [place for place in read if place[0] == path.stat().st_size] == whole == [(path.stat().st_size, 0)]
        path.write_bytes(b"")
        assert np.array_equal(recording.read(0), found[0]), "what was read stays"
    again = read_recording(write_edf(tmp_path / "y.edf", signals))
    assert all(np.array_equal(again.read(index), found[index]) for index in range(2))


@pytest.mark.parametrize(("per_record", "asked"), [(150_000, 2 * 40), (1_000, 2 * 2_040)], ids=["large", "small"])
def test_of_a_large_record_the_wanted_signal_alone_is_read_and_a_small_one_whole(tmp_path, per_record, asked):
    path = write_edf(tmp_path / "x.edf", [Made("A", noise(2 * per_record), per_record), Made("B", noise(40), 20)], seconds="100")
    file = Counted(path.read_bytes())
    recording = open_recording(file, path)
    before = file.asked
    assert len(recording.read(1)) == 40 and file.asked - before == asked


@pytest.mark.parametrize("bdf", [False, True], ids=["EDF+D", "BDF+D"])
def test_gaps_stay_gaps(tmp_path, bdf):
    digital = noise(6 * 4)
    stamps = [tal(f"+{t}") + text for t, text in [
        (0.25, b""), (1.25, tal("+1.5", "0.5", "Arousal")), (10.25, b""), (11.25, b""), (12.25, b""), (20, b""),
    ]]  # fmt: skip
    variant = "BDF+D" if bdf else "EDF+D"
    path = write_edf(tmp_path / "gaps.edf", [Made("EEG", digital, 4)], variant=variant, stamps=stamps, bdf=bdf)
    recording = read_recording(path)
    assert recording.format == variant and recording.start == datetime(2004, 3, 2, 22, 30, 0, 250_000)
    assert recording.gaps == ((2.0, 8.0), (13.0, 6.75))
    assert recording.duration == pytest.approx(20.75)
    samples = recording.read(0)
    physical = -100 + (digital + 32768) * 200 / 65535
    assert len(samples) == 83
    np.testing.assert_allclose(samples[:8], physical[:8], atol=1e-4)
    np.testing.assert_allclose(samples[40:52], physical[8:20], atol=1e-4)
    np.testing.assert_allclose(samples[79:], physical[20:], atol=1e-4)
    assert np.isnan(samples[8:40]).all() and np.isnan(samples[52:79]).all()
    (annotation,) = recording.annotations
    assert (annotation.onset, annotation.duration, annotation.text) == (1.25, 0.5, "Arousal")


@st.composite
def paused_clocks(draw):
    """Seconds at which records of 1 s start: rounded to 10 ms in ``D``, to half a second in ``C``, and pauses of over 2 s."""
    variant = draw(st.sampled_from(["", "EDF+C", "EDF+D"]))
    jitter = 0.009 if variant == "EDF+D" else 0.4
    onset, clock = 0.0, []
    for pause in draw(st.lists(st.one_of(st.just(0.0), st.floats(2.0, 90.0)), min_size=1, max_size=30)):
        onset += pause if clock else 0.0
        clock.append(onset)
        onset += 1.0
    noisy = [time + draw(st.floats(-jitter / 2, jitter / 2)) for time in clock]
    return variant, clock, noisy


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(made=paused_clocks(), origin=st.sampled_from([0.0, 0.25, 7.0]))
def test_samples_lie_where_time_stamps_say_whatever_the_header_declares(tmp_path, made, origin):
    """Each record holds its own second of the clock as its value, so that the signal tells where it belongs."""
    variant, clock, noisy = made
    digital = np.repeat(np.round(clock).astype(int), 4)
    stamps = [tal(f"{origin + time:+.6f}") for time in noisy]
    signal = Made("EEG", digital, 4, physical=("-32768", "32767"))
    path = write_edf(tmp_path / "c.edf", [signal], variant=variant, stamps=stamps)
    recording = read_recording(path)
    samples = recording.read(0)
    there = np.flatnonzero(np.isfinite(samples))
    assert len(there) == len(digital)
    assert np.abs(samples[there] - there / 4).max() <= 1 + 0.5
    assert recording.duration == pytest.approx(clock[-1] + 1, abs=0.41) and read_edf_extent(path)[1] >= recording.duration - 1
    assert bool(recording.gaps) == (clock[-1] >= len(clock)) and len(samples) / 4 == pytest.approx(recording.duration, abs=0.13)
    if recording.gaps and variant != "EDF+D":
        assert f"{counted(len(recording.gaps), 'gap')} of" in recording.warnings[0]


def test_a_pause_of_half_a_second_is_a_gap_and_a_late_stamp_is_none(tmp_path):
    stamps = [tal(f"+{t}") for t in (0, 1.005, 2, 3.5, 4.495, 5.5)]
    path = write_edf(tmp_path / "late.edf", [Made("EEG", noise(24), 4)], variant="EDF+D", stamps=stamps)
    recording = read_recording(path)
    assert recording.gaps == ((3.0, 0.5),) and recording.duration == 6.5
    assert np.flatnonzero(np.isnan(recording.read(0))).tolist() == [12, 13]


def test_the_step_of_a_converter_of_up_to_24_bits_is_known():
    def step(digital_min: int, digital_max: int) -> float:
        return SignalInfo("EEG", "uV", 100.0, 3000, -100.0, 300.0, digital_min, digital_max).step

    assert step(0, 100) == step(100, 0) == 4.0
    assert step(-(2**23), 2**23 - 1) == 400 / (2**24 - 1)
    assert step(-(2**23), 2**23) == 0.0


def test_a_header_that_claims_more_records_says_how_many_are_missing(tmp_path):
    path = write_edf(tmp_path / "cut.edf", [Made("EEG", noise(40), 4)], claimed=40, tail=b"abc")
    (warning,) = read_recording(path).warnings
    assert warning.startswith(
        "header claims 40 records; the file holds 10 and 3 bytes of the next: the last 30 (75.0%) are missing"
    )


def test_rounded_time_stamps_are_no_pauses(tmp_path):
    stamps = [tal(f"+{0.3 * i:.0f}") for i in range(60)]
    path = write_edf(tmp_path / "r.edf", [Made("EEG", noise(240), 4)], seconds="0.3", variant="EDF+C", stamps=stamps)
    recording = read_recording(path)
    assert recording.duration == pytest.approx(18) and not recording.gaps and "up to 0.5 s off" in recording.warnings[0]


def test_time_stamps_that_leave_the_rate_of_the_header_are_followed(tmp_path):
    """Records that take 1.02 s by the clock: after an hour a continuous reading would be 72 s early."""
    stamps = [tal(f"+{1.02 * i:.2f}") for i in range(600)]
    signal = Made("EEG", np.arange(600).repeat(4), 4, physical=("-32768", "32767"))
    recording = read_recording(write_edf(tmp_path / "s.edf", [signal], variant="EDF+C", stamps=stamps))
    samples = recording.read(0)
    there = np.flatnonzero(np.isfinite(samples))
    assert np.abs(samples[there] * 1.02 - there / 4).max() < 2.1 and len(there) == 2400
    fast = [tal(f"+{0.98 * i:.2f}") for i in range(600)]
    with pytest.raises(RecordingError, match="time stamps are damaged"):
        read_recording(write_edf(tmp_path / "f.edf", [signal], variant="EDF+C", stamps=fast))


@pytest.mark.parametrize(
    ("stamps", "reason"),
    [
        ([tal("+0"), tal("+5"), tal("+2")], "before record 2 ends"),
        ([tal("+0"), b"", tal("+2")], "no time stamp"),
        ([tal("+0"), tal("+1"), tal("+99999999")], "span"),
        ([tal("+0"), tal("+1"), tal("+500")], "span"),
    ],
)
def test_damaged_time_stamps_are_refused(tmp_path, stamps, reason):
    path = write_edf(tmp_path / "d.edf", [Made("EEG", noise(12), 4)], variant="EDF+D", stamps=stamps)
    with pytest.raises(RecordingError, match=reason):
        read_recording(path)
    path = write_edf(tmp_path / "c.edf", [Made("EEG", noise(12), 4)], variant="EDF+C", stamps=stamps)
    if reason == "no time stamp":  # and those that there are leave no pause
        assert read_recording(path).duration == 3.0
    else:
        with pytest.raises(RecordingError, match=reason):
            read_recording(path)


def test_a_pause_that_an_unstamped_record_hides_is_refused(tmp_path):
    path = write_edf(tmp_path / "c.edf", [Made("EEG", noise(12), 4)], variant="EDF+C", stamps=[tal("+0"), b"", tal("+99")])
    with pytest.raises(RecordingError, match="record 2 has no time stamp"):
        read_recording(path)


def test_annotations_of_a_file_without_its_first_stamp_stay_with_the_samples(tmp_path):
    stamps = [tal("+7", "", "Arousal"), tal("+7"), tal("+8")]
    recording = read_recording(write_edf(tmp_path / "u.edf", [Made("EEG", noise(12), 4)], variant="EDF+C", stamps=stamps))
    assert recording.annotations[0].onset == 1.0 and recording.start == datetime(2004, 3, 2, 22, 30, 6)


def test_pauses_of_more_than_a_day_are_damage(tmp_path):
    signal = Made("EEG", noise(2 * 3600), 3600)
    for pause, fits in ((86_000, True), (90_000, False)):
        stamps = [tal("+5"), tal(f"+{5 + 3600 + pause}")]
        path = write_edf(tmp_path / "d.edf", [signal], seconds="3600", variant="EDF+D", stamps=stamps)
        if fits:
            assert read_recording(path).duration == read_edf_extent(path)[1] == 2 * 3600 + pause
        else:
            with pytest.raises(RecordingError, match=r"span 27\.0 h for 7200 s of signal"):
                read_recording(path)
            assert read_edf_extent(path)[1] == 7200 + 86_400


def test_the_extent_of_a_recording_without_pauses_is_that_of_its_records(tmp_path):
    for variant, stamps in (("", None), ("EDF+C", [tal("+0"), tal("+1")]), ("EDF+D", [tal("+0"), b""])):
        path = write_edf(tmp_path / "e.edf", [Made("EEG", noise(8), 4)], variant=variant, stamps=stamps)
        assert read_edf_extent(path)[1] == 2.0


def test_a_flood_of_annotations_is_refused(tmp_path):
    path = write_edf(tmp_path / "f.edf", [Made("EEG", noise(4), 4)], variant="EDF+C", stamps=[b"+1\x14W\x14\0" * 250_001])
    with pytest.raises(RecordingError, match="more than 250000 annotations"):
        read_recording(path)


@pytest.mark.parametrize("claimed", [-1, 7, 2, 0, "", "junk"])
def test_a_wrong_record_count_is_repaired(tmp_path, claimed):
    path = write_edf(tmp_path / "n.edf", [Made("EEG", noise(20), 4)], claimed=claimed)
    recording = read_recording(path)
    assert recording.duration == 5.0 and len(recording.read(0)) == 20 and "holds 5" in recording.warnings[0]


def test_trailing_bytes_are_ignored_with_a_warning(tmp_path):
    path = write_edf(tmp_path / "t.edf", [Made("EEG", noise(20), 4)], tail=b"\x07")
    recording = read_recording(path)
    assert recording.duration == 5.0 and recording.warnings == ("1 bytes after the last record are ignored",)
    path = write_edf(tmp_path / "t.edf", [Made("EEG", noise(20), 4)], claimed=3, tail=b"\x07")
    (warning,) = read_recording(path).warnings
    assert warning == "17 bytes (2 records and 1 bytes) after the last record are ignored"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    kept=st.integers(0, 40), claimed=st.sampled_from([5, -1, 0]), version=st.sampled_from([b"0", b"0\x1a", b"\xef0", b"0      7"])
)
def test_what_is_whole_of_a_file_that_was_cut_off_is_read(tmp_path, kept, claimed, version):
    digital = noise(20)
    path = write_edf(tmp_path / "t.edf", [Made("EEG", digital, 4)], claimed=claimed)
    content = version.ljust(8) + path.read_bytes()[8:]
    path.write_bytes(content[: len(content) - 40 + kept])
    whole, rest = divmod(kept, 8)
    if not whole:
        with pytest.raises(RecordingError, match=r"t\.edf: has a header and .*download or export it again"):
            read_recording(path)
        return
    recording = read_recording(path)
    np.testing.assert_allclose(recording.read(0), -100 + (digital[: 4 * whole] + 32768) * 200 / 65535, atol=1e-4)
    assert recording.duration == whole == read_edf_extent(path)[1]
    said = " ".join(recording.warnings)
    assert ("version field" in said) == (version != b"0")
    assert (f"holds {whole}" in said) == (whole < 5 or claimed != 5)
    assert (f"and {rest} bytes of the next" in said) == bool(rest)
    assert (f"{(5 - whole) / 5:.1%}" in said) == (whole < 5 and claimed == 5)


def test_a_file_that_ends_inside_its_header_is_refused(tmp_path):
    path = write_edf(tmp_path / "t.edf", [Made("EEG", noise(20), 4)])
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(RecordingError, match="damaged or truncated"):
        read_recording(path)


@pytest.mark.parametrize("version", [b"\xfeBIOSEMI", b"1", b"", b"8\0\0\0"])
def test_a_version_field_without_its_zero_is_no_edf(tmp_path, version):
    path = write_edf(tmp_path / "v.edf", [Made("EEG", noise(20), 4)])
    path.write_bytes(version.ljust(8) + path.read_bytes()[8:])
    with pytest.raises(RecordingError, match="neither EDF nor BDF"):
        read_recording(path)


def test_a_file_that_shrinks_while_open_is_an_error(tmp_path):
    path = write_edf(tmp_path / "t.edf", [Made("EEG", noise(20), 4)])
    recording = read_recording(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(RecordingError, match="became shorter while it was read"):
        recording.read(0)


def test_invalid_dates_and_flat_ranges(tmp_path):
    signals = [Made("A", noise(4), 4, physical=("5", "5")), Made("B", noise(4), 4, limits=("3", "3"))]
    recording = read_recording(write_edf(tmp_path / "x.edf", signals, start=("00.00.00", "25.61.00")))
    assert recording.start is None and "not a date" in recording.warnings[0]
    for index, reason in enumerate(["physical range", "digital range"]):
        with pytest.raises(RecordingError, match=reason):
            recording.read(index)


def test_the_long_year_of_edf_plus(tmp_path):
    path = write_edf(
        tmp_path / "y.edf", [Made("A", noise(4), 4)], variant="EDF+C", stamps=[tal("+0")],
        start=("24.04.09", "01.02.03"), recording="Startdate 24-APR-1909 X X X",
    )  # fmt: skip
    assert read_recording(path).start == datetime(1909, 4, 24, 1, 2, 3)


@pytest.mark.parametrize("content", [b"", b"0" * 100, b"PK\x03\x04" + b"\0" * 400, b"0       " + b" " * 600])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other.edf"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=r"other\.edf"):
        read_recording(path)


def test_folders_and_missing_files_are_refused(tmp_path):
    with pytest.raises(RecordingError, match="not a regular file"):
        read_recording(tmp_path)
    with pytest.raises(RecordingError, match="cannot be read"):
        read_recording(tmp_path / "none.edf")
