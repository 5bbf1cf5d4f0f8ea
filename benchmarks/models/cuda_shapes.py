"""Says how many CTAs hold a row, as the launch table does (csrc/cuda/launch/launch_table.h), for the model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .cuda_architectures import PORTABLE_CLUSTER, Architecture


@dataclass(frozen=True)
class Shape:
    """A way to hold a row."""

    cluster: int  # CTAs that hold a row
    ctas_per_sm: int
    sections: int  # of the row, in each CTA


def usual_shape(gpu: Architecture, vocab: int, element_bytes: int) -> Shape | None:
    """Returns the shape for many rows, None if a row does not fit on chip.

    Args:
        gpu: The GPU.
        vocab: Tokens per row.
        element_bytes: Of a logit.
    """
    row_bytes = 2 * vocab * element_bytes
    most = min(gpu.largest_cluster, PORTABLE_CLUSTER)
    for ctas_per_sm in (2, 1):
        cluster = math.ceil(row_bytes / gpu.row_bytes_per_cta(ctas_per_sm))
        if cluster <= most:
            return Shape(cluster, ctas_per_sm, 2)
    return Shape(cluster, 1, 1) if cluster <= gpu.largest_cluster else None


def shape_of(gpu: Architecture, vocab: int, element_bytes: int, rows: int) -> Shape | None:
    """Returns the shape for a call of `rows` rows: the usual one, or twice its CTAs, each with one section.

    Args:
        gpu: The GPU.
        vocab: Tokens per row.
        element_bytes: Of a logit.
        rows: Rows of the call.
    """
    usual = usual_shape(gpu, vocab, element_bytes)
    if usual is None or usual.sections == 1 or 2 * usual.cluster > gpu.largest_cluster:
        return usual
    wide = Shape(2 * usual.cluster, 2, 1)
    of_usual, of_wide = gpu.clusters(usual.cluster, usual.ctas_per_sm), gpu.clusters(wide.cluster, 2)
    overlaps = usual.ctas_per_sm == 1 and of_wide >= of_usual
    few = rows <= of_wide or of_usual < rows <= 3 * of_wide
    return wide if of_wide and (overlaps or few) else usual
