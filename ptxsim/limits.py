"""Checks a launch against the limits of its architecture."""

from __future__ import annotations

from math import prod

from .findings import Findings
from .text.syntax import Kernel

MAX_THREADS = 1024
MAX_CLUSTER = 8  # portable
MAX_NON_PORTABLE_CLUSTER = 16  # needs an attribute of the kernel, and the device may be unable to run it
_KIB = 1024
SHARED_PER_BLOCK = {
    75: 64 * _KIB,
    80: 163 * _KIB,
    86: 99 * _KIB,
    87: 163 * _KIB,
    89: 99 * _KIB,
    90: 227 * _KIB,
    100: 227 * _KIB,
    101: 227 * _KIB,
    103: 227 * _KIB,
    110: 227 * _KIB,
    120: 99 * _KIB,
    121: 99 * _KIB,
}
STATIC_SHARED = 48 * _KIB


def check_launch(
    kernel: Kernel,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    dynamic_shared: int,
    cluster: int,
    arch: int,
    findings: Findings,
    non_portable: bool = False,
) -> bool:
    """Reports each limit of `sm_<arch>` that a launch exceeds, and returns False if it cannot be simulated either.
    `non_portable` allows clusters of up to 16 blocks."""
    if arch not in SHARED_PER_BLOCK:
        raise ValueError(f"limits of sm_{arch} are not known; known are {sorted(SHARED_PER_BLOCK)}")
    # 1. Each limit that is exceeded is a finding.
    threads, before = prod(block), len(findings.list)

    def refuse(message: str) -> None:
        findings.add("launch", f"{kernel.name} on sm_{arch}", message)

    if kernel.module.target > arch:
        refuse(f"PTX for sm_{kernel.module.target} does not run there (pass arch=)")
    limit = prod(kernel.directives.get("maxntid", (MAX_THREADS,)))
    if threads > min(limit, MAX_THREADS) or threads < 1:
        refuse(f"{threads} threads per block, at most {min(limit, MAX_THREADS)} allowed")
    required = kernel.directives.get("reqntid")
    if required is not None and (*required, 1, 1)[:3] != block:
        refuse(f"block {block}, but the kernel requires {required}")
    if kernel.shared_bytes > STATIC_SHARED:
        refuse(f"{kernel.shared_bytes} bytes of static shared memory, at most {STATIC_SHARED}")
    shared = kernel.shared_bytes + dynamic_shared
    if shared > SHARED_PER_BLOCK[arch]:
        refuse(f"{shared} bytes of shared memory per block, at most {SHARED_PER_BLOCK[arch]}")
    clustered = cluster > 1 or kernel.required_cluster is not None or "explicitcluster" in kernel.directives
    if clustered and arch < 90:
        refuse(f"a cluster of {cluster} blocks, but clusters begin with sm_90")
    most = MAX_NON_PORTABLE_CLUSTER if non_portable else MAX_CLUSTER
    if cluster > most:
        refuse(f"a cluster of {cluster} blocks, at most {most}")
    if kernel.required_cluster is not None and prod(kernel.required_cluster) != cluster:
        refuse(f"a cluster of {cluster} blocks, but the kernel requires {kernel.required_cluster}")
    if grid[0] % cluster or prod(grid) < 1:
        refuse(f"grid {grid} is not divisible by a cluster of {cluster}")
    if grid[0] > 2**31 - 1 or max(grid[1:]) > 65535:
        refuse(f"grid {grid} is too large")
    # 2. Only some of them leave nothing to simulate.
    impossible = grid[0] % cluster or not 1 <= threads <= MAX_THREADS or prod(grid) < 1
    return len(findings.list) == before or not impossible
