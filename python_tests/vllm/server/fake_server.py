"""Serves what a test says, on a free port of this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BREAK = object()  # an answer of which half is sent before the connection breaks

HANDSHAKE = {"trb": 2, "replicas": 2, "max_num_seqs": 4, "tensor_parallel_size": 1, "teacher": "T", "student": "S"}


class FakeServer:
    """Answers by path, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        # An answer is (status, body[, headers]), where a body that is no bytes becomes JSON; BREAK; or a function of
        # the body of the request that gives one of them.
        self.answers: dict[str, Any] = {"/trb/handshake": (200, HANDSHAKE)}
        self.url = ""
        self._lock = threading.Lock()

    def of(self, path: str) -> list[Any]:
        return [body for asked, body in self.asked if asked == path]

    def answer(self, path: str, body: Any, headers: dict[str, str]) -> Any:
        with self._lock:
            self.asked.append((path, body))
            self.headers.append(headers)
        found = self.answers.get(path, (404, {"error": f"no {path}"}))
        return found(body) if isinstance(found, Callable) else found  # type: ignore[arg-type]


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    """Runs a `FakeServer` while the block runs."""
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            answer = fake.answer(self.path, body, {name.lower(): value for name, value in self.headers.items()})
            status, content, *more = (200, b"half", {"Content-Length": "8"}) if answer is BREAK else answer
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            headers = {"Content-Length": str(len(content)), **(more[0] if more else {})}
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            """Writes nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64  # connections that may wait

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        fake.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()
