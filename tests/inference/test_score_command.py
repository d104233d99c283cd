"""``sleepfm score`` over many recordings: what it finds, skips, refuses and sums up."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from datetime import timedelta
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from made_edf import Made, noise, write_edf
from ray.cluster_utils import Cluster

from sleepfm.cli import main
from sleepfm.commands.score_inputs import Job, NoJob, named_apart
from sleepfm.commands.score_night import choose_lights
from sleepfm.config import read_yaml
from sleepfm.constants import STAGE_NAMES
from sleepfm.errors import RecordingError, UsageError
from sleepfm.evaluation.lights import BY_ANNOTATION, BY_OPTION, BY_RULE
from sleepfm.inference.scorer import Scorer, prepare_night
from sleepfm.models.build import build_model, model_config
from sleepfm.models.context import ContextConfig
from sleepfm.models.downstream import Downstream, DownstreamConfig
from sleepfm.models.usage import Usage
from sleepfm.paths import config_root
from sleepfm.registry.package import write_package
from sleepfm.reports.cohort_summary import _agreement
from sleepfm.signals.cohorts.by_hand import parse_channels
from sleepfm.signals.recording import read_recording
from sleepfm.signals.scorings.lights import find_lights
from sleepfm.signals.scorings.writers.night import WrittenNight, scoring_files
from sleepfm.tasks import TASKS


@pytest.fixture(scope="module")
def stage_model(downstream_packages):
    return ["--model", str(downstream_packages["stage"])]


@pytest.fixture(scope="module")
def graded_model(tmp_path_factory):
    """Stages by EEG_C4 alone, whose probabilities differ from second to second without one of them being 1."""
    folder = tmp_path_factory.mktemp("graded")
    torch.manual_seed(0)
    encoder = build_model(read_yaml(config_root() / "models" / "neuronet-tiny.yaml")["model"] | {"channels": ["EEG_C4"]})
    task = TASKS["stage"]
    plan = DownstreamConfig(
        task=task.name, classes=task.classes, encoder=model_config(encoder), context=ContextConfig(kind="mamba")
    )
    model = Downstream(plan, encoder)
    with torch.no_grad():
        model.head.layers[-1].weight.mul_(8.0)
    usage = Usage(task=task.name, classes=task.classes, window=20)
    write_package(folder, model, {"model": model_config(model)} | usage.to_package(), "card")
    return ["--model", str(folder)]


@pytest.fixture
def scored(monkeypatch):
    """Each night as the models get it, and what they say of it."""
    found, score = [], Scorer.score

    def kept(self, night, **told):
        found.append((night, score(self, night, **told)))
        return found[-1][1]

    monkeypatch.setattr(Scorer, "score", kept)
    return found


@pytest.fixture
def folder(recordings, tmp_path):
    found = tmp_path / "recordings"
    (found / "deep").mkdir(parents=True)
    for number, path in enumerate(recordings[:3]):
        shutil.copy(path, found / "deep" / path.name if number else found / path.name)
    (found / "broken.edf").write_bytes(recordings[0].read_bytes()[:3000])
    return found


def lines(capsys):
    printed = capsys.readouterr()
    return printed.out.splitlines(), printed.err.splitlines()


def test_what_is_not_there_is_told_before_a_registry_is_missed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["score", "nope.edf", "--out", "scored"]) == 1
    assert lines(capsys) == ([], ["refused: nope.edf: no such file or folder"])
    assert main(["score", "nope.edf", "neither.edf", "--out", "scored"]) == 1
    assert lines(capsys)[0] == ["0 scored, 2 refused:", "       2  no such file or folder"]
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_the_results_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")
    for out in ("taken", "taken/deeper"):
        assert main(["score", "night.edf", "--out", out]) == 1
        assert lines(capsys)[1] == [
            "error: taken: a file of that name is in the way of a folder; move it away, or give another folder"
        ]


def test_a_folder_is_scored_once_and_summed_up(folder, stage_model, tmp_path, capsys):
    """Results below the folder of recordings, in which the EDF+ scorings are no recordings of the next call."""
    call = ["score", str(folder), *stage_model, "--out", str(folder / "scored"), "--json"]
    assert main(call) == 1
    printed, errors = lines(capsys)
    told = [json.loads(line) for line in printed]
    assert [item["status"] for item in told].count("scored") == 3 and len(errors) == 1 and "broken.edf" in errors[0]
    table = pd.read_parquet(folder / "scored" / "summary" / "summary.parquet")
    assert list(table["status"]).count("scored") == 3 and table["reason"].notna().sum() == 1
    assert "broken.edf" not in table["reason"].dropna().iloc[0]
    assert len(pd.read_csv(folder / "scored" / "summary" / "summary.csv")) == 4
    scored = next(item for item in told if item["status"] == "scored")["summary"]
    row = table[table["record"] == scored["record"]].iloc[0]
    assert row["sleep_total_sleep_time"] == scored["sleep"]["total_sleep_time"]
    # Nobody looked for events.
    assert pd.isna(row["breathing_ahi"]) and scored["breathing"]["ahi"] is None

    written = {path: path.stat().st_mtime_ns for path in (folder / "scored").glob("*/stages.csv")}
    assert main(call) == 1
    told = [json.loads(line) for line in lines(capsys)[0]]
    assert [item["status"] for item in told].count("done before") == 3 and len(told) == 4
    assert {path: path.stat().st_mtime_ns for path in written} == written
    one = folder / next(path for path in os.listdir(folder) if path.startswith("shhs"))
    # A file that somebody took away is written again.
    gone = folder / "scored" / one.stem / "events.csv"
    content = gone.read_bytes()
    gone.unlink()
    for status in ("scored", "done before"):
        assert main(["score", str(one), *call[2:]]) == 0
        (told,) = [json.loads(line) for line in lines(capsys)[0]]
        assert told["status"] == status and gone.read_bytes() == content
    # Another option is another result.
    assert main(["score", str(one), *call[2:], "--lights-off", "+60"]) == 0
    (summary,) = [json.loads(line) for line in lines(capsys)[0]]
    assert summary["status"] == "scored" and summary["summary"]["lights"]["off_from"] == BY_OPTION


def test_one_folder_a_patient_gives_one_folder_a_night(recordings, stage_model, tmp_path, capsys):
    tree, out = tmp_path / "tree", tmp_path / "out"
    for patient, path in zip(("P1", "P2"), recordings, strict=False):
        (tree / patient).mkdir(parents=True)
        shutil.copy(path, tree / patient / "psg.edf")
    call = [*stage_model, "--out", str(out), "--json"]
    # A patient alone is named as ever, and is found there when there are others.
    assert main(["score", str(tree / "P1" / "psg.edf"), *call]) == 0
    assert main(["score", str(tree), *call]) == 0
    first, again, other = (json.loads(line) for line in lines(capsys)[0])
    assert [item["status"] for item in (first, again, other)] == ["scored", "done before", "scored"]
    assert [item["record"] for item in (first, again, other)] == ["psg", "psg", "P2-psg-edf"]
    assert other["folder"] == str(out / "P2-psg-edf") and other["summary"]["record"] == "P2-psg-edf"
    assert list(pd.read_parquet(out / "summary" / "summary.parquet")["record"]) == ["P2-psg-edf", "psg"]
    # In another folder both are named by their paths, and a second call finds them.
    call[-2] = str(tmp_path / "apart")
    for status in ("scored", "done before"):
        assert main(["score", str(tree / "P1"), str(tree / "P2"), *call]) == 0
        told = [json.loads(line) for line in lines(capsys)[0]]
        assert [(item["record"], item["status"]) for item in told] == [("P1-psg-edf", status), ("P2-psg-edf", status)]


@pytest.mark.parametrize(
    ("words", "files", "records"),
    [
        (["tree"], ["tree/P1/psg.edf", "tree/P2/psg.edf", "tree/x.edf"], ["P1-psg-edf", "P2-psg-edf", ""]),
        (["tree/"], ["tree/P1/a/psg.edf", "tree/P1/b/psg.edf"], ["P1-a-psg-edf", "P1-b-psg-edf"]),
        (["."], ["P1/a/psg.edf", "P1/b/psg.edf"], ["P1-a-psg-edf", "P1-b-psg-edf"]),
        (["tree/*/psg.edf"], ["tree/P1/psg.edf", "tree/P2/psg.edf"], ["P1-psg-edf", "P2-psg-edf"]),
        (["a", "b"], ["a/P1/psg.edf", "b/P1/psg.edf"], ["a-P1-psg-edf", "b-P1-psg-edf"]),
        (["/x/P1/psg.edf", "P2/psg.edf"], ["/x/P1/psg.edf", "P2/psg.edf"], ["x-P1-psg-edf", "P2-psg-edf"]),
        (["memory://n"], ["memory://n/P1/psg.edf", "memory://n/P2/psg.edf"], ["P1-psg-edf", "P2-psg-edf"]),
        # One stem, two formats.
        (["n"], ["n/P1.edf", "n/P1.bdf", "n/P2.edf"], ["P1-edf", "P1-bdf", ""]),
        (["psg.edf"], ["psg.edf"], [""]),
        (["x"], [], []),
    ],
)
def test_only_nights_of_one_name_are_named_by_their_paths(words, files, records):
    refused = NoJob("tree/P3/psg.edf", RecordingError("none"))
    named = named_apart([refused, *map(Job, files)], words)
    assert named[0] is refused and [job.record for job in named[1:]] == records


def test_a_recording_under_one_epoch_is_refused_by_name(stage_model, tmp_path, capsys):
    short = write_edf(tmp_path / "short.edf", [Made("C4-M1", noise(29 * 100), 100)])
    call = ["score", str(short), *stage_model, "--out", str(tmp_path / "out")]
    reason = f"{short}: 29 s long, shorter than one 30-s epoch"
    assert main(call) == 1
    assert lines(capsys) == ([], [f"refused: {reason}"])
    assert main([*call, "--json"]) == 1
    (told,) = map(json.loads, lines(capsys)[0])
    assert told == {"status": "refused", "file": str(short), "reason": reason}
    assert not list((tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("seconds", [1, 5])
def test_a_finer_hypnodensity_is_written_in_steps_of_the_resolution(recordings, graded_model, scored, tmp_path, seconds):
    # Three epochs are enough: the models go through the night up to 30 times.
    content = bytearray(recordings[0].read_bytes())
    header, records = int(content[184:192]), int(content[236:244])
    assert records == 900
    content[236:244] = b"90".ljust(8)
    path = tmp_path / "night.edf"
    path.write_bytes(content[: header + (len(content) - header) // records * 90])
    assert main(["score", str(path), *graded_model, "--out", str(tmp_path), "--resolution", f"{seconds}s"]) == 0
    folder = tmp_path / "night"
    assert [found.name for found in folder.glob("hypnodensity-*")] == [f"hypnodensity-{seconds}s.csv"]
    table = pd.read_csv(folder / f"hypnodensity-{seconds}s.csv")
    assert list(table.columns) == ["onset_s", *STAGE_NAMES]
    assert table["onset_s"].tolist() == list(range(0, 90, seconds))
    density = table[list(STAGE_NAMES)].to_numpy()
    # Five digits are written.
    assert np.allclose(density.sum(axis=1), 1, atol=5e-5) and (density >= 0).all()
    fine, epochs = scored[0][1].fine.probability, density.reshape(3, -1, 5)
    assert np.allclose(epochs.mean(axis=1), fine.reshape(3, -1, 5).mean(axis=1), atol=1e-5)
    # An epoch has no value that its steps repeat, and its own is that in its middle.
    assert (np.ptp(epochs, axis=1).max(axis=1) > 1e-3).all()
    whole = pd.read_csv(folder / "hypnodensity.csv")
    assert whole["onset_s"].tolist() == [0, 30, 60]
    assert np.allclose(epochs[:, {1: 14, 5: 2}[seconds]], whole[list(STAGE_NAMES)], atol=2e-5)
    by_second = pd.read_parquet(folder / "probabilities.parquet")[[f"stage_{name}" for name in STAGE_NAMES]]
    assert np.allclose(by_second, np.repeat(density, seconds, axis=0), atol=1e-5)


def test_nothing_of_the_users_is_replaced(folder, stage_model, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "summary").mkdir(parents=True)
    (out / "summary" / "mine.txt").write_text("mine")
    one = next(folder.glob("shhs*.edf"))
    assert main(["score", str(one), *stage_model, "--out", str(out)]) == 1
    assert "summary: contains files that this program did not write" in capsys.readouterr().err
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["mine.txt"]


def test_patterns_and_urls_name_recordings(folder, stage_model, tmp_path, capsys):
    one = next(folder.glob("shhs*.edf"))
    store = fsspec.filesystem("memory")
    store.pipe("/nights/a/" + one.name, one.read_bytes())
    try:
        assert main(["score", "memory://nights/*/shhs*.edf", *stage_model, "--out", str(tmp_path / "url")]) == 0
    finally:
        store.rm("/nights", recursive=True)
    assert main(["score", str(folder / "shhs*.edf"), *stage_model, "--out", str(tmp_path / "disk")]) == 0
    hypnograms = [np.load(next((tmp_path / name).glob("shhs*/hypnogram.npy"))) for name in ("url", "disk")]
    assert np.array_equal(*hypnograms)
    assert main(["score", str(folder / "nothing-*.edf"), *stage_model, "--out", str(tmp_path / "disk")]) == 2
    assert "matches no file" in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_that_dies_takes_no_recording_with_it(folder, stage_model, tmp_path):
    """As the kernel ends one that takes too much memory: what it was at is scored by another."""
    killed: list[int] = []

    def kill_one():
        while not killed:
            for child in psutil.Process().children():
                if "spawn_main" in " ".join(child.cmdline()) and child.cpu_times().user > 1.0:
                    child.kill()
                    killed.append(child.pid)
                    return
            time.sleep(0.05)

    watcher = threading.Thread(target=kill_one, daemon=True)
    watcher.start()
    (folder / "broken.edf").unlink()
    assert main(["score", str(folder), *stage_model, "--out", str(tmp_path / "out"), "--workers", "2"]) == 0
    assert killed and len(list((tmp_path / "out").glob("shhs*/summary.json"))) == 3


@pytest.mark.slow
def test_processes_and_a_cluster_write_what_one_process_writes(folder, stage_model, tmp_path, capsys, monkeypatch):
    call = ["score", str(folder), *stage_model, "--out"]
    assert main([*call, str(tmp_path / "one")]) == 1
    assert main([*call, str(tmp_path / "two"), "--workers", "2"]) == 1
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    try:
        assert main([*call, str(tmp_path / "ray")]) == 1
        none = ["--model", str(tmp_path / "none"), "--out", str(tmp_path / "no")]
        assert main(["score", str(folder), *none]) == 1
        assert "none" in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / "no").exists()
    finally:
        cluster.shutdown()
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").glob("shhs*/s*.[cex]*"))
    assert len(names) >= 9
    for other in ("two", "ray"):
        for name in names:
            assert (tmp_path / other / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), (other, name)


def test_a_channel_by_hand_is_that_channel_or_a_refusal(folder, stage_model, tmp_path, capsys):
    one = next(folder.glob("shhs*.edf"))
    assert main(["score", str(one), *stage_model, "--out", str(tmp_path / "a"), "--channel", "EEG_C4=EEG(sec):EEG"]) == 0
    summary = json.loads(next((tmp_path / "a").glob("shhs*/summary.json")).read_text())
    used = summary["provenance"]["channels"]["EEG_C4"]
    assert used["signal"] == "EEG(sec)" and used["reference"] == ["EEG"]
    assert main(["score", str(one), *stage_model, "--out", str(tmp_path / "b"), "--channel", "EEG_C4=C9:A1"]) == 1
    assert "EEG_C4=C9:A1" in capsys.readouterr().err and not list((tmp_path / "b").glob("shhs*"))
    for wrong in ("EEG_C4", "EEG_C9=C4", "EEG_C4="):
        with pytest.raises(UsageError, match="--channel"):
            parse_channels([wrong])
    with pytest.raises(UsageError, match="twice"):
        parse_channels(["ECG=a", "ECG=b"])


def slow_waves(n_epochs, sign=1.0, seed=0):
    """Digital samples [n] of an EEG at 100 Hz whose negative peaks are the sharp ones, where ``sign`` is 1."""
    peaks = np.exp(3.0 * np.cos(2 * np.pi * 0.8 * np.arange(n_epochs * 3000) / 100))
    return np.round(sign * (4000.0 - 800.0 * peaks)).astype(int) + noise(len(peaks), seed, 600.0)


def test_a_channel_by_hand_has_the_samples_of_a_file_that_holds_the_derivation(graded_model, scored, tmp_path):
    """C4 is upside down, which is found only where the derivation is known to be against an ear."""
    # Polarity is weighed from twenty epochs on.
    n = 21
    a1, a2 = (2 * noise(n * 3000, seed, 500.0) for seed in (1, 2))
    c4_a1, other = slow_waves(n, -1.0, 3), slow_waves(n, -1.0, 4)
    c4 = c4_a1 + a1

    def write(name, **signals):
        named = {"C3-M2": slow_waves(n), "E1-M2": slow_waves(n, 0.5, 6), **signals}
        return write_edf(tmp_path / name, [Made(label, samples, 100) for label, samples in named.items()])

    # What the rules would take by themselves is not taken: the rules prefer C4-M1, and C4 minus A1 to the mean of the ears.
    electrodes = write("electrodes.edf", C4=c4, A1=a1, A2=a2, **{"C4-M1": noise(n * 3000, 5)})
    both = write("both.edf", C4=c4, A1=a1, A2=a2, **{"C4:A1": other})
    held = {
        "difference": prepare_night(write("difference.edf", **{"C4-A1": c4_a1})),
        "literal": prepare_night(write("literal.edf", **{"C4:A1": other})),
        "mean": prepare_night(write("mean.edf", **{"C4-(A1+A2)/2": c4 - (a1 + a2) // 2})),
    }
    cases = [("C4:A1", electrodes, "difference"), ("C4:A1", both, "literal"), ("C4:A1,A2", both, "mean")]
    for number, (signal, path, name) in enumerate(cases):
        out = str(tmp_path / str(number))
        assert main(["score", str(path), *graded_model, "--out", out, "--channel", f"EEG_C4={signal}"]) == 0
        night, want = scored[number][0], held[name]
        np.testing.assert_allclose(night.channels["EEG_C4"], want.channels["EEG_C4"], atol=1e-4, err_msg=name)
        assert night.iqr["EEG_C4"] == pytest.approx(want.iqr["EEG_C4"], rel=1e-4)
        polarity = [made.provenance["channels"]["EEG_C4"]["polarity"]["decision"] for made in (night, want)]
        assert polarity == ["inverted", "inverted"], name


def test_the_report_has_name_date_and_position_on_the_users_word_alone(folder, stage_model, tmp_path, capsys):
    one = next(folder.glob("shhs*.edf"))
    content = bytearray(one.read_bytes())
    content[8:88] = b"X F 02-MAY-1951 Doe_Jane".ljust(80)
    one.write_bytes(content)
    call = ["score", str(one), *stage_model, "--out", str(tmp_path / "out")]
    started = read_recording(one).start.date().isoformat()
    assert main(call) == 0
    (path,) = (tmp_path / "out").glob("*/report.html")
    assert "Doe_Jane" not in path.read_text() and started not in path.read_text() and ">Supine<" not in path.read_text()
    told = ["--show-identity", "--position", "POSITION=0:right,1:left,2:supine,3:prone"]
    assert main([*call, *told]) == 0
    assert "Doe_Jane" in path.read_text() and started in path.read_text()
    assert any(f">{name}</text>" in path.read_text() for name in ("Right", "Left", "Supine", "Prone"))
    assert main([*call, "--position", "Body=0:supine"]) == 1 and "no signals of that label" in lines(capsys)[1][-1]
    assert main([*call, "--position", "Body"]) == 2


def test_lights_are_as_stated_else_as_annotated_else_by_rule(recordings):
    recording = read_recording(recordings[0])
    clock = recording.start.replace(second=0)
    texts = [
        (30.0, "Lights Off"),
        (60.0, "lights on"),
        (90.0, "Lights out|Lights out"),
        (800.0, "Lights On"),
        (5000.0, "Lights on"),
    ]
    assert find_lights(texts) == (30.0, 5000.0) and find_lights([(1.0, "Lights were on")]) == (None, None)
    lights = choose_lights(recording, texts, None, None)
    assert (lights.off, lights.on, lights.off_from) == (30.0, 800.0, BY_ANNOTATION)
    later = clock.replace(minute=(clock.minute + 2) % 60, hour=(clock.hour + (clock.minute + 2) // 60) % 24)
    lights = choose_lights(recording, (), later.strftime("%H:%M"), None)
    assert lights.off == 120.0 - recording.start.second and (lights.off_from, lights.on_from) == (BY_OPTION, BY_RULE)
    with pytest.raises(RecordingError, match="not after lights off"):
        choose_lights(recording, (), "+300", "+200")
    with pytest.raises(RecordingError, match="long"):
        choose_lights(recording, (), "+9000", None)
    for wrong in ("late", "+x", "25:00", "12"):
        with pytest.raises(UsageError, match="--lights-off"):
            choose_lights(recording, (), wrong, None)


def test_refused_nights_are_counted_by_reason(stage_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    for number in range(3):
        (tmp_path / f"taken/{number}.edf").write_bytes(b"x" * (84 + number))
    assert main(["score", "taken", "nope.edf", *stage_model, "--out", "scored"]) == 1
    printed, errors = lines(capsys)
    assert errors[1] == "refused: taken/0.edf: not an EDF or BDF file: 84 bytes, shorter than the 256 of an EDF header"
    assert printed == [
        "0 scored, 4 refused:",
        "       3  not an EDF or BDF file: … bytes, shorter than the 256 of an EDF header",
        "       1  no such file or folder",
    ]


def test_a_night_of_which_nothing_could_be_scored_is_counted_apart(recordings, stage_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(recordings[0], "night.edf")
    write_edf(tmp_path / "heart.edf", [Made("ECG", noise(300 * 100), 100, "mV", ("-5", "5"))])
    assert main(["score", "night.edf", "heart.edf", *stage_model, "--out", "scored"]) == 0
    printed, _ = lines(capsys)
    assert printed[-1] == "2 scored, 1 of them without stages, 0 refused"
    (told,) = [line for line in printed if "10 of 10 epochs" in line]
    assert "because none of EEG_C3, EEG_C4, which the models need, is usable in them" in told
    assert not any("in any channel" in line for line in printed)


def test_a_scoring_among_the_recordings_is_its_recordings(recordings, stage_model, tmp_path, monkeypatch, capsys):
    """EDF+ and XML, named beside the recording or without it; one that is nobody's is refused with advice."""
    monkeypatch.chdir(tmp_path)
    for name in ("P1", "P2"):
        shutil.copy(recordings[0], f"{name}.edf")
    night = WrittenNight(np.full(30, 2, np.int8), (), {}, read_recording(recordings[0]).start)
    files = scoring_files(night)
    Path("P1_hypnogram.edf").write_bytes(files["scoring.edf"])
    Path("P2.xml").write_bytes(files["scoring-nsrr.xml"])
    Path("deep").mkdir()
    Path("deep/of-nobody.edf").write_bytes(files["scoring.edf"])
    Path("deep/of-nobody.xml").write_bytes(files["scoring-nsrr.xml"])
    Path("ours.yaml").write_text(
        "extends: generic.yaml\nname: ours\nsource: a test\nscoring: {files: ['{stem}_hypnogram.edf', '{stem}.xml']}\n"
    )
    call = [*stage_model, "--cohort", "ours.yaml", "--json"]
    words = ["P1_hypnogram.edf", "P1.edf", "P2.xml", "deep/of-nobody.edf", "deep/of-nobody.xml"]
    assert main(["score", *words, *call, "--out", "scored"]) == 1
    printed, errors = lines(capsys)
    told = [json.loads(line) for line in printed]
    assert [(item["status"], item["file"]) for item in told] == [("scored", "P1.edf"), ("scored", "P2.edf")]
    assert all(set(item["summary"]["agreement"]) == {"stage"} for item in told)
    assert "P1_hypnogram.edf: taken for the human scoring of P1.edf" in errors
    assert "P2.xml: taken for the human scoring of P2.edf, which is scored in its place" in errors
    refused = [line for line in errors if line.startswith("refused")]
    assert len(refused) == 2 and "holds annotations and no signal" in refused[0] and "is no EDF or BDF file" in refused[1]
    assert all(f"--scoring {file}" in line for file, line in zip(words[3:], refused, strict=True))
    # Named from the root, it is the same file.
    assert main(["score", "P1_hypnogram.edf", str(tmp_path / "P1.edf"), *call, "--out", "again"]) == 0
    assert len(lines(capsys)[0]) == 1


