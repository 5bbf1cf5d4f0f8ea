"""Lists the constants of the GPUs that the model knows; assumptions are marked, the others are published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

WARP = 32
ISSUE_SLOTS = 4  # warp instructions per cycle and SM
PORTABLE_CLUSTER = 8  # CTAs
BLOCK_STATE = 9 * 1024  # bytes beside a CTA's part of the row (csrc/cuda/launch/launch_table.h)
SHARED_RESERVED = 1024  # bytes of each CTA that the system keeps, from sm_90 on and on sm_80


@dataclass(frozen=True)
class Architecture:
    """One GPU."""

    name: str
    capability: str
    gpcs: tuple[int, ...]  # SMs of each graphics processing cluster, which a thread-block cluster lies in. Assumed
    clock_ghz: float  # boost
    fp32_lanes: int  # per cycle and SM
    memory_gb_per_s: float  # of a copy, about 90 % of the published peak. Assumed
    cache_gb_per_s: float  # that all SMs together read from L2. Assumed
    shared_sm: int  # bytes an SM has for its CTAs
    shared_cta: int  # bytes a CTA may have
    largest_cluster: int  # CTAs; more than PORTABLE_CLUSTER only if the device is asked. 1 without clusters
    issue_slots: int = ISSUE_SLOTS
    mufu_lanes: int = 16  # per cycle and SM
    # As the device reports it: KB of shared memory of a CTA -> clusters of 1, 2, ... CTAs at once. Empty: from `gpcs`.
    clusters_at_once: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def sms(self) -> int:
        """The multiprocessors of the GPU."""
        return sum(self.gpcs)

    def clusters(self, cluster: int, ctas_per_sm: int) -> int:
        """Returns how many clusters of `cluster` CTAs are on the GPU at once; none spans two GPCs."""
        fitting = [kb for kb in self.clusters_at_once if ctas_per_sm * (kb + 1) * KB <= self.shared_sm]
        if fitting:
            return max(0, self.clusters_at_once[max(fitting)][cluster - 1])
        return sum(ctas_per_sm * sms // cluster for sms in self.gpcs)

    def row_bytes_per_cta(self, ctas_per_sm: int) -> int:
        """Returns the bytes of a row that fit in a CTA's shared memory, beside the CTA's state."""
        return min(self.shared_cta, self.shared_sm // ctas_per_sm - SHARED_RESERVED) - BLOCK_STATE


KB = 1024
A100 = Architecture("A100 SXM 80 GB", "80", (16,) * 5 + (14,) * 2, 1.41, 64, 1800, 4000, 164 * KB, 163 * KB, 1)
H100 = Architecture("H100 SXM", "90", (16,) * 6 + (18,) * 2, 1.755, 128, 3000, 5500, 228 * KB, 227 * KB, 16)
B200 = Architecture("B200", "100", (18,) * 6 + (20,) * 2, 1.85, 128, 7000, 10_000, 228 * KB, 227 * KB, 16)
RTX_5090 = Architecture("RTX 5090", "120", (16,) * 10 + (10,), 2.41, 128, 1600, 7000, 100 * KB, 99 * KB, 16)
ARCHITECTURES = {"A100": A100, "H100": H100, "B200": B200, "RTX5090": RTX_5090}
