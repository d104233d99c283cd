"""On which device a process trains, and what every node does once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ports import free_port

from sleepfm.errors import ConfigError, RegistryError
from sleepfm.training.ranks.distributed import World, on_every_node


@pytest.mark.parametrize(
    ("asked", "gpu", "expected"),
    [
        (None, False, "cpu"),
        (None, True, "cuda"),
        ("cpu", True, "cpu"),
        ("cpu", False, "cpu"),
        ("cuda", True, "cuda"),
        ("", True, "cuda"),
    ],
)
def test_the_device_is_what_deepspeed_is_told(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, gpu: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    if asked is not None:
        monkeypatch.setenv("DS_ACCELERATOR", asked)
    assert World(3, 4, 1, 2).device.type == expected


@pytest.mark.parametrize("asked", ["cuda", "xpu"])
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("DS_ACCELERATOR", asked)
    with pytest.raises(ConfigError, match=asked):
        _ = World(0, 1, 0, 1).device


def two_nodes(folder: Path, failing: str) -> list[str]:
    """What the four ranks of two nodes answer, see ``nodes_job.py``."""
    port = str(free_port())
    ranks = []
    for rank in range(4):
        variables = {"RANK": rank, "WORLD_SIZE": 4, "LOCAL_RANK": rank % 2, "LOCAL_SIZE": 2, "MASTER_PORT": port}
        environment = os.environ | {key: str(value) for key, value in variables.items()} | {"MASTER_ADDR": "127.0.0.1"}
        line = [sys.executable, str(Path(__file__).with_name("nodes_job.py")), str(folder), failing]
        ranks.append(subprocess.Popen(line, env=environment | {"DS_ACCELERATOR": "cpu"}))
    assert [process.wait(600) for process in ranks] == [0] * 4
    return [(folder / f"answer{rank}").read_text() for rank in range(4)]


def test_the_first_rank_of_every_node_works_and_the_others_find_it_done(tmp_path: Path) -> None:
    expected = ["rank 0 fetched it", "rank 1 found it", "rank 2 fetched it", "rank 3 found it"]
    assert two_nodes(tmp_path, "none") == expected


def test_what_fails_on_one_node_is_the_error_of_every_rank_and_names_the_host(tmp_path: Path) -> None:
    reason = f"host {socket.gethostname()} (rank 2): no room"
    other = f"TrainingError: {reason}"
    assert two_nodes(tmp_path, "1") == [other, other, f"RegistryError: {reason}", other]
    with pytest.raises(RegistryError, match=r"^no room$"):
        on_every_node(World(0, 1, 0, 1), lambda: (_ for _ in ()).throw(RegistryError("no room")))
