"""``mlflow models serve`` over HTTP: nights in, stages and events in JSON out; what is none gets status 400 and the reason."""

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
NO_RECORDING = "no recording: give a column 'recording' of paths, or 'edf' of bytes (base64 in JSON)"


def post(address: str, body: Any) -> tuple[int, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/invocations", content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture(scope="module")
def server(located_store: str, recordings: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the scorer that tells events to the second; its working folder holds the recordings, and it takes at most
    8 MiB of bytes at once.
    """
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    environment = os.environ | {"MLFLOW_TRACKING_URI": located_store, "PYTHONPATH": str(ROOT), LIMIT_VARIABLE: str(8 / 1024)}
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


@pytest.fixture(scope="module")
def expected(located_store: str, recordings: list[Path]) -> list[dict[str, Any]]:
    """Stages and events of the first three nights, as this process scores them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", located_store)
        scores = [sleepfm.score(path) for path in recordings[:3]]
    found = []
    for score in scores:
        events = [{"type": event.type, "onset": event.onset, "duration": event.duration} for event in score.events]
        assert {event["type"] for event in events} == {"apnea", "hypopnea"}
        found.append({"record": score.record, "stages": score.stages.tolist(), "events": events})
    return found


def told(answer: Any) -> list[dict[str, Any]]:
    return [{key: row[key] for key in ("record", "stages", "events")} for row in answer["predictions"]]


def test_paths_and_bytes_are_scored_with_stages_and_events(
    server: str, recordings: list[Path], expected: list[dict[str, Any]]
) -> None:
    status, answer = post(server, {"dataframe_records": [{"recording": recordings[0].name}]})
    assert status == 200 and told(answer) == expected[:1]
    content = base64.b64encode(recordings[0].read_bytes()).decode()
    status, answer = post(server, {"dataframe_records": [{"edf": content, "name": recordings[0].name}]})
    assert status == 200 and told(answer) == expected[:1]


def test_several_paths_give_a_row_each_in_their_order(
    server: str, recordings: list[Path], expected: list[dict[str, Any]]
) -> None:
    # Neither sorted nor all different: rows are those of the request, not of the files.
    order = [2, 0, 1, 0]
    names = [recordings[number].name for number in order]
    for body in ({"dataframe_records": [{"recording": name} for name in names]}, {"inputs": {"recording": names}}):
        status, answer = post(server, body)
        assert status == 200 and told(answer) == [expected[number] for number in order]
    # One that is none is named, and no half of an answer is given.
    status, answer = post(server, {"inputs": {"recording": [names[0], "nowhere.edf"]}})
    assert status == 400 and "nowhere.edf: cannot be read" in answer["message"], (status, answer)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"dataframe_records": [{"recording": "nowhere.edf"}]}, "nowhere.edf: cannot be read"),
        ({"dataframe_records": [{"recording": "/etc/passwd"}]}, "only reads recordings below its folder"),
        ({"dataframe_records": [{"edf": base64.b64encode(b"no EDF").decode()}]}, "recording.edf"),
        ({"dataframe_records": [{"edf": base64.b64encode(bytes(9 * 2**20)).decode()}]}, "MiB fit in one request"),
        # These two are MLflow's own words: it decodes the bytes before the model sees them.
        ({"dataframe_records": [{"edf": 3}]}, "Failed to convert column edf to type"),
        ({"dataframe_records": [{"edf": "abcde"}]}, "Invalid base64-encoded string"),
        ({"dataframe_records": [{"colour": "red"}]}, NO_RECORDING),
        ({"dataframe_records": []}, NO_RECORDING),
        ({"dataframe_records": [{"recording": None}]}, "row 1: give either 'recording', a path, or 'edf', the bytes of a file"),
        (b"no JSON", "Ensure that input is a valid JSON formatted string"),
        ({"nights": ["a.edf"]}, "exactly one of the input fields"),
    ],
    ids=("absent", "outside", "no EDF", "large", "no text", "no base64", "unknown", "none", "null", "no JSON", "no field"),
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
