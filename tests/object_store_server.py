"""A local S3 server (moto) that can be told to be as bad as real ones are; a process of its own, ended with its standard input.

Prints its port. Every request is a line on standard error, every fault one that begins with ``!``. ``PUT /-faults`` with JSON
sets :data:`FAULTS`.
"""

from __future__ import annotations

import io
import json
import random
import sys
import threading
import time
from typing import Any

import moto.s3.models
import moto.server
from werkzeug.serving import make_server

FAULTS: dict[str, Any] = {
    "errors": 0.0,  # share of requests that are answered with 503
    "lost": 0.0,  # share that is carried out and never answered
    "cut": 0.0,  # share of answers that break off half way
    "delay_s": 0.0,  # longest time before an answer
    "denied": [],  # methods that these credentials must not use
    "conditions": True,  # without: If-None-Match is overlooked, as by stores that do not know it
    "least_part": 5 * 2**20,  # bytes of a part that is not the last of an upload, as real stores want them
    "seed": 0,
}
_DENIAL = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_REFUSAL = b"<Error><Code>ServiceUnavailable</Code><Message>planted</Message></Error>"
_drawing = threading.Lock()
_deciding = threading.Lock()
_draws = random.Random(0)


def say(line: str) -> None:
    """One write: lines of requests that are served at once must not mix."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class Handler(moto.server.MotoRequestHandler):
    """A request, with the fault that is drawn for it."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        say(f"{self.command} {self.path}")

    def run_wsgi(self) -> None:
        if self.path == "/-faults":
            with _drawing:
                FAULTS.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                _draws.seed(FAULTS["seed"])
                moto.s3.models.S3_UPLOAD_PART_MIN_SIZE = FAULTS["least_part"]
            self._answer(200, b"")
            return
        with _drawing:
            drawn, waits = _draws.random(), _draws.random() * FAULTS["delay_s"]
        time.sleep(waits)
        if self.command in FAULTS["denied"]:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer(403, b"" if self.command == "HEAD" else _DENIAL)
            return
        for kind in ("errors", "lost", "cut"):
            if drawn < FAULTS[kind]:
                say(f"! {kind} {self.command} {self.path}")
                getattr(self, f"_{kind}")()
                return
            drawn -= FAULTS[kind]
        self._carry_out()

    def _carry_out(self) -> None:
        if not FAULTS["conditions"]:
            del self.headers["If-None-Match"]
        if self.command in ("PUT", "POST") and "If-None-Match" in self.headers:
            # A real store decides for one of two that come at once.
            with _deciding:
                super().run_wsgi()
        else:
            super().run_wsgi()

    def _errors(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(503, b"" if self.command == "HEAD" else _REFUSAL)

    def _lost(self) -> None:
        self._answer_in_part(0.0)

    def _cut(self) -> None:
        self._answer_in_part(0.5)

    def _answer_in_part(self, share: float) -> None:
        whole, self.wfile = self.wfile, io.BytesIO()
        try:
            self._carry_out()
            content = self.wfile.getvalue()
        finally:
            self.wfile = whole
        self.wfile.write(content[: int(share * len(content))])
        self.close_connection = True

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True


if __name__ == "__main__":
    application = moto.server.DomainDispatcherApplication(moto.server.create_backend_app)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()
