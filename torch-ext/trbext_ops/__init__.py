"""Offers the operators of trbext as a kernel of the Hugging Face Hub: `get_kernel("...").blend(...)`.

They are those of `torch.ops.trb`, which https://arxiv.org/abs/2605.31159 and the documentation of trbext describe. The
package trbext has what is missing here: checks with defaults, tracing for torch.compile, rollouts and a trainer.
"""

import torch

from ._ops import add_op_namespace_prefix, ops

NAMES = tuple(name + teacher for teacher in ("", "_top_k") for name in ("blend", "solve", "sample", "verify"))
blend, solve, sample, verify, blend_top_k, solve_top_k, sample_top_k, verify_top_k = (
    getattr(ops, name) for name in NAMES
)

# Nothing differentiates through the behavior policy; without an autograd kernel, torch would mark the outputs of
# trainable logits as part of a graph that cannot be run backward.
_namespace = add_op_namespace_prefix("blend").partition("::")[0]
_autograd = torch.library.Library(_namespace, "IMPL", "Autograd")
for _name in NAMES:
    for _overload in getattr(ops, _name).overloads():
        _autograd.impl(_name if _overload == "default" else f"{_name}.{_overload}", torch.library.fallthrough_kernel)

__all__ = list(NAMES)
