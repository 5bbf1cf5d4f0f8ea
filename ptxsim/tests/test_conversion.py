"""Compares conversions and integer operations of the PTX interpreter with rational numbers and Python integers."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ptxsim import Module, compile_ptx, find_nvcc
from python_tests.cuda.ptx_columns import MODES, N, columns, decode, half_patterns, random_floats
from python_tests.operators.exact_rounding import round_exactly

pytestmark = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc: put it on PATH or pip install nvidia-cuda-nvcc")
SOURCE = Path(__file__).parents[1] / "kernels" / "arithmetic.cu"


@pytest.fixture(scope="module")
def module() -> Module:
    return Module.parse(compile_ptx(SOURCE, 90))


def test_conversion_to_halves_rounds_to_nearest_even(module: Module) -> None:
    rng = np.random.default_rng(7)
    a = np.concatenate([random_floats(rng, 300, np.float32, -30, 20), random_floats(rng, 100, np.float32, -140, 127)])
    a[:5] = [65504, 65519.9, 65520, 3.4e38, 1e-45]
    a[5:105] = decode(half_patterns("bf16", 8)[:100], "bf16") * (1 + 2.0**-8)  # half-way between two bfloat16
    got = columns(module, "narrow_ops", [a, a.astype(np.float64)], 6, np.uint16)
    for first, name in ((0, "bf16"), (3, "f16")):
        expected = np.array([round_exactly(Fraction(float(x)), name) if np.isfinite(x) else x for x in a])
        np.testing.assert_array_equal(decode(got[first], name), expected)
        np.testing.assert_array_equal(decode(got[first + 1], name), expected)
        np.testing.assert_array_equal(decode(got[first + 2], name), -expected)


def test_conversion_of_nan_and_infinity_to_halves(module: Module) -> None:
    a = np.array([np.nan, np.inf, -np.inf], np.float32)
    got = columns(module, "narrow_ops", [a, a.astype(np.float64)], 6, np.uint16)
    np.testing.assert_array_equal(got[0], [0x7FFF, 0x7F80, 0xFF80])
    np.testing.assert_array_equal(got[3], [0x7FFF, 0x7C00, 0xFC00])


def test_widening_of_every_half_is_exact(module: Module) -> None:
    a = np.arange(65536, dtype=np.uint16)
    got = columns(module, "widen_ops", [a], 2, np.float32)
    np.testing.assert_array_equal(got, [decode(a, "bf16"), decode(a, "f16")])


def test_float_to_integer_rounds_saturates_and_sends_nan_to_zero(module: Module) -> None:
    rng = np.random.default_rng(9)
    a = np.concatenate(
        [
            rng.uniform(-300, 300, 200),
            rng.uniform(-1e10, 1e10, 100),
            [2.0**31, 2.0**32, 2.0**63, 2.0**64, -(2.0**63), 2.5, 3.5, -2.5, 1e30, -1e30, np.nan, 0.5, -0.5],
        ]
    )
    got = columns(module, "float_to_int", [a], 12, np.int64)
    f = a.astype(np.float32).astype(np.float64)
    i32, i64, u32 = np.iinfo(np.int32), np.iinfo(np.int64), np.iinfo(np.uint32)

    def convert(x: np.ndarray, limits: np.iinfo) -> list[int]:
        return [0 if np.isnan(v) else min(max(int(v), int(limits.min)), int(limits.max)) for v in x]

    expected = [convert(g(a), i32) for g in (np.rint, np.trunc, np.floor, np.ceil)]
    expected += [convert(np.rint(a), i64), convert(np.trunc(a), i64), convert(np.trunc(a), u32)]
    expected.append([x - (1 << 64) if x >= 1 << 63 else x for x in convert(np.trunc(a), np.iinfo(np.uint64))])
    expected += [convert(np.rint(f), i32), convert(np.floor(f), u32)]
    narrow = np.array(convert(np.trunc(f), i32))
    expected += [narrow.astype(np.int8).tolist(), narrow.astype(np.int16).tolist()]
    for k, column in enumerate(expected):
        assert got[k].tolist() == column, f"conversion {k}"


def test_integer_to_float_rounds_in_every_direction(module: Module) -> None:
    rng = np.random.default_rng(10)
    a = np.concatenate(
        [rng.integers(-(2**63), 2**63 - 1, 200), rng.integers(-(2**31), 2**31, 100), rng.integers(-(2**54), 2**54, 100)]
    )
    a[:3] = [2**63 - 1, -(2**63), 2**24 + 1]
    got = columns(module, "int_to_float", [a], 10, np.float64)
    low, unsigned = a.astype(np.int32), a.astype(np.uint32)
    plan = [(a, "f32", m) for m in MODES] + [
        (a, "f64", "rn"),
        (a, "f64", "rm"),
        (low, "f32", "rn"),
        (unsigned, "f32", "rz"),
        (a.astype(np.uint64), "f64", "rp"),
        (low, "f64", "rn"),
    ]
    for k, (x, name, mode) in enumerate(plan):
        expected = [round_exactly(Fraction(int(v)), name, mode) for v in x]
        np.testing.assert_array_equal(got[k], expected, err_msg=f"conversion {k}")


def signed(x: int, width: int) -> int:
    return x - (1 << width) if x >> (width - 1) & 1 else x


def truncated(a: int, b: int) -> tuple[int, int]:
    quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return quotient, a - quotient * b


def expected_int32(x: int, y: int, z: int) -> list[int]:
    sx, sy, full = signed(x, 32), signed(y, 32), (1 << 32) - 1
    quotient, remainder = truncated(sx, sy)
    position, length = y & 63, z & 63
    octets = (y << 32 | x).to_bytes(8, "little")
    permuted = 0
    for i in range(4):
        control = z >> 4 * i & 7  # __byte_perm looks at three bits of each nibble
        permuted |= octets[control] << 8 * i
    field = (x >> position) & ((1 << length) - 1)
    top = min(position + length, 32) - 1
    sign = x >> (top if length and position < 32 else 31) & 1
    extended = 0
    if length:
        kept = max(0, min(length, 32 - position))
        extended = (field & ((1 << kept) - 1)) | ((full << kept & full) if sign else 0)
    mask = ((1 << length) - 1) << position & full
    inserted = (y & ~mask) | ((x << position) & mask)
    magnitude = ~sx if sx < 0 else sx
    shift = min(z & 63, 32)
    values = [x * y + z, x * y >> 32, sx * sy >> 32, x // y, x % y, quotient, remainder]
    values += [
        x << (y & 63),
        x >> (y & 63),
        sx >> (y & 31),
        x.bit_count(),
        32 - x.bit_length(),
        int(f"{x:032b}"[::-1], 2),
        (x & -x).bit_length(),
    ]
    values += [
        (y << 32 | x) << (z & 31) >> 32,
        (y << 32 | x) >> shift,
        permuted,
        abs(sx - sy) + z,
        min(sx, sy),
        max(x, y),
    ]
    values += [max(-(1 << 31), min((1 << 31) - 1, sx + sy)), field, extended, inserted, x.bit_length() - 1]
    values += [
        32 - magnitude.bit_length() if magnitude else -1,
        (x & y) | (z & (x | y)),
        x if signed(z, 32) >= 0 else y,
    ]
    return [v & full for v in values]


def test_int32_operations(module: Module) -> None:
    rng = np.random.default_rng(11)
    a, b, c = (rng.integers(0, 2**32, N, dtype=np.uint64) >> rng.integers(0, 32, N).astype(np.uint64) for _ in range(3))
    a[:6], b[:6], c[:6] = (
        [0, 1, 2**31, 2**32 - 1, 2**31 - 1, 5],
        [1, 2**32 - 1, 2**31, 7, 3, 40],
        [0, 31, 32, 33, 63, 0x7654],
    )
    b[b == 0] = 3
    a, b, c = (x.astype(np.uint32) for x in (a, b, c))
    got = columns(module, "int32_ops", [a, b, c], 28, np.uint32)
    for i in range(N):
        assert got[:, i].tolist() == expected_int32(int(a[i]), int(b[i]), int(c[i])), (a[i], b[i], c[i])


def test_int64_operations(module: Module) -> None:
    rng = np.random.default_rng(12)
    a, b = (rng.integers(0, 2**64, N, dtype=np.uint64) >> rng.integers(0, 64, N).astype(np.uint64) for _ in range(2))
    b[b == 0] = 3
    a[:3] = [0, 2**63, 2**64 - 1]
    got = columns(module, "int64_ops", [a, b], 14, np.uint64)
    full = (1 << 64) - 1
    for i in range(N):
        x, y = int(a[i]), int(b[i])
        sx, sy = signed(x, 64), signed(y, 64)
        low = x & 0xFFFFFFFF, y & 0xFFFFFFFF
        expected = [
            x * y,
            x * y >> 64,
            sx * sy >> 64,
            truncated(sx, sy)[0],
            x % y,
            low[0] * low[1],
            signed(low[0], 32) * signed(low[1], 32),
        ]
        expected += [
            x << (y & 63),
            sx >> (y & 63),
            x.bit_count(),
            64 - x.bit_length(),
            int(f"{x:064b}"[::-1], 2),
            signed(x & 65535, 16),
            x & 255,
        ]
        assert got[:, i].tolist() == [v & full for v in expected], (x, y)
