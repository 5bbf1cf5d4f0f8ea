"""Runs a script as two processes of one gloo group, on the loopback device only."""

from __future__ import annotations

from pathlib import Path

from torch.distributed import TCPStore

from .forks import ROOT, forks


def run_two_processes(script: Path, *arguments: str, timeout: float, **environment: str) -> None:
    """Runs the script as torchrun would, with two processes that must end with exit code 0 within `timeout` seconds."""
    # The processes meet at a store that has its port before they start, as torchrun's have: a port that is looked for
    # first may be taken by then.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    group = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    child = {"script": str(script), "arguments": arguments, "folder": str(ROOT)}
    children = [
        {**child, "environment": group | {"RANK": rank, "LOCAL_RANK": rank} | environment} for rank in ("0", "1")
    ]
    assert forks().statuses(children, timeout) == [0, 0], forks().printed()
