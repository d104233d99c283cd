"""Recordings and scorings by URL: a real S3 client against a local server, over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from made_edf import Made, noise, tal, write_edf

import sleepfm
from sleepfm.cli import main
from sleepfm.errors import AnnotationError, ConfigError, RecordingError
from sleepfm.signals.cohorts.catalogue import load_cohort
from sleepfm.signals.discover import discover
from sleepfm.signals.files import file_size, location
from sleepfm.signals.prepare import prepare
from sleepfm.signals.scorings.finder import find_scoring
from sleepfm.signals.scorings.reader import read_scoring


@pytest.fixture
def night(tmp_path):
    """An SHHS night of two minutes as NSRR lays it out, stages of 30 s each."""
    edf = tmp_path / "nsrr" / "edfs" / "shhs1" / "shhs1-200001.edf"
    xml = tmp_path / "nsrr" / "annotations-events-nsrr" / "shhs1" / "shhs1-200001-nsrr.xml"
    for path in (edf, xml):
        path.parent.mkdir(parents=True)
    signals = [Made(label, noise(125 * 120, n), 125) for n, label in enumerate(["EEG(sec)", "EEG", "EMG"])]
    signals += [Made(label, noise(50 * 120, n), 50) for n, label in enumerate(["EOG(L)", "EOG(R)"], 3)]
    write_edf(edf, signals)
    stages = "".join(
        f"<ScoredEvent><EventType>Stages|Stages</EventType><EventConcept>Wake|0</EventConcept>"
        f"<Start>{30 * i}</Start><Duration>30</Duration></ScoredEvent>"
        for i in range(4)
    )
    xml.write_text(f"<PSGAnnotation><ScoredEvents>{stages}</ScoredEvents></PSGAnnotation>", encoding="utf-8")
    return edf


def test_a_recording_by_url_is_the_recording_on_disk(s3, shared_data):
    folder = shared_data / "sleep-edf"
    url = s3.upload(folder, "sleep-edf")
    for name in ("short_psg.edf", "short_psg.bdf", "SC4001EC-Hypnogram.edf"):
        local, remote = sleepfm.read_recording(folder / name), sleepfm.read_recording(f"{url}/{name}")
        assert str(remote.path) == f"{url}/{name}"
        assert (remote.signals, remote.annotations, remote.start, remote.warnings) == (
            local.signals, local.annotations, local.start, local.warnings,
        )  # fmt: skip
        for index in range(len(local.signals)):
            np.testing.assert_array_equal(remote.read(index), local.read(index))


def test_a_url_with_one_slash_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="a URL needs two slashes: s3://bucket/out"):
        location("s3:/bucket/out")
    (tmp_path / "s3:").mkdir()
    assert location("s3:/").is_dir()


def test_discontinuous_recordings_keep_their_gaps(s3, tmp_path):
    path = write_edf(
        tmp_path / "d.edf",
        [Made("EEG", noise(8), 4)],
        variant="EDF+D",
        stamps=[tal("+0"), tal("+9", "", "") + tal("+9", "1", "x")],
    )
    recording = sleepfm.read_recording(s3.put("d.edf", path.read_bytes()))
    assert recording.gaps == ((1.0, 8.0),) and [a.text for a in recording.annotations] == ["x"]
    assert np.isnan(recording.read(0)[4:36]).all()


def test_one_download_in_bounded_memory_serves_all_signals(s3, tmp_path):
    rates = [4000, 4000, 100, 100]
    path = write_edf(tmp_path / "big.edf", [Made(f"S{n}", noise(rate * 1000, n), rate) for n, rate in enumerate(rates)])
    content = path.read_bytes()
    url = s3.put("big.edf", content)
    assert len(content) > 16e6
    tracemalloc.start()
    local = sleepfm.read_recording(path)
    local.read(2)
    assert tracemalloc.get_traced_memory()[1] < 10e6  # a block, never the whole file, of which one signal is decoded
    tracemalloc.reset_peak()
    recording = sleepfm.read_recording(url)
    small = [recording.read(2), recording.read(3)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # One range, copied a few times on its way through the client, and never the whole file.
    assert peak < 14e6 < len(content)
    for index, samples in zip((2, 3), small, strict=True):
        np.testing.assert_array_equal(samples, local.read(index))
    np.testing.assert_array_equal(recording.read(0), local.read(0))
    # Two requests for the header, and each range of 4 MiB once, for three signals.
    assert s3.gets("big.edf") == 2 + -(-len(content) // (1 << 22))


def test_only_headers_are_fetched_to_list_a_folder(s3, night):
    url = s3.upload(night.parents[2], "listed")
    assert [str(path) for path in discover(url)] == [f"{url}/edfs/shhs1/shhs1-200001.edf"]
    assert s3.gets("listed/edfs/shhs1/shhs1-200001.edf") == 2


def test_a_folder_of_nights_is_listed_without_a_request_for_each(s3, night):
    large = night.read_bytes().ljust((16 << 20) + 1, b"\0")  # as recordings are; no file of annotations alone is
    for number in range(4):
        s3.put(f"many/edfs/shhs1/shhs1-20000{number}.edf", large)
    before = len(s3.requests())
    paths = list(discover("s3://sleep/many"))
    assert [path.name for path in paths] == [f"shhs1-20000{number}.edf" for number in range(4)]
    assert [file_size(path) for path in paths] == 4 * [len(large)]
    assert not [request for request in s3.requests()[before:] if ".edf" in request]


def test_what_is_added_after_a_listing_is_found(s3, night):
    url = s3.upload(night.parent, "growing/edfs")
    assert len(discover(url)) == 1
    added = s3.put("growing/edfs/shhs1-200002.edf", night.read_bytes())
    assert sleepfm.read_recording(added).duration == 120
    assert [path.name for path in discover(url)] == ["shhs1-200001.edf", "shhs1-200002.edf"]
    other = s3.upload(night.parent, "growing/more")
    assert [str(path) for path in discover(other)] == [f"{other}/shhs1-200001.edf"]


def test_scorings_are_found_beside_a_recording_by_url(s3, night):
    url = s3.upload(night.parents[2], "nsrr")
    edf = location(f"{url}/edfs/shhs1/shhs1-200001.edf")
    for root in (location(url), None):
        found = find_scoring(edf, root, load_cohort("shhs1"))
        assert str(found) == f"{url}/annotations-events-nsrr/shhs1/shhs1-200001-nsrr.xml"
    assert len(read_scoring(found).stages) == len(read_scoring(str(found)).stages) == 4
    assert find_scoring(edf.with_name("shhs1-200002.edf"), None, load_cohort("shhs1")) is None
    local, remote = prepare(night, root=night.parents[2]), prepare(str(edf), root=location(url))
    assert remote.provenance == local.provenance and remote.stage.tolist() == local.stage.tolist() == [0] * 4
    for name, samples in local.channels.items():
        np.testing.assert_array_equal(remote.channels[name], samples)


def test_wildcards_find_scorings_by_url(s3, shared_data):
    url = s3.upload(shared_data / "sleep-edf", "wild")
    edf = location(f"{url}/short_psg.edf")
    assert str(find_scoring(edf, location(url), load_cohort("sleep-edf"))) == f"{url}/SC4001EC-Hypnogram.edf"
    s3.put("wild/SC4001E0-PSG.edf", (shared_data / "sleep-edf" / "short_psg.edf").read_bytes())
    found = find_scoring(location(f"{url}/SC4001E0-PSG.edf"), None, load_cohort("sleep-edf"))
    assert str(found) == f"{url}/SC4001EC-Hypnogram.edf"


def test_the_doctor_takes_a_url(s3, night, capsys):
    url = s3.upload(night.parents[2], "doctor")
    s3.put("doctor/edfs/shhs1/broken.edf", b"not a recording" * 30)
    assert main(["doctor", url, "--json"]) == 1
    refused, usable = json.loads(capsys.readouterr().out)
    assert refused["path"] == f"{url}/edfs/shhs1/broken.edf" and "neither EDF nor BDF" in refused["refused"]
    assert (usable["cohort"], usable["scored_epochs"], usable["refused"]) == ("shhs1", 4, "")
    assert main(["doctor", f"{url}/edfs/shhs1/shhs1-200001.edf"]) == 0


def test_what_is_not_there_is_refused_by_its_url(s3):
    for url in ("s3://sleep/none.edf", "s3://no-such-bucket/none.edf"):
        with pytest.raises(RecordingError, match=rf"{url}: cannot be read"):
            sleepfm.read_recording(url)
        with pytest.raises(AnnotationError, match=rf"{url}: cannot be read"):
            read_scoring(url)
    with pytest.raises(RecordingError, match="no such file or folder"):
        discover("s3://sleep/nothing/here")


def test_missing_credentials_are_a_reason(s3):
    code = "import sleepfm; sleepfm.read_recording('s3://sleep/x.edf')"
    environment = {
        "PATH": "/usr/bin",
        "FSSPEC_S3_ENDPOINT_URL": s3.endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": "/nowhere",
    }
    environment["PYTHONPATH"] = ":".join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "sleepfm.errors.RecordingError: s3://sleep/x.edf: cannot be read (" in done.stderr
    assert "redentials" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("gs://bucket/night.edf", r"gs:// needs a package that is not installed .*; pip install gcsfs"),
        ("nonsense://bucket/night.edf", r"nonsense:// is not a protocol that fsspec supports"),
    ],
)
def test_a_protocol_without_its_package_names_the_package(url, reason):
    for use in (sleepfm.read_recording, read_scoring, discover, prepare):
        with pytest.raises(ConfigError, match=reason):
            use(url)
    assert main(["doctor", url]) == 2


def test_s3_names_its_extra(monkeypatch):
    import fsspec

    def absent(protocol):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", absent)
    with pytest.raises(ConfigError, match=r"Install s3fs.*pip install '\.\[s3\]'"):
        sleepfm.read_recording("s3://bucket/night.edf")


def test_other_file_systems_of_fsspec(tmp_path):
    import fsspec

    path = write_edf(tmp_path / "m.edf", [Made("EEG", noise(20), 4)])
    with fsspec.open("memory://folder/m.edf", "wb") as file:
        file.write(path.read_bytes())
    np.testing.assert_array_equal(sleepfm.read_recording("memory://folder/m.edf").read(0), sleepfm.read_recording(path).read(0))
    assert sleepfm.read_recording(f"file://{path}").path == path


def test_a_listing_of_many_objects_is_read_page_by_page(s3, night, monkeypatch):
    """Of more than a few pages the client keeps nothing; names and sizes are all that is kept here."""
    from sleepfm.signals import listing

    for number in range(10):
        s3.put(f"pages/{number % 3}/n{number}.{'edf' if number % 2 else 'xml'}", b"x" * number)
    s3.put("pages/.hidden/a.edf", b"x")
    root, counted = location("s3://sleep/pages"), []
    whole = listing.list_names(root, (".edf",))
    assert whole == {"0/n3.edf": 3, "0/n9.edf": 9, "1/n1.edf": 1, "1/n7.edf": 7, "2/n5.edf": 5}
    root.fs.invalidate_cache()
    monkeypatch.setattr(root.fs, "req_kw", {"MaxKeys": 4})
    monkeypatch.setattr(listing, "_KEPT_BY_CLIENT", 4)
    assert list(listing.list_names(root, (".edf",), progress=counted.append).items()) == list(whole.items())
    assert len(counted) == 2 and counted[-1] == 5  # of three pages, the first two at once
    assert not root.fs.dircache
    url = s3.upload(night.parents[2], "paged")
    monkeypatch.setattr(listing, "_KEPT_BY_CLIENT", 0)
    ((path, found),) = discover(url).items()
    assert path.name == night.name and found.size == night.stat().st_size
