"""Mamba's state-space parameters under the engine: DeepSpeed, ZeRO and bf16."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = """
train: {output: run, steps: 3, global_batch: 4, lr: 0.01, warmup: 1, checkpoint_every: 3, validate_every: 3}
deepspeed: {zero: ZERO, dtype: bf16}
registry: {name: context, metric: val/error, mode: min}
"""


@pytest.mark.slow
@pytest.mark.parametrize("zero", [1, 2])
def test_state_space_parameters_train_in_fp32_under_zero_and_bf16(tmp_path: Path, zero: int) -> None:
    (tmp_path / "context.yaml").write_text(CONFIG.replace("ZERO", str(zero)))
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("context_job.py")), "context.yaml"],
        cwd=tmp_path,
        env=kept | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    facts = json.loads((tmp_path / "facts.json").read_text())
    parameters = [name for name in facts["dtypes"] if name.endswith(("A_log", ".D", "dt_bias"))]
    assert len(parameters) == 6
    assert {facts["dtypes"][name] for name in parameters} == {"torch.float32"}
    assert facts["used"] == {"rates": ["torch.float32"], "products": ["torch.bfloat16"]}
    assert all(facts["moved"][name] for name in parameters)
