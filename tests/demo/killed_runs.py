"""Runs of the demo's runner that are killed, and started again."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    """``command`` in ``folder``, with this checkout, no registry named, and what it prints in a pipe."""
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def killed_in_its_third_step(command: list[str], folder: Path, steps: int) -> str:
    """What the second of two runs of ``steps`` printed, the first of which was killed in its third step."""
    first = start(command, folder)
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith(f"[ 3/{steps}]"):
            break
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    second = start(command, folder)
    printed, _ = second.communicate()
    assert second.returncode == 0, printed
    return printed
