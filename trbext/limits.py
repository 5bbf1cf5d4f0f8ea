"""Limits and codes of operator arguments that Python, the fake kernels and the float64 reference share with C++."""

from __future__ import annotations

import torch

# Of verify's requests (csrc/blend/verify.h), as float32 has them.
LEAST_TEMPERATURE, LARGEST_TEMPERATURE = torch.tensor(1e-6).item(), 1e6


# What the student's rows hold: raw logits, probabilities at the temperature, or logits divided by it already.
STUDENT_KINDS = {"logits": 0, "probabilities": 1, "scaled_logits": 2}
