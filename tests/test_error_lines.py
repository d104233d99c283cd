"""What a user gets wrong is one line on standard error, in bounded time, from the commands as they are started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from sleepfm.cli import main
from sleepfm.data.format import SCHEMA

ROOT = Path(__file__).resolve().parents[1]
# Nothing listens on port 9 of this machine (the discard service is long gone).
NOWHERE = "http://127.0.0.1:9"
CONFIG = "configs/downstream/probe-stage-tiny.yaml"


def run(folder: Path, *words: str, seconds: float = 120, **variables: str) -> subprocess.CompletedProcess[str]:
    """``python WORDS`` in ``folder``, without the tracking store and cluster of whoever runs the tests."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "RAY_", "PYTHONIOENCODING"))}
    environment = kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"} | variables
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds)


def one_line(done: subprocess.CompletedProcess[str], status: int) -> str:
    assert done.returncode == status, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


SLEEPFM, SHARDS = ("-m", "sleepfm.cli"), ("-m", "shards")


@pytest.fixture
def night(tmp_path: Path) -> str:
    """A name of a recording, which no command here comes to read."""
    (tmp_path / "night.edf").write_bytes(b"0" * 300)
    return "night.edf"


@pytest.mark.parametrize(
    "words",
    [
        ("score", "night.edf", "--out", "scored"),
        ("embed", "night.edf", "--model", "models:/sleepfm-stage@champion", "--out", "e.parquet"),
        ("models",),
        ("models", "promote", "sleepfm-stage", "1"),
        ("export", "models:/sleepfm-stage@champion", "--to", "exported"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
@pytest.mark.slow
def test_a_registry_that_is_away(tmp_path: Path, night: str, words: tuple[str, ...]) -> None:
    line = one_line(run(tmp_path, *SLEEPFM, *words, MLFLOW_TRACKING_URI=NOWHERE), 1)
    assert NOWHERE in line and "Connection refused" in line and "MLFLOW_TRACKING_URI" in line


@pytest.mark.slow
@pytest.mark.parametrize("script", ["probe", "finetune"])
def test_a_job_whose_registry_is_away(tmp_path: Path, script: str) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "dataset.json").write_text(json.dumps({"schema": SCHEMA, "digest": "d" * 64}))
    config = ROOT / "configs" / "downstream" / f"{script}-stage-tiny.yaml"
    words = [str(ROOT / "launch" / f"{script}.py"), str(config), "data.path=shards", f"tracking.uri={NOWHERE}"]
    done = run(tmp_path, *words)
    assert "Traceback" not in done.stderr and done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and NOWHERE in errors[0] and "Connection refused" in errors[0], done.stderr


class Answering(BaseHTTPRequestHandler):
    """A web server that is no registry."""

    status, body = 200, b"<html>Welcome</html>"

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def web() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), type("Handler", (Answering,), {}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>Welcome</html>"), (404, b"<html>nothing</html>"), (500, b"oops"), (500, b'{"error_code": "INTERNAL_ERROR"}')],
)
def test_a_server_that_is_no_registry(
    web: HTTPServer, status: int, body: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    web.RequestHandlerClass.status, web.RequestHandlerClass.body = status, body  # type: ignore[attr-defined]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    address = f"http://127.0.0.1:{web.server_port}"
    assert main(["models", "--store", address]) == 1
    assert main(["models", "promote", "x", "1", "--store", address]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith(f"error: {address}: the registry does not answer") for line in lines)
    assert max(map(len, lines)) < 600


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (
            403,
            b"Invalid Host header - possible DNS rebinding attack detected",
            "the server refuses the host name NAME (Invalid Host header); start it with --allowed-hosts NAME, or call it in ",
        ),
        (
            403,
            b'{"error_code": "PERMISSION_DENIED", "message": "no"}',
            "the registry refuses access (PERMISSION_DENIED: no); set ",
        ),
        (401, b"You are not authenticated.", "the registry refuses access (API request to endpoint "),
    ],
    ids=["name", "rights", "user"],
)
def test_a_registry_that_refuses(
    web: HTTPServer, status: int, body: bytes, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    web.RequestHandlerClass.status, web.RequestHandlerClass.body = status, body  # type: ignore[attr-defined]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    name = f"127.0.0.1:{web.server_port}"
    for words in (["models"], ["models", "promote", "x", "1"]):
        assert main([*words, "--store", f"http://user:secret@{name}"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: http://user:***@{name}: {said.replace('NAME', name)}") and "secret" not in line


@pytest.mark.parametrize("kind", ["folder", "text", "driver"])
def test_a_store_that_is_none(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("hello")
    store = "mysql+nodriver://x" if kind == "driver" else f"sqlite:///{tmp_path / kind}"
    assert main(["models", "--store", store]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")


def test_a_path_is_no_address_of_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    meant = {"nosuch.db": "sqlite:///nosuch.db", "runs": "sqlite:///runs/mlflow.db", "file:/a/b.db": "sqlite:////a/b.db"}
    servers = ("127.0.0.1:5077", "localhost:5000", "[::1]:5000", "ml-host.lab:80/mlflow")
    meant |= {server: f"http://{server}" for server in servers}
    for path, address in meant.items():
        assert main(["models", "--store", path]) == 1
        assert capsys.readouterr().err == f"error: {path}: is no address of a store; write {address}\n"
    assert main(["models", "--store", "user:secret@host:5000"]) == 1
    assert capsys.readouterr().err == "error: user:***@host:5000: is no address of a store; write http://user:***@host:5000\n"


@pytest.mark.parametrize("name", ["x.csv", "embeddings", "x.parquet.gz"])
def test_embeddings_are_written_under_their_own_ending(
    name: str, night: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["embed", night, "--model", "none", "--out", name]) == 2
    said = f"error: --out {name}: embeddings are written as Parquet; give a file whose name ends in .parquet\n"
    assert capsys.readouterr().err == said and not Path(name).exists()


def test_a_recording_is_no_checkpoint(
    night: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", night, "converted"]) == 1
    assert capsys.readouterr().err.startswith("error: night.edf: not a PyTorch checkpoint (")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("shards", ("export", "folder", "s3://bucket/out")),
        ("sleepfm", ("synth", "s3://bucket/out", "--subjects", "1", "--hours", "1")),
        ("sleepfm", ("score", "night.edf", "--out", "s3://bucket/out")),
        ("sleepfm", ("embed", "night.edf", "--model", "folder", "--out", "s3://bucket/e.parquet")),
        ("sleepfm", ("convert", "checkpoint.pth", "s3://bucket/out")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_results_at_a_url(
    command: str, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from shards.__main__ import main as shards

    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert (shards if command == "shards" else main)(list(words)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "bucket" in lines[0] and "a URL" in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_training_output_at_a_url() -> None:
    from sleepfm.config import load_config
    from sleepfm.errors import ConfigError
    from sleepfm.stages.downstream_config import ProbeConfig

    for key in ("train.output", "cache"):
        with pytest.raises(ConfigError, match=rf"{key}.*a URL"):
            load_config(ProbeConfig, ROOT / CONFIG, [f"{key}=s3://bucket/out"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "status", "said"),
    [
        ({"RAY_ADDRESS": "127.0.0.1:9"}, 2, r"RAY_ADDRESS=127.0.0.1:9: no Ray cluster answers"),
        ({"RAY_ADDRESS": "http://127.0.0.1:8265"}, 2, "expected HOST:PORT"),
        ({"TMPDIR": "LONG"}, 2, "too long for Ray"),
    ],
    ids=["dead", "job server", "TMPDIR"],
)
def test_a_ray_cluster_that_cannot_be(tmp_path: Path, variables: dict[str, str], status: int, said: str) -> None:
    assert main(["synth", str(tmp_path / "src"), "--subjects", "1", "--hours", "0.15", "--workers", "1"]) == 0
    long = tmp_path / ("x" * 100)
    long.mkdir()
    variables = {key: value.replace("LONG", str(long)) for key, value in variables.items()}
    done = run(tmp_path, *SHARDS, "build", "src", "out", seconds=60, **variables)
    lines = [line for line in done.stderr.splitlines() if line]
    assert done.returncode == status and said in lines[-1], done.stderr
    assert len([line for line in lines if "Ray" in line]) <= 2 and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words", [(*SLEEPFM, "score", "--help"), (*SHARDS, "info", "out"), (str(ROOT / "launch" / "probe.py"), "-h")]
)
@pytest.mark.slow
def test_an_ascii_terminal(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = run(tmp_path, *words, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert "UnicodeEncodeError" not in done.stderr and done.returncode in (0, 1)


def test_characters_that_the_output_lacks_are_escaped(tmp_path: Path) -> None:
    code = r"from sleepfm.console import accept_every_character as a; a(); print('\u03ba \u00b5V \u2192 \udcff')"
    done = run(tmp_path, "-c", code, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "\\u03ba \\xb5V \\u2192 \\udcff\n")
