"""Runs a script as two processes of one gloo group, on the loopback device only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_two_processes(script: Path, *arguments: str, timeout: float, **environment: str) -> None:
    """Runs torchrun of this Python, which must end with exit code 0 within `timeout` seconds."""
    search = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ours = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": search}
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *rendezvous]
    torchrun = subprocess.Popen(
        [*command, str(script), *arguments],
        env={**os.environ, **ours, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = torchrun.communicate(timeout=timeout)
    finally:
        torchrun.terminate()  # ends the two processes too, if they wait for each other forever
        torchrun.wait(30)
    assert torchrun.returncode == 0, output[-6000:]
