"""Sends requests to an HTTP server, many at a time, and says in one line what is wrong with it."""

from __future__ import annotations

import http.client
import json
import resource
import socket
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from ...errors import EngineFailed, UsageError
from ...teachers.remote.api_key import read_key

KEY_VARIABLE = "VLLM_API_KEY"
CONNECT_SECONDS = 10.0
# A request waits as long as a rollout takes, so a dead machine is noticed by these probes, after two minutes.
KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}


class Unreachable(UsageError):
    """Nothing answers at an address."""


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        """The body as JSON, or None if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def error(self) -> str:
        """The message of an answer that is an error, in one line."""
        answer = self.json()
        error = answer.get("error", answer) if isinstance(answer, dict) else None
        message = error.get("message") if isinstance(error, dict) else error
        return " ".join(str(message or self.body.decode(errors="replace")).split())[:600] or f"status {self.status}"


class ServerConnection:
    """A server, to which each request takes a connection of its own: the server closes idle ones at any time.

    Args:
        url: http://HOST:PORT or https://HOST:PORT, with a path if the server has one.
        api_key: The server's --api-key; None is that of VLLM_API_KEY in the environment, if there is one.

    Raises:
        UsageError: The URL is none, or holds a password, which messages would print; or no header can hold the key.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
            host.encode("idna")  # as the look-up of its address does, which raises no OSError
            valid = parts.scheme in ("http", "https") and bool(host) and parts.path.isascii()
        except ValueError:  # of which UnicodeError is one
            valid = False
        if not valid:
            raise UsageError(f"the URL of a server must be like http://localhost:8000, got {url!r}")
        if parts.username is not None or parts.password is not None or parts.query:
            raise UsageError(f"the URL of a server must hold no key: set {KEY_VARIABLE} instead")
        self.url = url.rstrip("/")
        self._host, self._port, self._path = host, port, parts.path.rstrip("/")
        self._class = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        key = read_key(api_key, KEY_VARIABLE)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def send(self, method: str, path: str, body: Any = None) -> Reply:
        """Sends one request and waits for its answer. It is never sent twice.

        Args:
            method: GET or POST.
            path: Begins with a slash.
            body: Becomes JSON; None is no body.

        Raises:
            Unreachable: Nothing answers at the address.
            EngineFailed: The server broke the connection.
        """
        return self._send(method, path, body, _Open())

    def send_all(self, path: str, bodies: Sequence[Any], *, at_a_time: int) -> list[Reply]:
        """Sends POST requests, and waits for all answers.

        The first error breaks the other connections, by which vLLM ends their requests.

        Args:
            path: Begins with a slash.
            bodies: Become JSON.
            at_a_time: How many are under way at the same time, at most: each has a connection, and all of them have no
                more than half of the files that this process may open.

        Returns:
            The answers, in the order of the bodies; or, if one is not of status 200, only that one.

        Raises:
            Unreachable: Nothing answers at the address.
            EngineFailed: The server broke a connection.
        """
        opened = _Open()
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit != resource.RLIM_INFINITY:
            at_a_time = min(at_a_time, limit // 2)
        with ThreadPoolExecutor(max(1, min(at_a_time, len(bodies)))) as pool:
            try:
                futures = [pool.submit(self._send_good, path, body, opened) for body in bodies]
                wait(futures, return_when=FIRST_EXCEPTION)
                if opened.error is None:
                    return [future.result() for future in futures]
            finally:
                opened.close()
                pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(opened.error, _BadStatus):
            return [opened.error.reply]
        raise opened.error

    def _send_good(self, path: str, body: Any, opened: _Open) -> Reply:
        try:
            reply = self._send("POST", path, body, opened)
            if reply.status != 200:
                raise _BadStatus(reply)
        except Exception as error:
            opened.close(error)
            raise
        return reply

    def _send(self, method: str, path: str, body: Any, opened: _Open) -> Reply:
        connection = self._class(self._host, self._port, timeout=CONNECT_SECONDS)
        try:
            connection.connect()
        except OSError as error:
            raise Unreachable(f"no server answers at {self.url} ({error})") from error
        try:
            opened.add(connection.sock)
            connection.sock.settimeout(None)
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEP_ALIVE.items():
                if hasattr(socket, name):
                    connection.sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            content = None if body is None else json.dumps(body).encode()
            headers = {**self._headers, "Connection": "close"}
            if content is not None:
                headers["Content-Type"] = "application/json"
            connection.request(method, self._path + path, content, headers)
            response = connection.getresponse()
            named = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, named, response.read())
        except (OSError, http.client.HTTPException) as error:
            raise EngineFailed(
                f"the server at {self.url} broke off while it answered {path} ({error or type(error).__name__}): its "
                "own output says why"
            ) from error
        finally:
            connection.close()


class _BadStatus(Exception):
    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


class _Open:
    """The sockets of requests that are under way, so that another thread can end them."""

    def __init__(self) -> None:
        self._lock, self._closed = Lock(), False
        self._sockets: list[socket.socket] = []
        self.error: Exception | None = None  # the first one, because of which the others were ended

    def add(self, opened: socket.socket) -> None:
        with self._lock:
            if self._closed:
                raise ConnectionAbortedError("another request failed")
            self._sockets.append(opened)

    def close(self, error: Exception | None = None) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed, self.error = True, error
            for opened in self._sockets:
                try:
                    opened.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # it was answered
