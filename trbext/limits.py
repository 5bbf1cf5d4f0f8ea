"""Limits and codes of operator arguments that Python, the fake kernels and the float64 reference share with C++."""

from __future__ import annotations

from numbers import Real

import torch

# Of verify's requests (csrc/operators/verify_requests.h), as float32 has them.
LEAST_TEMPERATURE, LARGEST_TEMPERATURE = torch.tensor(1e-6).item(), 1e6

# Of the sum of a top-k teacher's probabilities above 1 (csrc/operators/top_k_teacher.h): more is a fault, no rounding.
LARGEST_EXCESS_OF_MASS = 1e-3
# What is left of 1 beside that sum is not known to more than this.
ROUNDING_OF_MASS = 1e-6

# Contents of the student's rows: raw logits, probabilities at the temperature, or logits divided by it already.
STUDENT_KINDS = {"logits": 0, "probabilities": 1, "scaled_logits": 2}


def is_epsilon(value: float) -> bool:
    """Returns whether `value` is a KL budget; NaN is not one. A tracer may not know a number yet."""
    return isinstance(value, Real | torch.SymFloat | torch.SymInt) and value >= 0


def in_float32(value: float) -> float:
    """Returns a number for a float32 tensor, in which a budget above the largest finite number is inf."""
    return torch.inf if value > torch.finfo(torch.float32).max else torch.sym_float(value)


def not_an_epsilon(value: object, name: str = "epsilon") -> str:
    """Returns the message of every error about a value that is no KL budget; `name` is the user's name for the
    argument."""
    return f"{name} must be a KL budget in nats, 0 <= epsilon <= inf, got {value}"
