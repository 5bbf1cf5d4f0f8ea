"""Sends requests to a server of completions, again after a while if it is busy, restarting or out of reach."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from ...errors import EngineFailed, UsageError
from .api_key import read_key

KEY_VARIABLE = "TRB_TEACHER_API_KEY"
BUSY = (408, 425, 429, 500, 502, 503, 504)  # answers after which the same request may succeed
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds between two tries
CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Role:
    """What a server is for, in the words of messages, and where its key is found."""

    name: str
    key_variable: str
    to_continue: str  # ends the message that no answer came

    @property
    def article(self) -> str:
        """The name with its article."""
        return f"an {self.name}" if self.name[0] in "aeiou" else f"a {self.name}"


TEACHER = Role("teacher", KEY_VARIABLE, "the run continues from its last checkpoint when the server is back")


class HTTPSession:
    """A server, and how patient the client is. Requests only ask, so a request may be sent again. Threads may share it.

    Args:
        url: http://HOST:PORT or https://HOST:PORT, with a path if the server has one; a final /v1 is dropped.
        api_key: The server's key; None is that of the role's variable in the environment, if there is one. It is sent
            to this server only, and neither printed nor stored.
        timeout: Seconds to wait for an answer.
        tries: How often a request is sent before it fails. The pauses between are 0.5, 1, 2, ... seconds, up to a
            minute, or what the server asks for.
        role: Of the server.
        connections: Kept open at a time, one for each thread that asks.
        gone: Returns why no try can succeed any more, or None; is called after each try that failed.

    Raises:
        UsageError: The URL is none, or holds a password, which logs and checkpoints would keep; or no header can hold
            the key.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 300.0,
        tries: int = 8,
        role: Role = TEACHER,
        connections: int = 10,
        gone: Callable[[], str | None] = lambda: None,
    ) -> None:
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except (AttributeError, TypeError, ValueError):
            valid = False
        if not valid:
            raise UsageError(f"the URL of {role.article} must be like http://localhost:8000, got {url!r}")
        if parts.username is not None or parts.password is not None or parts.query:
            raise UsageError(f"the URL of {role.article} must hold no key: set {role.key_variable} instead")
        if not timeout > 0:
            raise UsageError(f"the timeout of {role.article} is in seconds and must be > 0, got {timeout}")
        if tries < 1:
            raise UsageError(f"a request to {role.article} is tried at least once, got tries={tries}")
        self.url = url.rstrip("/").removesuffix("/v1").rstrip("/")
        self._timeout, self._tries = timeout, tries
        self._key = read_key(api_key, role.key_variable)
        self._session = requests.Session()
        self._session.trust_env = False  # neither a key from ~/.netrc nor a proxy
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=connections))
        self.role, self._gone = role, gone

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def send(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Sends a request and waits for its answer.

        Args:
            method: GET or POST.
            path: Begins with a slash.
            body: Becomes JSON; None is no body.

        Returns:
            The status, and the answer from JSON: None if it is none.

        Raises:
            EngineFailed: There is no answer after all tries.
        """
        cause = ""
        for tried in range(1, self._tries + 1):
            try:
                reply = self._send_once(method, path, body)
            except requests.RequestException as error:  # also one that breaks in the middle of an answer
                cause, pause = _cause(error), ""
            else:
                if reply.status_code not in BUSY or tried == self._tries:
                    return reply.status_code, _json(reply)
                pause = reply.headers.get("Retry-After", "")
            hopeless = self._gone()
            if hopeless is not None:
                raise EngineFailed(hopeless)
            if tried < self._tries:
                asked = float(pause) if pause.isdecimal() else FIRST_PAUSE * 2 ** (tried - 1)
                time.sleep(min(asked, LONGEST_PAUSE))
        raise EngineFailed(
            f"the {self.role.name} at {self.url} gave no answer in {self._tries} tries ({cause}): "
            f"{self.role.to_continue}"
        )

    def _send_once(self, method: str, path: str, body: Any) -> requests.Response:
        return self._session.request(
            method,
            self.url + path,
            json=body,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=(CONNECT_SECONDS, self._timeout),
            allow_redirects=False,  # a key is not carried elsewhere
        )

    def answer(self, method: str, path: str, body: Any = None) -> Any:
        """Sends a request whose answer must be of status 200 and JSON.

        Raises:
            UsageError: The server refuses the request or the key.
            EngineFailed: It gives no answer, or one that says that it failed.
        """
        status, found = self.send(method, path, body)
        if status == 200 and found is not None:
            return found
        message = error_message(found) or f"status {status}"
        if status in (401, 403):
            raise UsageError(
                f"the {self.role.name} at {self.url} refuses the key: set {self.role.key_variable} ({message})"
            )
        if status in BUSY:
            raise EngineFailed(f"the {self.role.name} at {self.url} failed in {self._tries} tries: {message}")
        raise UsageError(f"the {self.role.name} at {self.url} refuses {path}: {message}")


def _json(reply: requests.Response) -> Any:
    try:
        return reply.json()
    except ValueError:
        return None


def error_message(answer: Any) -> str:
    """Returns the message of an answer that is an error, in one line; "" if it has none."""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    message = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(message).split())[:600] if message else ""


def _cause(error: BaseException) -> str:
    reason: Any = error.args[0] if error.args else error
    reason = getattr(reason, "reason", None) or reason
    # urllib3 puts the object of a connection, with its address in memory, before the words.
    return " ".join(str(reason).split(": ", 1)[-1].split())[:200].rstrip(")'") or type(error).__name__
