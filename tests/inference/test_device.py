"""Where ``sleepfm score`` and ``sleepfm embed`` run their models, and how many processes the demo starts on GPUs."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sleepfm.cli import main
from sleepfm.config import load_config
from sleepfm.demo.steps import DemoConfig, Plan
from sleepfm.errors import UsageError
from sleepfm.inference.scorer import Scorer, prepare_night
from sleepfm.models.device import choose_device, full_precision, set_tf32
from sleepfm.paths import config_root


@pytest.mark.parametrize(
    ("asked", "variable", "gpu", "expected"),
    [
        ("auto", None, False, "cpu"),
        ("auto", None, True, "cuda"),
        ("auto", "cpu", True, "cpu"),
        ("cpu", None, True, "cpu"),
        ("cuda", "cpu", True, "cuda"),
    ],
)
def test_the_device_is_the_one_asked_for(
    monkeypatch: pytest.MonkeyPatch, asked: str, variable: str | None, gpu: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    if variable is not None:
        monkeypatch.setenv("DS_ACCELERATOR", variable)
    assert choose_device(asked).type == expected


def test_a_gpu_that_is_not_there_is_wrong_usage(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    encoder_package: Path,
    recordings: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--device cuda: torch finds no CUDA device"):
        choose_device("cuda")
    call = [
        "embed",
        str(recordings[0]),
        "--model",
        str(encoder_package),
        "--device",
        "cuda",
        "--out",
        str(tmp_path / "e.parquet"),
    ]
    assert main(call) == 2 and "--device cuda" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_told_to_stay_on_the_cpu_they_do_on_a_machine_with_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    downstream_packages: dict[str, Path],
    encoder_package: Path,
    recordings: list[Path],
) -> None:
    # A CUDA device that torch finds and that cannot be used: whatever goes there fails.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    night, models = str(recordings[0]), [str(path) for path in downstream_packages.values()]
    assert main(["score", night, "--model", *models, "--device", "cpu", "--out", str(tmp_path / "scored")]) == 0
    assert main(["embed", night, "--model", str(encoder_package), "--device", "cpu", "--out", str(tmp_path / "e.parquet")]) == 0
    assert pd.read_parquet(tmp_path / "e.parquet")["embedding"].notna().all()


@pytest.mark.parametrize(("products", "convolutions"), [("highest", True), ("high", True), ("highest", False), ("medium", False)])
def test_products_and_convolutions_are_in_fp32_within_and_as_they_were_after(products: str, convolutions: bool) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
        with full_precision():
            assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (products, convolutions)
        set_tf32(True)
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.gpu
@pytest.mark.parametrize("allowed", [False, True])
def test_only_where_it_is_allowed_a_product_is_in_tf32(allowed: bool) -> None:
    a = torch.randn(512, 512, device="cuda")
    exact = a.double() @ a.double()
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        set_tf32(allowed)
        error = ((a @ a).double() - exact).abs().max() / exact.abs().max()
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    assert (error > 1e-5) == allowed


def score_there(packages: dict[str, Path], recording: Path) -> dict[str, np.ndarray]:
    """A night scored by models on the simulated device."""
    from simulated_cuda import DEVICE

    return probabilities(DEVICE, packages, recording)


def probabilities(device: torch.device, packages: dict[str, Path], recording: Path) -> dict[str, np.ndarray]:
    scorer = Scorer.load(list(packages.values()), device=device)
    assert {next(entry.model.parameters()).device.type for entry in scorer.models.values()} == {device.type}
    found = scorer.score(prepare_night(recording))
    return {"stage": found.hypnodensity, **found.probability}


def test_scoring_takes_only_what_cuda_has(downstream_packages: dict[str, Path], recordings: list[Path]) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        there = process.submit(score_there, downstream_packages, recordings[0]).result()
    here = probabilities(torch.device("cpu"), downstream_packages, recordings[0])
    assert there.keys() == here.keys()
    for name, expected in here.items():
        np.testing.assert_allclose(there[name], expected, atol=1e-6)


@pytest.mark.gpu
def test_scoring_on_the_device_gives_what_the_cpu_gives(downstream_packages: dict[str, Path], recordings: list[Path]) -> None:
    there, here = (probabilities(torch.device(name), downstream_packages, recordings[0]) for name in ("cuda", "cpu"))
    for name, expected in here.items():
        np.testing.assert_allclose(there[name], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("variable", "gpus", "expected"), [(None, 1, 1), (None, 2, 2), (None, 8, 2), ("cpu", 1, 2), (None, 0, 2)]
)
def test_the_demo_starts_at_most_a_process_for_each_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str | None, gpus: int, expected: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    if variable is not None:
        monkeypatch.setenv("DS_ACCELERATOR", variable)
    plan = Plan(load_config(DemoConfig, config_root() / "demo" / "default.yaml", []), tmp_path, 1, None)
    command = plan.pretrain("EEG").command
    assert command[command.index("sleepfm.training.launcher") + 1] == str(expected)
