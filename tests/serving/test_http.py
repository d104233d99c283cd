"""``mlflow models serve`` over HTTP: nights in, stages in JSON out, and status 400 with the reason for what is none."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

import sleepfm
from sleepfm.serving.inputs import LIMIT_VARIABLE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).resolve().parents[2]


def post(address: str, body: Any) -> tuple[int, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/invocations", content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture(scope="module")
def server(store: str, recordings: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the scorer whose working folder holds the recordings; at most 8 MiB of bytes at once."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    environment = os.environ | {"MLFLOW_TRACKING_URI": store, "PYTHONPATH": str(ROOT), LIMIT_VARIABLE: str(8 / 1024)}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/sleepfm-scorer@champion"]
    command += ["--env-manager", "local", "--port", str(port), "--timeout", "600"]
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=recordings[0].parent, env=environment, stdout=file, stderr=file, process_group=0)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 600
    try:
        while True:
            try:
                with urllib.request.urlopen(f"{address}/ping", timeout=5):
                    break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def test_paths_and_bytes_are_scored(server: str, store: str, recordings: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    expected = sleepfm.score(recordings[0]).stages.tolist()
    status, answer = post(server, {"dataframe_records": [{"recording": recordings[0].name}]})
    assert status == 200 and answer["predictions"][0]["stages"] == expected
    content = base64.b64encode(recordings[0].read_bytes()).decode()
    status, answer = post(server, {"dataframe_records": [{"edf": content, "name": recordings[0].name}]})
    assert status == 200 and answer["predictions"][0]["stages"] == expected


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"dataframe_records": [{"recording": "nowhere.edf"}]}, "nowhere.edf"),
        ({"dataframe_records": [{"recording": "/etc/passwd"}]}, "only reads recordings below its folder"),
        ({"dataframe_records": [{"edf": base64.b64encode(b"no EDF").decode()}]}, "recording.edf"),
        ({"dataframe_records": [{"edf": base64.b64encode(bytes(9 * 2**20)).decode()}]}, "MiB fit in one request"),
        ({"dataframe_records": [{"edf": 3}]}, ""),
        ({"dataframe_records": [{"colour": "red"}]}, ""),
        ({"dataframe_records": []}, ""),
        (b"no JSON", ""),
    ],
    ids=("absent", "outside", "no EDF", "large", "no text", "unknown", "none", "no JSON"),
)
def test_what_is_no_night_is_status_400_with_the_reason(server: str, body: Any, reason: str) -> None:
    status, answer = post(server, body)
    assert status == 400 and reason in answer["message"], (status, answer)


def test_ten_requests_at_once_are_all_answered_alike(server: str, recordings: list[Path]) -> None:
    bodies = [{"dataframe_records": [{"recording": recordings[number % 4].name}]} for number in range(10)]
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda body: post(server, body), bodies))
    assert [status for status, _ in answers] == [200] * 10
    for number, (_, answer) in enumerate(answers):
        assert answer["predictions"][0]["record"] == recordings[number % 4].stem
        assert answer == answers[number % 4][1]
