"""``sleepfm score`` and ``sleepfm embed``: what they write, what they refuse, and the words for it."""

from __future__ import annotations

import json
from pathlib import Path

import edfio
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import sleepfm
from sleepfm.cli import main
from sleepfm.config import read_yaml
from sleepfm.constants import STAGE_NAMES
from sleepfm.inference.embed import prepared_epochs
from sleepfm.inference.scorer import prepare_night
from sleepfm.models.build import build_model, model_config
from sleepfm.paths import config_root
from sleepfm.registry.package import write_package
from sleepfm.registry.registry import load

MODELS = Path(__file__).parents[2] / "configs" / "models"


def arguments(packages, out, *recordings):
    models = [str(p) for p in packages.values()]
    return ["score", *map(str, recordings), "--model", *models, "--out", str(out)]


def test_command_writes_whole_nights_and_refuses_the_rest(downstream_packages, recordings, tmp_path, capsys):
    broken = tmp_path / "broken.edf"
    broken.write_bytes(recordings[0].read_bytes()[:3000])
    out = tmp_path / "out"
    assert main(arguments(downstream_packages, out, recordings[0], broken, recordings[1])) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "broken.edf" in printed.err
    assert sorted(p.name for p in out.iterdir()) == [recordings[0].stem, recordings[1].stem, "summary"]
    folder = out / recordings[0].stem
    assert sorted(p.name for p in folder.iterdir()) == [
        ".sleepfm.json",
        "desaturations.csv",
        "events.csv",
        "hypnodensity.csv",
        "hypnogram.npy",
        "night.png",
        "positive_runs.csv",
        "probabilities.parquet",
        "report.html",
        "scoring-nsrr.xml",
        "scoring-profusion.xml",
        "scoring.annot",
        "scoring.edf",
        "stages.csv",
        "summary.json",
    ]
    stages = pd.read_csv(folder / "stages.csv")
    assert list(stages.columns) == [
        "epoch", "onset_s", "clock", "stage", "confidence", "unscored_because", "events_not_assessed",
    ]  # fmt: skip
    assert len(stages) == 30 and set(stages["events_not_assessed"]) <= {"breathing arousal", "breathing arousal desaturation"}
    assert set(stages["stage"]) <= set(STAGE_NAMES)
    # Another reader lays the stages over the recording as they are in the table.
    told, recording = edfio.read_edf(folder / "scoring.edf"), edfio.read_edf(recordings[0])
    assert told.starttime == recording.starttime and told.num_signals == 0
    runs = [found for found in told.annotations if found.text.startswith("Sleep stage ")]
    lasting = [(found.text.removeprefix("Sleep stage "), found.duration / 30) for found in sorted(runs)]
    laid = [name.replace("R", "REM") for name, epochs in lasting for _ in range(int(epochs))]
    assert laid == list(stages["stage"]) and sum(epochs for _, epochs in lasting) == 30
    starts = np.cumsum([0, *(epochs * 30 for _, epochs in lasting)])
    assert [found.onset for found in sorted(runs)] == starts[:-1].tolist()
    density = pd.read_csv(folder / "hypnodensity.csv")
    assert np.allclose(density[list(STAGE_NAMES)].sum(axis=1), 1, atol=1e-4)
    written = json.loads((folder / "summary.json").read_text())
    assert written["sleep"]["time_in_bed"] == 15.0 and written["breathing"]["ahi"] is None
    assert "AHI" not in printed.out and "positive runs of apnea" in printed.out
    assert set(written["agreement"]) == {"stage", "apnea", "hypopnea"}
    assert written["agreement"]["stage"]["accuracy"] is not None
    before = (folder / "stages.csv").stat().st_mtime_ns
    assert main([*arguments(downstream_packages, out, recordings[0]), "--again"]) == 0
    assert (folder / "stages.csv").stat().st_mtime_ns > before
    assert len(pd.read_csv(folder / "stages.csv")) == 30
    assert sorted(p.name for p in out.iterdir()) == [recordings[0].stem, recordings[1].stem, "summary"]


def test_models_and_recordings_stand_in_any_order(downstream_packages, recordings, tmp_path, capsys):
    first, second = (str(downstream_packages[task]) for task in ("stage", "apnea"))
    night, other = map(str, recordings[:2])
    alike = ["--model", first, night, "--out", str(tmp_path / "a"), other, "--model", second]
    assert main(["score", *alike]) == 0
    assert main(["score", "--out", str(tmp_path / "b"), night, other, "--model", first, second]) == 0
    assert main(["score", night, "--model", first, "--model", second, other, "--out", str(tmp_path / "c")]) == 0
    written = [sorted(path.relative_to(tmp_path / out) for path in (tmp_path / out).glob("shhs*/*.csv")) for out in "abc"]
    assert written[0] == written[1] == written[2] and len({path.parts[0] for path in written[0]}) == 2
    for path in written[0]:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "c" / path).read_bytes()
    capsys.readouterr()
    assert main(["score", "--model", first, "--out", str(tmp_path / "d")]) == 2
    assert "no recording given" in capsys.readouterr().err


