"""A local S3 server (moto) in a process of its own, reached over HTTP as a real one is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

_SERVER = Path(__file__).with_name("object_store_server.py")
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
        return [line for line in self._log() if not line.startswith("!")]

    def planted(self) -> list[str]:
        """Kind, method and path of every fault so far."""
        return [line.removeprefix("! ") for line in self._log() if line.startswith("!")]

    def _log(self) -> list[str]:
        time.sleep(0.2)  # the lines of the last requests may still be on their way
        return [line.strip() for line in self._lines]

    @contextmanager
    def faults(self, **kinds: Any) -> Iterator[None]:
        """Until the block ends requests meet faults of these kinds (``object_store_server.FAULTS``)."""
        from object_store_server import FAULTS

        self._set(kinds)
        try:
            yield
        finally:
            self._set(FAULTS)

    def _set(self, faults: dict[str, Any]) -> None:
        body = json.dumps(faults).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/-faults", body, method="PUT"), timeout=60):
            pass

    def names(self, prefix: str) -> list[str]:
        """Names of all objects below ``prefix``, relative to it."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        return [item["Key"].removeprefix(f"{prefix}/") for page in pages for item in page.get("Contents", [])]

    def contents(self, prefix: str) -> dict[str, bytes]:
        """Every object below ``prefix``, by its name in it."""
        client = self._client
        return {name: client.get_object(Bucket=BUCKET, Key=f"{prefix}/{name}")["Body"].read() for name in self.names(prefix)}

    def begin_upload(self, key: str, part: bytes) -> None:
        """An upload in parts of which the first has arrived, and whose sender is gone."""
        begun = self._client.create_multipart_upload(Bucket=BUCKET, Key=key)
        self._client.upload_part(Bucket=BUCKET, Key=key, UploadId=begun["UploadId"], PartNumber=1, Body=part)

    def unfinished_uploads(self) -> list[str]:
        """Keys of uploads in parts that are neither finished nor given up."""
        return [upload["Key"] for upload in self._client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])]

    def upload(self, folder: Path, prefix: str) -> str:
        """Every file below ``folder`` under ``prefix``; the URL of that."""
        client = self._client
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder).as_posix()}")
        return f"s3://{BUCKET}/{prefix}"

    def put(self, key: str, content: bytes) -> str:
        self._client.put_object(Bucket=BUCKET, Key=key, Body=content)
        return f"s3://{BUCKET}/{key}"

    def make_bucket(self) -> None:
        self._client.create_bucket(Bucket=BUCKET)

    @cached_property
    def _client(self) -> Any:
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.endpoint, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
        )


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A running server whose address and credentials are in the environment, where fsspec and its clients look."""
    process = subprocess.Popen(
        [sys.executable, str(_SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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
