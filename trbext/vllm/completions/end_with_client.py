"""Runs a command, and ends it and all that it has started when its own standard input closes: when its client is gone.

It is run as a file (`python -S end_with_client.py COMMAND ...`) in a session of its own, so it imports nothing of
trbext. A pipe closes however its other end dies, also by kill -9. vLLM's engine is a process that its API server has
started, and would continue without it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading

PR_SET_PDEATHSIG = 1  # of Linux
GRACE = 20.0  # seconds that the command gets to end by itself


def main(words: list[str]) -> None:
    """Runs the command, and leaves none of its processes."""
    child = subprocess.Popen(words, stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent)
    threading.Thread(target=_end_with_input, args=(child,), daemon=True).start()
    code = child.wait()
    print(f"trb: the process of vLLM ended with exit code {code}", flush=True)
    _kill_all()


def _end_with_input(child: subprocess.Popen[bytes]) -> None:
    sys.stdin.buffer.read()
    child.terminate()
    try:
        child.wait(GRACE)
    except subprocess.TimeoutExpired:
        _kill_all()


def _end_with_parent() -> None:
    """Lets the kernel end the command if this process is killed itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _kill_all() -> None:
    os.killpg(0, signal.SIGKILL)  # this process is of the group, too


if __name__ == "__main__":
    main(sys.argv[1:])
