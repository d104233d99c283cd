"""A local S3 server (moto) in a process of its own, reached over HTTP as a real one is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Requests are logged on stderr, one line each; the server ends when its standard input does.
_SERVER = """
import sys
import moto.server
def log(handler, code="-", size="-"):
    # One write: lines of requests that are served at once must not mix.
    sys.stderr.write(handler.command + " " + handler.path + "\\n")
    sys.stderr.flush()
moto.server.MotoRequestHandler.log_request = log
server = moto.server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
BUCKET = "sleep"


class ObjectStore:
    """A bucket, and the requests that were made of it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.endpoint = f"http://127.0.0.1:{int(process.stdout.readline())}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "FSSPEC_S3_ENDPOINT_URL": self.endpoint,
        }
        self._lines: list[str] = []
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self._lines.extend(iter(process.stderr.readline, ""))

    def gets(self, key: str) -> int:
        """How often bytes of ``key`` were asked for."""
        return sum(line.split("?")[0] == f"GET /{BUCKET}/{key}" for line in self.requests())

    def requests(self) -> list[str]:
        """Method and path of every request so far."""
        time.sleep(0.2)  # the lines of the last requests may still be on their way
        return [line.strip() for line in self._lines]

    def upload(self, folder: Path, prefix: str) -> str:
        """Every file below ``folder`` under ``prefix``; the URL of that."""
        client = self._client()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder).as_posix()}")
        return f"s3://{BUCKET}/{prefix}"

    def put(self, key: str, content: bytes) -> str:
        self._client().put_object(Bucket=BUCKET, Key=key, Body=content)
        return f"s3://{BUCKET}/{key}"

    def make_bucket(self) -> None:
        self._client().create_bucket(Bucket=BUCKET)

    def _client(self) -> Any:
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.endpoint, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
        )


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A running server whose address and credentials are in the environment, where fsspec and its clients look."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    before = dict(os.environ)
    try:
        store = ObjectStore(process)
        store.make_bucket()
        os.environ.update(store.environment)
        import fsspec.config

        fsspec.config.set_conf_env(fsspec.config.conf)
        yield store
    finally:
        os.environ.clear()
        os.environ.update(before)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(20)
