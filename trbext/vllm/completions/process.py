"""Starts a vLLM server of one model that ends with this process, and loads other checkpoints into it."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import requests

from ...errors import EngineFailed
from ...teachers.remote.http_session import HTTPSession, Role
from ..server.serve import check_install, environment
from . import end_with_client
from .command import PLUGINS, command

POLL_SECONDS = 0.2  # between two looks whether a server has started
END_SECONDS = end_with_client.GRACE + 10.0
_ERROR = re.compile(r"\b(?:\w+(?:Error|Exception)|error): .+")
_CONSEQUENCES = ("Engine core initialization failed", "EngineDeadError", "Worker failed with error")  # after the reason


class CompletionServer:
    """A server on this machine, which only this process can ask, and which ends with it, however it ends.

    Its output goes to a temporary file, which stays if the server fails.

    Args:
        model: A folder or a name on the Hub.
        dtype: In which it computes.
        longest: Tokens of the longest prompt and its completion.
        flags: Further ones of vLLM's.

    Raises:
        UsageError: vLLM is not installed, or too old.
        ValueError: A flag is refused.
        EngineFailed: The server ended while it started.
    """

    def __init__(self, model: str, *, dtype: str, longest: int, flags: Sequence[str] = ()) -> None:
        # 1. Reserve a port: bound without listening, so that only a server that asks for this one can have it.
        reserved = socket.socket()
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = int(reserved.getsockname()[1])
        with reserved:
            words = command(model, dtype=dtype, longest=longest, port=port, flags=flags)
            check_install("--engine vllm", PLUGINS)
            # 2. Start the server, with a key that no command line shows.
            self.url, self.key = f"http://127.0.0.1:{port}", secrets.token_urlsafe(32)
            descriptor, path = tempfile.mkstemp(prefix="trb-vllm-", suffix=".log")
            self.log, self._failed = Path(path), False
            with os.fdopen(descriptor, "wb") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-S", end_with_client.__file__, *words],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environment(os.environ, PLUGINS), "VLLM_API_KEY": self.key},
                    start_new_session=True,
                )
            # 3. Wait until it answers.
            try:
                while not self._answers():
                    ended = self.gone()
                    if ended is not None:
                        raise EngineFailed(ended)
                    time.sleep(POLL_SECONDS)
            except BaseException:
                self.close()
                raise

    def _answers(self) -> bool:
        with suppress(requests.RequestException), requests.Session() as session:
            session.trust_env = False
            return session.get(f"{self.url}/health", timeout=10).status_code == 200
        return False

    def gone(self) -> str | None:
        """Returns why the server cannot answer any more; None while its process lives."""
        code = self._process.poll()
        if code is None:
            return None
        self._failed = True
        reason = _reason(self.log.read_text(encoding="utf-8", errors="replace"))
        return (
            f"the engine of vLLM has ended ({reason}; its output is in {self.log}): "
            "run the same command again, it continues"
        )

    def load(self, folder: str) -> None:
        """Loads the weights of another checkpoint, whose architecture is the same, and drops what was cached.

        Args:
            folder: Has safetensors files.

        Raises:
            UsageError: The weights do not fit.
            EngineFailed: The server failed.
        """
        self._ask("/trb/weights", {"path": str(Path(folder).resolve())})

    def digest(self) -> str:
        """Returns a digest of the weights that the server has."""
        return str(self._ask("/trb/digest", {})["digest"])

    def _ask(self, path: str, body: dict[str, str]) -> dict[str, str]:
        role = Role("engine", "VLLM_API_KEY", "run the same command again: it continues")
        session = HTTPSession(self.url, api_key=self.key, timeout=3600.0, tries=2, role=role, gone=self.gone)
        answer: dict[str, str] = session.answer("POST", path, body)
        return answer

    def close(self) -> None:
        """Ends the server and its processes."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if not self._failed:
            self.log.unlink(missing_ok=True)


def _reason(output: str) -> str:
    """Returns the last error in a server's output, or else its last line."""
    lines = output.splitlines()
    causes = [line for line in lines if not any(consequence in line for consequence in _CONSEQUENCES)]
    errors = [match[0] for line in causes if (match := _ERROR.search(line))]
    found = errors or [line for line in lines if line.strip()] or ["it printed nothing"]
    return found[-1].strip()[:300]