def test_agreement_with_a_human_is_in_the_line_and_in_the_table_of_nights(
    recordings, graded_model, tmp_path, monkeypatch, capsys
):
    """Empty for a night that no human has scored; and a scoring that says another start is told in all places."""
    monkeypatch.chdir(tmp_path)
    for name in ("scored", "alone"):
        shutil.copy(recordings[0], f"{name}.edf")
    start = read_recording(recordings[0]).start
    assert main(["score", "alone.edf", *graded_model, "--out", "out"]) == 0
    assert "κ" not in "".join(lines(capsys)[0])
    # What the model says of every second epoch, and of the others another stage.
    found = np.load("out/alone/hypnogram.npy")
    truth = np.where(np.arange(30) % 2, found, (found + 1) % 5).astype(np.int8)
    night = WrittenNight(truth, (), {}, start + timedelta(hours=2))
    Path("human.xml").write_bytes(scoring_files(night)["scoring-nsrr.xml"])
    call = ["score", "scored.edf", "--scoring", "human.xml", *graded_model, "--out", "out"]
    assert main(call) == 0
    printed, _ = lines(capsys)
    table = pd.read_csv("out/summary/summary.csv").set_index("record")
    summary = json.loads(Path("out/scored/summary.json").read_text())
    kappa = summary["agreement"]["stage"]["kappa"]
    assert f", κ {kappa:.2f} with the human stages -> " in printed[0]
    assert table.loc["scored", "agreement_stage_kappa"] == pytest.approx(kappa)
    assert table.loc["scored", "agreement_stage_accuracy"] == pytest.approx(0.5)
    columns = [name for name in table if name.startswith("agreement_")]
    assert {"agreement_apnea_f1", "agreement_hypopnea_f1", "agreement_ahi_model", "agreement_ahi_human"} < set(columns)
    assert table.loc["alone", columns].isna().all() and "agreement" not in json.loads(Path("out/alone/summary.json").read_text())
    assert pd.read_parquet("out/summary/summary.parquet")[columns].isna().sum().max() == 2
    doubt = "started 120.0 min after this one did"
    page = Path("out/scored/report.html").read_text()
    assert doubt in "".join(printed) and doubt in page and any(doubt in warning for warning in summary["warnings"])


def test_the_f1_of_positive_runs_is_not_in_the_column_of_events():
    events = {"f1": 0.5, "positive_runs": False}
    assert _agreement({"apnea": events, "ahi": {"model": 3.0, "scored": 4.0}}) == {
        "agreement_stage_kappa": None, "agreement_stage_accuracy": None, "agreement_apnea_f1": 0.5,
        "agreement_hypopnea_f1": None, "agreement_arousal_f1": None, "agreement_ahi_model": 3.0, "agreement_ahi_human": 4.0,
    }  # fmt: skip
    row = _agreement({"apnea": events | {"positive_runs": True}})
    assert row["agreement_apnea_f1"] is None and row["agreement_apnea_positive_runs_f1"] == 0.5
