"""Starts vLLM servers on the CPU, as processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from python_tests.vllm.server.served_models import Models
from trbext.errors import UsageError
from trbext.vllm.http import HTTPEngine
from trbext.vllm.server import serve

START_SECONDS = 600.0
# Small engines whose models are computed as the tests compute them.
SIZES = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "32"]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass
class ServerProcess:
    """A server that runs, or did."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def ends(self) -> int:
        """Waits for its end and returns its exit code."""
        return self.process.wait(START_SECONDS)

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


@contextmanager
def server_process(models: Models, folder: Path, *flags: str, unchecked: Sequence[str] = ()) -> Iterator[ServerProcess]:
    """Starts `trb vllm-serve` with drafts of 3 tokens, and ends it with the block.

    Args:
        models: The teacher and the student.
        folder: For its output.
        flags: Of vLLM.
        unchecked: Further flags, which `trb vllm-serve` would refuse: of a server that someone starts by hand.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given = ["--host", "127.0.0.1", "--port", port, *SIZES, *flags]
    words = ["--teacher", str(models.teacher), "--student", str(models.student), "--draft-length", "3"]
    command = [sys.executable, "-m", "trbext", "vllm-serve", *words, "--", *given]
    added = ENVIRONMENT
    if unchecked:
        teacher, student = str(models.teacher), str(models.student)
        command = [*serve.command(teacher, student, draft_length=3, flags=given), *unchecked]
        added = ENVIRONMENT | serve.environment(os.environ)
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | added,
            start_new_session=True,
        )
    server = ServerProcess(process, f"http://127.0.0.1:{port}", log)
    try:
        yield server
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def connected(server: ServerProcess, api_key: str | None = None) -> HTTPEngine:
    """Waits for a server, and says why it does not come."""
    for _ in range(int(START_SECONDS)):
        try:
            return HTTPEngine(server.url, api_key=api_key, wait=1.0)
        except UsageError as error:
            if "no server answers" not in str(error) or server.process.poll() is not None:
                raise AssertionError(f"{error}\n{server.output()[-4000:]}") from error
    raise AssertionError(f"the server did not come up\n{server.output()[-4000:]}")
