"""A real ``mlflow server`` that a test can kill and start again on the same store."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ports import free_port


class Server:
    """The server of the SQLite file in ``folder``, which keeps artifacts itself, on one port for its whole life.

    ``prefix`` puts it into another network, where it listens at ``host``.
    """

    def __init__(self, folder: Path, host: str = "127.0.0.1", prefix: Sequence[str] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._host, self._prefix = folder, host, list(prefix)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://{self._host}:{self.port}"

    @property
    def log(self) -> str:
        """What it has said, every request included."""
        return (self._folder / "server.log").read_text()

    def start(self) -> None:
        command = [*self._prefix, sys.executable, "-m", "mlflow", "server", "--host", self._host, "--port", str(self.port)]
        command += ["--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        log = (self._folder / "server.log").open("ab")
        self._process = subprocess.Popen(command, stdout=log, stderr=log, process_group=0)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if self._answers():
                return
            assert self._process.poll() is None, self.log
            time.sleep(0.2)
        raise AssertionError("the server did not start")

    def _answers(self) -> bool:
        connect = f"import socket; socket.create_connection(({self._host!r}, {self.port}), 5)"
        if self._prefix:
            return subprocess.run([*self._prefix, sys.executable, "-c", connect], capture_output=True).returncode == 0
        with socket.socket() as probe:
            return probe.connect_ex((self._host, self.port)) == 0

    def kill(self) -> None:
        """SIGKILL to all its processes, if it runs."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
