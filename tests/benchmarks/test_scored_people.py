"""The figures on people: what the benchmark reads, against files made by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from sleepfm.signals.recording import read_recording

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import people


def test_an_epoch_has_the_stage_of_most_of_its_values(tmp_path: Path) -> None:
    epochs = [[5] * 6, [3, 3, 3, 3, 2, 2], [1, 0, 1, 0, 2, 2], [4] * 6, [-1, -1, -2, -3, 2, 2]]
    path = tmp_path / "Hypnogram_excerpt1.txt"
    path.write_text("\n".join(["[Hypnogram]", *(str(value) for epoch in epochs for value in epoch)]))
    assert people.stages_of(path).tolist() == [0, 1, 3, 4, -1]


def test_a_signal_keeps_its_rate_and_its_microvolts(tmp_path: Path) -> None:
    wave = 80 * np.sin(np.arange(people.SECONDS * 50) / 20)
    signal = tmp_path / "excerpt3.txt"
    signal.write_text("\n".join(["[C3-A1]", *(f"{value:.4f}" for value in wave)]))
    assert people.as_edf(signal, tmp_path / "excerpt3.edf") == "C3-A1"
    recording = read_recording(tmp_path / "excerpt3.edf")
    found = recording.signals[0]
    assert found.rate == 50
    assert np.abs(recording.read(0) - wave).max() < 2 * people.LIMIT / 65535 + 1e-3


def test_figures_say_who_is_called_what() -> None:
    truth = [np.array([0, 2, 2, 3, 4, -1]), np.array([1, 2, 3, 3])]
    called = [np.array([0, 2, 1, 3, 4, 0]), np.array([1, 2, 2, 3])]
    found = people.figures(truth, called)
    assert found["epochs"] == 9
    assert found["recall"] == {"W": 1.0, "N1": 1.0, "N2": 2 / 3, "N3": 2 / 3, "REM": 1.0}
    assert found["confusion"][2][1] == 1
    assert found["confusion"][3][2] == 1