def test_command_names_what_is_wrong(downstream_packages, recordings, tmp_path, capsys):
    call = arguments(downstream_packages, tmp_path, recordings[0], recordings[1])
    assert main([*call, "--scoring", "x.xml"]) == 2
    assert main([*arguments(downstream_packages, tmp_path, recordings[0]), "--scoring", str(tmp_path / "x.xml")]) == 2
    assert main(["score", str(recordings[0]), "--model", "models:/none@champion", "--out", str(tmp_path)]) == 1
    assert main(arguments(downstream_packages, tmp_path, recordings[0], recordings[0])) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4 and "--scoring" in errors[0] and "x.xml: no such file" in errors[1]
    assert "Traceback" not in "".join(errors)


@pytest.mark.parametrize("name", ["nox-a1/subject1.edf", "sleep-edf/short_psg.edf"])
def test_real_recordings_are_scored(name, shared_data, downstream_packages, tmp_path):
    assert main(arguments(downstream_packages, tmp_path, shared_data / name)) == 0
    written = json.loads(next(tmp_path.glob("*/summary.json")).read_text())
    seconds = sleepfm.read_recording(shared_data / name).duration
    assert written["epochs"] == int(seconds // 30)


def test_embed_writes_one_row_an_epoch(encoder_package, dataset, recordings, tmp_path):
    file, folder, data = (tmp_path / f"{name}.parquet" for name in ("file", "folder", "data"))
    sources = {file: recordings[0], folder: recordings[0].parents[3], data: dataset.path}
    tables = {}
    for out, source in sources.items():
        assert main(["embed", str(source), "--model", str(encoder_package), "--out", str(out)]) == 0
        tables[out] = pd.read_parquet(out)
    assert len(tables[file]) == 30 and len(tables[folder]) == len(tables[data]) == 8 * 30
    model = load(encoder_package)
    night = prepare_night(recordings[0])
    signals, present = next(prepared_epochs(night, model.channels, 30))
    with torch.inference_mode():
        want = model.encode(signals, present).numpy()
    assert np.allclose(np.stack(tables[file]["embedding"]), want, atol=1e-5)
    merged = tables[folder].merge(tables[data], on=["record", "epoch"])
    assert len(merged) == 8 * 30 and (merged["stage_x"] == merged["stage_y"]).all()
    assert np.allclose(np.stack(merged["embedding_x"]), np.stack(merged["embedding_y"]), atol=1e-5)


def test_embed_replaces_only_what_it_wrote_and_nobody_changed(encoder_package, recordings, tmp_path, capsys):
    out = tmp_path / "embeddings.parquet"
    command = ["embed", str(recordings[0]), "--model", str(encoder_package), "--out", str(out)]
    assert main(command) == 0 and main(command) == 0
    table = pq.read_table(out)
    pq.write_table(table.append_column("mine", pa.array(range(len(table)))), out)
    mine = out.read_bytes()
    assert main(command) == 1 and out.read_bytes() == mine
    assert "has changed since" in capsys.readouterr().err
    pq.write_table(table.slice(0, 5), out)
    assert main(command) == 1 and pq.read_table(out).num_rows == 5


def test_embed_leaves_nothing_behind_when_refused(encoder_package, tmp_path, capsys):
    out = tmp_path / "e.parquet"
    assert main(["embed", str(tmp_path / "none"), "--model", str(encoder_package), "--out", str(out)]) == 1
    assert list(tmp_path.iterdir()) == [] and "no such" in capsys.readouterr().err


def test_embed_takes_its_model_from_the_store_that_is_named(recordings, tmp_path, capsys):
    store, out = f"sqlite:///{tmp_path}/none.db", tmp_path / "e.parquet"
    assert main(["embed", str(recordings[0]), "--model", "models:/a@b", "--out", str(out), "--store", store]) == 1
    assert f"no registry at {tmp_path}/none.db" in capsys.readouterr().err


def test_embed_refuses_a_recording_without_a_channel_of_the_model(recordings, tmp_path, capsys):
    """The others are embedded; nothing stands for a night of which nothing is known."""
    torch.manual_seed(0)
    encoder = build_model(read_yaml(config_root() / "models" / "neuronet-tiny.yaml")["model"] | {"channels": ["EMG_CHIN"]})
    write_package(tmp_path / "emg", encoder, {"model": model_config(encoder)}, "card")
    source = tmp_path / "nights"
    source.mkdir()
    content = recordings[0].read_bytes()
    (source / "with.edf").write_bytes(content)
    label = b"EMG".ljust(16)
    assert content.count(label, 0, 8192) == 1
    (source / "without.edf").write_bytes(content.replace(label, b"Something else  ", 1))
    out = tmp_path / "e.parquet"
    assert main(["embed", str(source), "--model", str(tmp_path / "emg"), "--out", str(out)]) == 1
    printed = capsys.readouterr()
    refused = printed.err.splitlines()
    assert len(refused) == 1 and "without" in refused[0] and "EMG_CHIN" in refused[0]
    assert printed.out.splitlines()[1:] == [
        "1 embedded, 1 refused:",
        "       1  no epoch with a usable channel of the model (EMG_CHIN)",
    ]
    table = pd.read_parquet(out)
    assert table["record"].nunique() == 1 and table["embedding"].notna().all()
