"""One writer a folder, among processes, and after a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sleepfm.errors import BusyError, StorageError
from sleepfm.lock import LOCK_FILE, only_writer

HOLD = """
import sys
import threading
from pathlib import Path
from sleepfm.lock import only_writer

with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_writer_is_refused_by_host_and_process_and_a_kill_frees_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    first = holder(folder)
    named = rf"{re.escape(str(folder))}: process {first.pid} on host {re.escape(socket.gethostname())} \(since 20"
    for _ in range(2):
        with pytest.raises(BusyError, match=named), only_writer(folder):
            pass
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    with only_writer(folder):
        assert json.loads((folder / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert (folder / LOCK_FILE).read_bytes() == b""


def test_a_writer_in_the_same_process_is_refused_as_well(tmp_path: Path) -> None:
    with only_writer(tmp_path), pytest.raises(BusyError, match=f"process {os.getpid()} "), only_writer(tmp_path):
        pass
    with only_writer(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link"])
def test_somebody_elses_file_of_that_name_is_not_taken(tmp_path: Path, kind: str) -> None:
    folder, path, mine = tmp_path / "folder", tmp_path / "folder" / LOCK_FILE, tmp_path / "mine.txt"
    folder.mkdir()
    mine.write_text("mine")
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(mine if kind == "link" else tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StorageError, match=re.escape(str(path))), only_writer(folder):
        pass
    assert sorted(tmp_path.rglob("*")) == before and mine.read_text() == "mine"
    assert kind != "file" or path.read_text() == "mine"


def test_a_writer_that_ends_in_time_is_waited_for(tmp_path: Path) -> None:
    first, said = holder(tmp_path), list[str]()
    with pytest.raises(BusyError, match="is writing here; wait for it"), only_writer(tmp_path, 0.5, said.append):
        pass
    assert said and all(re.search(rf"process {first.pid} on host .* is writing here$", text) for text in said)
    threading.Timer(0.5, lambda: first.communicate()).start()
    with only_writer(tmp_path, 60):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
