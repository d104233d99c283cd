"""What a recording of a day takes: its channels, and what the models look at, held once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sleepfm.config import read_yaml
from sleepfm.inference.embed import embed, frame_features, prepared_epochs
from sleepfm.inference.scorer import prepare_night
from sleepfm.inference.windows import classify_night, locate_night
from sleepfm.models.build import build_model, model_config
from sleepfm.models.downstream import Downstream, DownstreamConfig
from sleepfm.models.event_head import EventHeadConfig
from sleepfm.models.usage import Usage
from sleepfm.registry.package import write_package
from sleepfm.registry.registry import load
from sleepfm.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]
# Of ten channels 4 bytes a sample at 100 Hz are 14.4 MB; the rest is what a channel takes while it is filtered, and tables.
MOST_MB_AN_HOUR = 30


def located(task: str) -> Downstream:
    """An untrained event head for ``task`` on the encoder that those of other tasks have, too."""
    torch.manual_seed(0)
    encoder = build_model(read_yaml(ROOT / "configs" / "models" / "synthsleepnet-tiny.yaml")["model"])
    plan = DownstreamConfig(
        task=task, classes=TASKS[task].classes, encoder=model_config(encoder), events=EventHeadConfig(hidden=32)
    )
    return Downstream(plan, encoder).eval()


def test_what_is_held_once_is_what_was_put_together(recordings: list[Path], downstream_packages: dict[str, Path]) -> None:
    night, model = prepare_night(recordings[0]), located("apnea")

    def epochs():
        return prepared_epochs(night, model.channels, 7)

    assert torch.equal(embed(model.encoder, epochs(), n_epochs=30), embed(model.encoder, epochs()))
    frames = frame_features(model, epochs(), n_epochs=30)
    assert torch.equal(frames, frame_features(model, epochs())) and len(frames) == 30
    # An epoch that is not assessed is as one that is not there, without a copy of the night.
    assessed = np.arange(30) % 5 != 3
    blank = frames.masked_fill(torch.from_numpy(~assessed)[:, None, None], torch.nan)
    found = locate_night(model, frames, 7, assessed)
    np.testing.assert_array_equal(found, locate_night(model, blank, 7))
    assert np.isnan(found).reshape(30, -1).any(axis=1).tolist() == (~assessed).tolist()
    stager, night_embedding = load(downstream_packages["stage"]), model.embedding_of(frames)
    whole = classify_night(stager, night_embedding, 7, assessed)
    np.testing.assert_array_equal(whole, classify_night(stager, model.embedding_of(blank), 7))


def test_nothing_as_large_as_a_night_of_frames_is_made_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = located("apnea")
    # What the head takes does not grow with the night.
    monkeypatch.setattr(model, "locate", lambda batch: torch.zeros(*batch.shape[:2], 30, 2))
    frames = torch.randn(1000, len(model.encoder.frame_times), model.feature_dim)
    frames[::7] = torch.nan
    # What an operation makes inside of itself counts, too.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        seconds = locate_night(model, frames, 7)
    assert np.isnan(seconds[:30]).all() and np.isfinite(seconds[30:210]).all()
    assert 0 < max(event.self_cpu_memory_usage for event in seen.events()) < frames.nbytes / 2


@pytest.mark.slow
def test_a_day_takes_no_more_than_its_channels(
    recordings: list[Path], downstream_packages: dict[str, Path], tmp_path: Path
) -> None:
    """Scored whole by the command, report included, in a process of its own each."""
    models = [str(downstream_packages["stage"])]
    for task in ("apnea", "hypopnea"):
        model, folder = located(task), tmp_path / task
        usage = Usage(task=task, classes=TASKS[task].classes, window=20, threshold=0.5, event_threshold=0.5, resolution_s=1)
        folder.mkdir()
        write_package(folder, model, {"model": model_config(model)} | usage.to_package(), "card")
        models.append(str(folder))
    peak = {hours: peak_of_scoring(repeated(recordings[0], hours, tmp_path), models, tmp_path / f"{hours}") for hours in (1, 24)}
    per_hour = (peak[24] - peak[1]) / 23 / 1e6
    print(f"peak {peak[1] / 1e6:.0f} MB for 1 h, {peak[24] / 1e6:.0f} MB for 24 h: {per_hour:.1f} MB an hour")
    assert per_hour < MOST_MB_AN_HOUR


def repeated(recording: Path, hours: int, folder: Path) -> Path:
    """The recording of a quarter of an hour again and again; no scoring lies beside it."""
    content = recording.read_bytes()
    header, count = int(content[184:192]), int(content[236:244])
    times = 4 * hours
    path = folder / f"{hours}-hours" / recording.name
    path.parent.mkdir()
    with path.open("wb") as file:
        file.write(content[:236] + str(count * times).encode().ljust(8) + content[244:header])
        for _ in range(times):
            file.write(content[header:])
    return path


def peak_of_scoring(recording: Path, models: list[str], out: Path) -> int:
    """Bytes that the process of ``sleepfm score`` held at most."""
    call = ["score", str(recording), "--out", str(out), "--model", *models, "--cohort", "shhs1"]
    program = (
        f"from sleepfm.cli import main; status = main({call!r}); from pathlib import Path; "
        "print(status, *[line.split()[1] for line in Path('/proc/self/status').read_text().splitlines() if 'VmHWM' in line])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    status, kilobytes = done.stdout.splitlines()[-1].split()
    assert status == "0" and list(out.glob("*/report.html")), done.stdout + done.stderr
    return int(kilobytes) * 1024
