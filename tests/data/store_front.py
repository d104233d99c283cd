"""A front before the local S3 server that counts the bytes it gives and behaves as stores do: errs, dawdles, cuts connections."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

PASSED_ON = ("range", "if-match", "authorization", "x-amz-date", "x-amz-content-sha256")


@dataclass
class StoreFront:
    """Shares of the requests for objects that fail, seconds before each answer, and what was given.

    Objects whose key ends in ``missing`` are not there. ``given`` has of every object (its key) the bytes ``begin .. end`` of
    each answer that was sent whole.
    """

    errors: float = 0.0
    cuts: float = 0.0
    pause: float = 0.0
    ranges: bool = True
    missing: str = ""
    given: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    failed: int = 0
    endpoint: str = ""
    _random: random.Random = field(default_factory=lambda: random.Random(7))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def shard_bytes(self) -> int:
        """Bytes of shards that were given."""
        return sum(end - begin for key, given in self.given.items() if key.endswith(".tar") for begin, end in given)

    def repeated(self) -> int:
        """Bytes of shards that were given again."""
        return self.shard_bytes() - sum(_covered(given) for key, given in self.given.items() if key.endswith(".tar"))

    def requests(self) -> int:
        """Answers with bytes of shards."""
        return sum(len(given) for key, given in self.given.items() if key.endswith(".tar"))

    def forget(self) -> None:
        """Count from now on."""
        with self._lock:
            self.given, self.failed = {}, 0

    def fate(self) -> str:
        """What becomes of the next request."""
        with self._lock:
            drawn = self._random.random()
            fate = "error" if drawn < self.errors else "cut" if drawn < self.errors + self.cuts else ""
            self.failed += bool(fate)
        return fate

    def note(self, key: str, begin: int, size: int) -> None:
        with self._lock:
            self.given.setdefault(key, []).append((begin, begin + size))


def _covered(given: list[tuple[int, int]]) -> int:
    covered, reach = 0, 0
    for begin, end in sorted(given):
        covered += max(0, end - max(begin, reach))
        reach = max(reach, end)
    return covered


@contextmanager
def store_front(behind: str) -> Iterator[StoreFront]:
    """A running front before the server at the address ``behind``."""
    front, address = StoreFront(), urlsplit(behind)
    kept = threading.local()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(b"")

        def do_GET(self) -> None:
            self._answer(b"")

        def do_PUT(self) -> None:
            self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        do_POST = do_PUT

        def _answer(self, body: bytes) -> None:
            of_object = self.command == "GET" and "?" not in self.path
            time.sleep(front.pause if of_object else 0)
            fate = front.fate() if of_object else ""
            headers = {name: value for name, value in self.headers.items() if name.lower() in PASSED_ON}
            if not front.ranges:
                headers.pop("Range", None)
            if not hasattr(kept, "connection"):
                kept.connection = http.client.HTTPConnection(address.hostname or "", address.port)
            kept.connection.request(self.command, self.path, body or None, headers)
            answer = kept.connection.getresponse()
            content = answer.read()
            missing = bool(front.missing) and self.path.split("?")[0].endswith(front.missing)
            if fate == "error" or missing:
                self.send_response(404 if missing else 503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("server", "date", "connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)) if self.command != "HEAD" else answer.headers["Content-Length"])
            self.end_headers()
            if fate == "cut":
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
                return
            if self.command != "HEAD":
                self.wfile.write(content)
            if of_object and answer.status in (200, 206):
                begin = int((answer.headers.get("Content-Range") or "bytes 0-").split()[1].split("-")[0])
                front.note(self.path.split("?")[0].lstrip("/").split("/", 1)[1], begin, len(content))

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    front.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield front
    finally:
        server.shutdown()
        server.server_close()
