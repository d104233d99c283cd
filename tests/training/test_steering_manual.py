"""The commands of the manual's section on steering, as they stand there, on the run that they speak of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launching import environment
from made_nights import make_dataset, make_night
from ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

REPOSITORY = Path(__file__).parents[2]


def commands() -> list[list[str]]:
    text = (REPOSITORY / "docs" / "training.md").read_text().split("\n## Steering a run\n")[1].split("\n## ")[0]
    lines = text.replace("\\\n", " ").splitlines()
    return [line.split() for line in lines if line.startswith("deepspeed ")]


def start(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--master_port", str(free_port()), "--log_level", "critical"]
    paths = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*launcher, *words[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment() | {"PYTHONPATH": paths},
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_commands_of_the_manual_do_what_it_says(tmp_path: Path) -> None:
    nights = [make_night(f"night{number}", 16, seed=number) for number in range(16)]
    make_dataset(tmp_path / "runs" / "demo" / "shards", nights, per_shard=4)
    for name in ("launch", "configs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    steered, branched, warm = commands()
    start(tmp_path, steered[:5])
    said = start(tmp_path, warm).stdout
    assert "init_from=runs/demo/pretrain-eeg: " in said and "not used" not in said
    start(tmp_path, branched)
    record = json.loads((tmp_path / "runs" / "slower" / "run.json").read_text())
    assert record["branched_from"]["step"] == 16
    said = start(tmp_path, steered).stdout
    expected = "runs/demo/pretrain-eeg: continues from step 32 with train.lr (0.003 -> 0.001), train.steps (32 -> 64)"
    assert expected in said and expected in (REPOSITORY / "docs" / "training.md").read_text()
    rows = (tmp_path / "runs" / "demo" / "pretrain-eeg" / "trace.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 65))
