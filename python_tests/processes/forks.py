"""Starts processes that need no imports: children of forking_server.py, of which each pytest process has one."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Forks:
    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="trbext-forks-")
        self.log = Path(self.folder.name) / "log.txt"  # what the children of the last call printed
        search = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with (Path(self.folder.name) / "server.txt").open("wb") as output:
            self.server = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("forking_server.py"))],
                stdin=subprocess.PIPE,  # the server ends when this process does
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                env={**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
                start_new_session=True,
            )

    def statuses(self, children: Iterable[Mapping[str, Any]], timeout: float = 1800) -> list[int]:
        """Runs children (forking_server.py has their fields) to their ends, and returns their wait statuses.

        Raises TimeoutError after so many seconds, with all of them killed.
        """
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.log.write_bytes(b"")
        usual = {"arguments": [], "environment": {}, "folder": self.folder.name, "log": str(self.log)}
        print(json.dumps([{**usual, **child} for child in children]), file=self.server.stdin, flush=True)
        if not select.select([self.server.stdout], [], [], timeout)[0]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.server.pid, signal.SIGKILL)
            self.server.wait()
            forks.cache_clear()
            raise TimeoutError(f"not ended after {timeout:g} s: {self.printed()}")
        answer = self.server.stdout.readline()
        assert answer, (Path(self.folder.name) / "server.txt").read_text(errors="replace")[-4000:]
        found: list[int] = json.loads(answer)
        return found

    def printed(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-6000:]


@cache
def forks() -> Forks:
    return Forks()
