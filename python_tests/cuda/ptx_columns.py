"""Drives the column kernels of ptx/kernels/arithmetic.cu, and makes operands that are hard to round."""

from __future__ import annotations

import numpy as np

from ptxsim import Device, Module, launch

N = 500
MODES = ["rn", "rz", "rm", "rp"]


def columns(
    module: Module,
    kernel: str,
    inputs: list[np.ndarray],
    count: int,
    dtype: type,
    arch: int = 90,
    approx_error: float = 0.0,
) -> np.ndarray:
    """Runs a column kernel of arithmetic.cu: [operation, element]."""
    device, n = Device(), len(inputs[0])
    out = device.empty((count, n), dtype, "out")
    pointers = [device.upload(x) for x in inputs]
    result = launch(
        device, module.kernels[kernel], -(-n // 128), 128, [*pointers, out, n], arch=arch, approx_error=approx_error
    )
    assert result.findings == []
    return device.download(out)


def random_floats(rng: np.random.Generator, n: int, dtype: type, low: int, high: int) -> np.ndarray:
    """Returns floats with random significands and exponents; some have few bits, so that sums and products hit ties."""
    x = (rng.random(n) + 1) * rng.choice([-1.0, 1.0], n)
    few = rng.random(n) < 0.4
    x[few] = np.round(x[few] * 64) / 64
    return np.ldexp(x, rng.integers(low, high, n)).astype(dtype)


def decode(patterns: np.ndarray, name: str) -> np.ndarray:
    if name == "bf16":
        with np.errstate(invalid="ignore"):  # signaling NaN
            return (patterns.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return patterns.view(np.float16).astype(np.float64)


def half_patterns(name: str, seed: int) -> np.ndarray:
    """Returns patterns of every exponent with finite values, many close enough to add without one vanishing."""
    rng = np.random.default_rng(seed)
    top = 0x7F7F if name == "bf16" else 0x7BFF
    wild = rng.integers(0, top + 1, N)
    one = 0x3F80 if name == "bf16" else 0x3C00
    tame = one + rng.integers(-300, 300, N)
    return (np.where(rng.random(N) < 0.5, wild, tame) | rng.integers(0, 2, N) << 15).astype(np.uint16)
