"""Rounds correctly in the formats and directions that numpy lacks: it has only float32 and float64 to nearest.

Sums and products are split into a float64 and its exact error (Knuth's two-sum, Dekker's product). A float64 rounded to
odd with that error can then be rounded once more, to any narrower format, without double rounding (Boldo, Melquiond).
Not exact: products under 2**-969, whose error float64 cannot hold, and splits over 2**996.
"""

from __future__ import annotations

import numpy as np

_SPLITTER = 134217729.0  # 2**27 + 1
_BF16_NAN = 0x7FFF


def two_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (sum, error) with a + b = sum + error exactly."""
    total = a + b
    other = total - a
    return total, (a - (total - other)) + (b - other)


def two_product(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (product, error) with a * b = product + error exactly."""
    product = a * b
    t = a * _SPLITTER
    a_high = t - (t - a)
    a_low = a - a_high
    t = b * _SPLITTER
    b_high = t - (t - b)
    b_low = b - b_high
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def round_to_odd(value: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Returns value + error, truncated to float64 with the last bit set if anything was cut off."""
    bits = value.view(np.int64)
    inexact = (error != 0) & np.isfinite(value) & np.isfinite(error)
    toward_zero = inexact & ((error < 0) != (value < 0)) & (value != 0)
    odd = (bits - toward_zero) | inexact
    return np.where(inexact & (value != 0), odd, bits).view(np.float64)


def fma_float64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Returns a * b + c in float64, rounded once."""
    product_high, product_low = two_product(a, b)
    sum_high, sum_low = two_sum(c, product_low)
    value_high, value_low = two_sum(product_high, sum_high)
    result = value_high + round_to_odd(*two_sum(sum_low, value_low))
    finite = np.isfinite(result)
    return result if finite.all() else np.where(finite, result, a * b + c)


def fma_odd(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Returns a * b + c of values from a format of at most 26 significant bits, in float64 rounded to odd."""
    return round_to_odd(*two_sum(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)))


def fma_float32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Returns a * b + c in float32, rounded once."""
    c64 = c.astype(np.float64)
    product = np.multiply(a, b, dtype=np.float64)
    total = product + c64
    result = total.astype(np.float32)
    # The float64 sum was rounded already. That can matter only if it lies halfway between two float32 numbers, or
    # if the result is subnormal, whose halfway points are others.
    doubtful = (total.view(np.int64) & 0x1FFFFFFF) == 0x10000000
    doubtful |= np.abs(total) < 2.4e-38
    if doubtful.any():
        exact = round_to_odd(*two_sum(product[doubtful], c64[doubtful]))
        result[doubtful] = exact.astype(np.float32)
    return result


def directed_float64(value: np.ndarray, error: np.ndarray, mode: str) -> np.ndarray:
    """Rounds value + error (value rounded to nearest, error exact) to float64 downward, upward or toward zero."""
    down, up = np.nextafter(value, -np.inf), np.nextafter(value, np.inf)
    if mode == "rm":
        return np.where(error < 0, down, value)
    if mode == "rp":
        return np.where(error > 0, up, value)
    if mode == "rz":
        return np.where((value > 0) & (error < 0), down, np.where((value < 0) & (error > 0), up, value))
    return value


def directed_float32(value: np.ndarray, mode: str, error: np.ndarray | float = 0.0) -> np.ndarray:
    """Rounds a float64 value + error once to float32 in direction `mode`."""
    nearest = value.astype(np.float32)
    if mode == "rn":
        return nearest
    difference = value - nearest  # exact; with `error` it has the sign of what is missing
    missing = np.where(difference != 0, difference, error)
    missing = np.where(np.isfinite(value), missing, 0)
    down, up = np.nextafter(nearest, np.float32(-np.inf)), np.nextafter(nearest, np.float32(np.inf))
    if mode == "rm":
        return np.where(missing < 0, down, nearest)
    if mode == "rp":
        return np.where(missing > 0, up, nearest)
    if mode == "rz":
        return np.where((nearest > 0) & (missing < 0), down, np.where((nearest < 0) & (missing > 0), up, nearest))
    raise NotImplementedError(f"rounding mode {mode}")


def flush_subnormals(x: np.ndarray) -> np.ndarray:
    """Replaces subnormal float32 by zero of the same sign, as `.ftz` does."""
    small = np.abs(x) < np.float32(1.1754944e-38)
    return np.where(small, np.copysign(x.dtype.type(0), x), x) if small.any() else x


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """Converts exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float32_to_bfloat16(x: np.ndarray, mode: str = "rn") -> np.ndarray:
    """Rounds to the nearest even bfloat16 (or toward zero); NaN becomes 0x7FFF, as in hardware."""
    bits = x.view(np.uint32)
    high = bits >> np.uint32(16)
    if mode == "rn":
        bits = bits + np.uint32(0x7FFF) + (high & np.uint32(1))
        high = bits >> np.uint32(16)
    elif mode != "rz":
        raise NotImplementedError(f"bfloat16 rounding mode {mode}")
    high = high.astype(np.uint16)
    nan = np.isnan(x)
    return np.where(nan, np.uint16(_BF16_NAN), high) if nan.any() else high


def float64_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Rounds once: through float32 rounded to odd."""
    narrow = x.astype(np.float32)
    wide = narrow.astype(np.float64)
    bits = narrow.view(np.int32)
    inexact = (wide != x) & np.isfinite(x)
    away = inexact & (np.abs(wide) > np.abs(x))
    odd = np.where(inexact, (bits - away) | 1, bits).astype(np.int32)
    return float32_to_bfloat16(odd.view(np.float32))
