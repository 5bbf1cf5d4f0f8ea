"""Tells torch's DTensor how the operators shard: rows are independent, so each rank solves the rows it has.

solve, blend and sample accept logits that are sharded over rows (`Shard(0)`), with epsilon and uniform of the same
rows, and shard their outputs in the same way. A sharded vocabulary is gathered first. So are all arguments of verify,
because its offsets assign rows to requests across all ranks.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

_registered = False


def register_where_needed() -> None:
    """Registers the shardings once DTensor has been imported, because the import takes a second that few need."""
    global _registered
    if _registered or torch.compiler.is_compiling() or "torch.distributed.tensor" not in sys.modules:
        return
    _registered = True
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    def placed(placement: Any, outputs: int, arguments: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
        return [placement] * outputs, [None if isinstance(value, float | int) else placement for value in arguments]

    def by_rows(outputs: int) -> Any:
        def shardings(*arguments: Any, **_: Any) -> list[tuple[list[Any], list[Any]]]:
            return [placed(Shard(0), outputs, arguments), placed(Replicate(), outputs, arguments)]

        return shardings

    def gathered(*arguments: Any, **named: Any) -> list[tuple[list[Any], list[Any]]]:
        tensors = (*arguments, *(value for value in named.values() if value is not None))
        return [placed(Replicate(), 6, tensors)]

    ops = torch.ops.trb
    rows = ((ops.blend, 3), (ops.solve, 3), (ops.sample, 6))
    rows_top_k = ((ops.blend_top_k, 3), (ops.solve_top_k, 3), (ops.sample_top_k, 6))
    for operator, outputs in (*rows, *rows_top_k):
        register_sharding([operator.default, operator.per_row])(by_rows(outputs))
    for operator in (ops.verify, ops.verify_top_k):
        register_sharding(operator.default)(gathered)
