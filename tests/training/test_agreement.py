"""Processes that were not started alike: each host has its own files, and its own command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from launching import CONFIG, TOY, environment
from ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def start(folder: Path, rank: int, port: int, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """One process of two, as a launcher on a host of its own starts it."""
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(TOY), "toy.yaml", *arguments]
    variables = environment() | place | more
    return subprocess.Popen(command, cwd=folder, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("what", ["configuration", "data set", "initial weights"])
def test_a_rank_that_differs_is_named_with_what_differs(tmp_path: Path, what: str) -> None:
    (tmp_path / "toy.yaml").write_text(CONFIG)
    port = free_port()
    same = ("toy.differ=true",) if what == "initial weights" else ()
    other = ("train.lr=0.02",) if what == "configuration" else same
    data = {"TOY_DATA": "another"} if what == "data set" else {}
    jobs = [start(tmp_path, 0, port, *same), start(tmp_path, 1, port, *other, **data)]
    said = [job.communicate(timeout=600)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [1, 1]
    for text in said:
        if what == "data set":
            assert re.search(
                r"data set: \S+ \(rank 1\) sees [0-9a-f]{12}, the others [0-9a-f]{12}; give every host the same", text
            )
        else:
            assert f"processes disagree: rank 1 has another {what} than rank 0; start all processes with the same files" in text
        assert "Traceback" not in text
    assert not (tmp_path / "run" / "trace.jsonl").exists()
