"""``deepspeed.dtype: auto``: decided by the devices of all ranks, once, and recorded as if it had been stated."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launching import CONFIG, environment, trace
from toy import ToyRunConfig

from sleepfm.config import read_yaml, validate
from sleepfm.errors import ConfigError, StorageError
from sleepfm.models.device import native_bf16
from sleepfm.paths import config_root
from sleepfm.training.compute_dtype import as_begun, settle
from sleepfm.training.folder import RunFolder
from sleepfm.training.ranks.precision import RoundedProducts, bf16_products
from sleepfm.training.ranks.shared_work import ALONE
from sleepfm.training.run_config import config_digest

MIXED = Path(__file__).with_name("mixed_processors_job.py")
HERE = "bf16" if native_bf16("cpu") else "fp32"
DATA = "a" * 64


def config(output: Path, dtype: str, **more: object) -> ToyRunConfig:
    values = {
        "train": {"output": str(output), "steps": 10, "lr": 0.1},
        "registry": {"name": "toy", "metric": "val/error"},
        "deepspeed": {"dtype": dtype},
    }
    return validate(ToyRunConfig, values | more, "toy")


@pytest.fixture
def avx512(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An x86 processor with AVX-512 and nothing for bf16, as oneDNN and torch see it."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return monkeypatch


def test_avx512_alone_does_not_multiply_in_bf16(avx512: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not native_bf16("cpu") and isinstance(bf16_products("cpu"), RoundedProducts)
    assert settle(config(tmp_path, "auto"), ALONE.world).deepspeed.dtype == "fp32"


@pytest.mark.parametrize("feature", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_instructions_for_bf16_count(avx512: pytest.MonkeyPatch, tmp_path: Path, feature: str) -> None:
    avx512.setattr(torch.cpu, feature, lambda: True)
    assert native_bf16("cpu") and not isinstance(bf16_products("cpu"), RoundedProducts)
    assert settle(config(tmp_path, "auto"), ALONE.world).deepspeed.dtype == "bf16"


def test_arms_bf16_counts_and_x86_features_are_not_asked_for_there(avx512: pytest.MonkeyPatch) -> None:
    avx512.setattr("platform.machine", lambda: "aarch64")
    assert native_bf16("cpu")
    avx512.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not native_bf16("cpu")


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_is_asked_for_what_it_does_itself(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    # A V100 emulates bf16, and torch says that it supports it.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert native_bf16("cuda") is native
    # The rounded products are the CPU's.
    assert not isinstance(bf16_products("cuda"), RoundedProducts)


def test_what_is_stated_is_kept(avx512: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for dtype in ("bf16", "fp32"):
        assert settle(config(tmp_path, dtype), ALONE.world) == config(tmp_path, dtype)


def test_an_undecided_type_reaches_neither_record_nor_arithmetic(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"deepspeed\.dtype: auto is only decided when a job starts; set bf16 or fp32"):
        config_digest(config(tmp_path, "auto"))
    with pytest.raises(ConfigError, match="only decided when a job starts"):
        RunFolder(tmp_path / "run").begin(config(tmp_path / "run", "auto"), DATA, {})
    assert not (tmp_path / "run").exists()


def test_it_decides_the_digest_as_if_it_were_stated(tmp_path: Path) -> None:
    assert config_digest(settle(config(tmp_path, "auto"), ALONE.world)) == config_digest(config(tmp_path, HERE))


@pytest.mark.parametrize("begun", ["bf16", "fp32"])
def test_a_run_goes_on_in_the_type_that_it_began_in(tmp_path: Path, begun: str) -> None:
    RunFolder(tmp_path).begin(config(tmp_path, begun), DATA, {})
    auto = config(tmp_path, "auto")
    for resume in ("auto", "must"):
        assert as_begun(auto, resume).deepspeed.dtype == begun
    assert RunFolder(tmp_path).check(as_begun(auto, "auto"), DATA, "auto") is None
    # Started over, it is decided anew.
    assert as_begun(auto, "never") == auto
    other = {"bf16": "fp32", "fp32": "bf16"}[begun]
    with pytest.raises(ConfigError, match=rf"deepspeed\.dtype \('{begun}' -> '{other}'\)"):
        RunFolder(tmp_path).check(as_begun(config(tmp_path, other), "auto"), DATA, "auto")


def test_a_branch_has_the_type_of_its_run_until_it_has_its_own(tmp_path: Path) -> None:
    run, branch = tmp_path / "run", tmp_path / "branch"
    RunFolder(run).begin(config(run, "fp32"), DATA, {})
    auto = config(branch, "auto", branch_from=f"{run}@4")
    assert as_begun(auto, "auto").deepspeed.dtype == "fp32"
    RunFolder(branch).begin(config(branch, "bf16"), DATA, {})
    assert as_begun(auto, "auto").deepspeed.dtype == "bf16"


def test_somebody_elses_record_is_left_to_the_check_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[]")
    auto = as_begun(config(tmp_path, "auto"), "auto")
    assert auto.deepspeed.dtype == "auto"
    with pytest.raises(StorageError, match="is not the record of a run"):
        RunFolder(tmp_path).check(auto, DATA, "auto")


@pytest.mark.slow
def test_ranks_with_other_processors_agree_and_a_resumed_run_stays(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(CONFIG.replace("dtype: fp32", "dtype: auto"))
    toy = MIXED.with_name("toy.py")
    # Both would be bf16 for themselves on a processor that has it; one is not, and then both are.
    for job, steps in ((MIXED, 4), (toy, 6)):
        line = [sys.executable, "-m", "sleepfm.training.launcher", "2", str(job), "toy.yaml", f"train.steps={steps}"]
        done = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        assert RunFolder(tmp_path / "run").settings()["deepspeed"]["dtype"] == "fp32"
        assert read_yaml(tmp_path / "run" / "config.yaml")["deepspeed"]["dtype"] == "fp32"
    assert [row["step"] for row in trace(tmp_path)] == list(range(1, 7))
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["segments"]) == 1


def test_the_recipes_for_small_machines_leave_it_to_the_device() -> None:
    recipes = sorted(config_root().glob("*/*-tiny.yaml"))
    found = {path.stem: read_yaml(path).get("deepspeed", {}).get("dtype") for path in recipes if path.parent.name != "models"}
    assert found and set(found.values()) == {"auto"}
