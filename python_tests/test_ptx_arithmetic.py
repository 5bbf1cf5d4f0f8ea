"""Every class of arithmetic of the PTX interpreter against rational numbers, Python integers or numpy."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from exact_rounding import apply_exactly, round_exactly
from ptx import Device, Module, compile_ptx, find_nvcc, launch

pytestmark = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc: put it on PATH or pip install nvidia-cuda-nvcc")
SOURCE = Path(__file__).parent / "ptx" / "kernels" / "arithmetic.cu"
N = 500


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Module]:
    cache = tmp_path_factory.mktemp("ptx")
    return {arch: Module.parse(compile_ptx(SOURCE, arch, cache=cache)) for arch in (80, 90, 100)}


def columns(
    module: Module,
    kernel: str,
    inputs: list[np.ndarray],
    count: int,
    dtype: type,
    arch: int = 90,
    approx_error: float = 0.0,
) -> np.ndarray:
    """Run a column kernel of arithmetic.cu: [operation, element]."""
    device, n = Device(), len(inputs[0])
    out = device.empty((count, n), dtype, "out")
    pointers = [device.upload(x) for x in inputs]
    result = launch(
        device, module.kernels[kernel], -(-n // 128), 128, [*pointers, out, n], arch=arch, approx_error=approx_error
    )
    assert result.findings == []
    return device.download(out)


def bits(x: np.ndarray) -> np.ndarray:
    return x.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[x.dtype.itemsize])


def random_floats(rng: np.random.Generator, n: int, dtype: type, low: int, high: int) -> np.ndarray:
    """Random significands and exponents; some of few bits, so that sums and products hit ties."""
    x = (rng.random(n) + 1) * rng.choice([-1.0, 1.0], n)
    few = rng.random(n) < 0.4
    x[few] = np.round(x[few] * 64) / 64
    return np.ldexp(x, rng.integers(low, high, n)).astype(dtype)


def operands(dtype: type, low: int, high: int, seed: int = 0) -> list[np.ndarray]:
    """a, b, c with exponents near each other in most rows, so that rounding and cancellation matter."""
    rng = np.random.default_rng(seed)
    a, b = random_floats(rng, N, dtype, low, high), random_floats(rng, N, dtype, low, high)
    c = random_floats(rng, N, dtype, low, high)
    cancels = rng.random(N) < 0.3
    with np.errstate(all="ignore"):
        close = (-(a.astype(np.float64) * b.astype(np.float64))).astype(dtype)
    c[cancels & np.isfinite(close)] = close[cancels & np.isfinite(close)]
    return [a, b, c]


BASIC = [(lambda x, y: x + y), (lambda x, y: x * y)]
MODES = ["rn", "rz", "rm", "rp"]


@pytest.mark.parametrize(("low", "high"), [(-12, 12), (-149, -60), (30, 128)])
def test_float32_arithmetic_is_rounded_once_in_every_direction(modules: dict[int, Module], low: int, high: int) -> None:
    a, b, c = operands(np.float32, low, high)
    a[:4], b[:4] = [0.0, -0.0, 1.0, -1.0], [-0.0, 0.0, 2.0, -1.0]
    b[b == 0] = 1.5
    a[a == 0] = 2.5
    got = columns(modules[90], "float32_ops", [a, b, c], 21, np.float32)
    expected = [apply_exactly(f, "f32", m, a, b) for f in BASIC for m in MODES]
    expected += [apply_exactly(lambda x, y, z: x * y + z, "f32", m, a, b, c) for m in MODES]
    expected.append(apply_exactly(lambda x, y: x / y, "f32", "rn", a, b))
    for k, column in enumerate(expected):
        np.testing.assert_array_equal(got[k], column.astype(np.float32), err_msg=f"operation {k}")
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(got[13], np.sqrt(np.abs(a)))
        np.testing.assert_array_equal(got[14], (1 / a.astype(np.float64)).astype(np.float32))
        np.testing.assert_array_equal(got[15:17], [np.minimum(a, b), np.maximum(a, b)])
        flush = [np.where(np.abs(x) < 2.0**-126, 0, x) for x in (a, b)]
        total = (flush[0] + flush[1]).astype(np.float32)
        np.testing.assert_array_equal(got[17], np.where(np.abs(total) < 2.0**-126, 0, total))
        np.testing.assert_array_equal(got[18], np.clip(a * b, 0, 1))
    np.testing.assert_array_equal(bits(got[20]), bits(np.copysign(b, a)))


def test_float32_extremes_treat_nan_and_signed_zero_as_ptx_does(modules: dict[int, Module]) -> None:
    a = np.array([0.0, -0.0, np.nan, 1.0, np.nan, -0.0, -np.inf], np.float32)
    b = np.array([-0.0, 0.0, 2.0, np.nan, np.nan, 5.0, np.inf], np.float32)
    got = columns(modules[90], "float32_ops", [a, b, a], 21, np.float32)
    np.testing.assert_array_equal(got[15], [-0.0, -0.0, 2, 1, np.nan, -0.0, -np.inf])
    np.testing.assert_array_equal(np.signbit(got[15][[0, 1, 5]]), [True, True, True])
    np.testing.assert_array_equal(got[16], [0.0, 0.0, 2, 1, np.nan, 5, np.inf])
    np.testing.assert_array_equal(np.signbit(got[16][:2]), [False, False])
    np.testing.assert_array_equal(np.isnan(got[19]), [False, False, True, True, True, False, False])


def test_infinities_survive_fma(modules: dict[int, Module]) -> None:
    a = np.array([np.inf, 1.0, np.inf, 3e38, -np.inf], np.float32)
    b = np.array([1.0, np.inf, 0.0, 3e38, 2.0], np.float32)
    c = np.array([1.0, -np.inf, 1.0, 1.0, np.inf], np.float32)
    expected = [np.inf, np.nan, np.nan, np.inf, np.nan]
    np.testing.assert_array_equal(columns(modules[90], "float32_ops", [a, b, c], 21, np.float32)[8], expected)
    wide = [x.astype(np.float64) for x in (a, b, c)]
    expected[3] = 3e38**2
    got = columns(modules[90], "float64_ops", wide, 14, np.float64)[8]
    np.testing.assert_allclose(got, [*expected[:3], float(np.float32(3e38)) ** 2, np.nan], rtol=1e-15)


def test_float64_arithmetic_is_rounded_once_in_every_direction(modules: dict[int, Module]) -> None:
    a, b, c = operands(np.float64, -60, 60)
    got = columns(modules[90], "float64_ops", [a, b, c], 14, np.float64)
    expected = [apply_exactly(f, "f64", m, a, b) for f in BASIC for m in MODES]
    expected.append(apply_exactly(lambda x, y, z: x * y + z, "f64", "rn", a, b, c))
    expected += [a / b, np.sqrt(np.abs(a)), 1 / a, np.minimum(a, b), np.maximum(a, b)]
    for k, column in enumerate(expected):
        np.testing.assert_array_equal(got[k], column, err_msg=f"operation {k}")


def ulps(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(got - expected) / np.spacing(np.abs(expected))))


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_libdevice_double_functions_are_within_two_ulps(modules: dict[int, Module], arch: int) -> None:
    rng = np.random.default_rng(1)
    a = np.concatenate([rng.uniform(-30, 30, 300), rng.uniform(-1e-3, 1e-3, 100), 10.0 ** rng.uniform(-12, 2, 100)])
    got = columns(modules[arch], "libdevice_ops", [a], 6, np.float64, arch)
    for k, expected in enumerate([np.exp(a), np.log(np.abs(a)), np.log1p(np.abs(a)), np.expm1(a)]):
        assert ulps(got[k], expected) <= 2, f"function {k}"
    np.testing.assert_array_equal(got[4:], [np.nextafter(a, np.inf), np.nextafter(a, -np.inf)])


def test_libdevice_special_values(modules: dict[int, Module]) -> None:
    a = np.array([0.0, np.inf, -np.inf, np.nan, 710.0, -746.0, 5e-324])
    with np.errstate(all="ignore"):
        expected = [np.exp(a), np.log(np.abs(a)), np.log1p(np.abs(a)), np.expm1(a)]
    got = columns(modules[90], "libdevice_ops", [a], 6, np.float64)[:4]
    np.testing.assert_allclose(got, expected, rtol=4e-16)


def approx_references(a: np.ndarray) -> list[np.ndarray]:
    x = a.astype(np.float64)
    return [np.exp2(x), np.exp(x), np.log2(np.abs(x)), 1 / np.sqrt(np.abs(x)), 1 / x, np.tanh(x)]


def test_approximate_functions_are_as_good_as_float32_allows(modules: dict[int, Module]) -> None:
    a = np.random.default_rng(2).uniform(-20, 20, N).astype(np.float32)
    got = columns(modules[90], "approx_ops", [a], 6, np.float32)
    for k, expected in enumerate(approx_references(a)):
        tolerance = 2e-6 if k == 1 else 1.2e-7
        np.testing.assert_allclose(
            got[k], expected, rtol=tolerance, atol=1e-7 if k == 2 else 0, err_msg=f"function {k}"
        )


def test_approx_error_is_of_the_size_asked_for_and_a_function_of_the_argument(modules: dict[int, Module]) -> None:
    a = np.repeat(np.random.default_rng(3).uniform(-3, 3, N // 2).astype(np.float32), 2)
    got = columns(modules[90], "approx_ops", [a], 6, np.float32, approx_error=2.0**-10)
    exact = approx_references(a)
    for k in (0, 3, 4, 5):
        np.testing.assert_array_equal(got[k][0::2], got[k][1::2])
        relative = got[k] / exact[k] - 1
        assert np.abs(relative).max() <= 2.0**-10 + 1e-6
        assert relative.max() > 2.0**-11
        assert relative.min() < -(2.0**-11)


def decode(patterns: np.ndarray, name: str) -> np.ndarray:
    if name == "bf16":
        with np.errstate(invalid="ignore"):  # signalling NaN
            return (patterns.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return patterns.view(np.float16).astype(np.float64)


def half_patterns(name: str, seed: int) -> np.ndarray:
    """Patterns of every exponent with finite values, many close enough to add without one vanishing."""
    rng = np.random.default_rng(seed)
    top = 0x7F7F if name == "bf16" else 0x7BFF
    wild = rng.integers(0, top + 1, N)
    one = 0x3F80 if name == "bf16" else 0x3C00
    tame = one + rng.integers(-300, 300, N)
    return (np.where(rng.random(N) < 0.5, wild, tame) | rng.integers(0, 2, N) << 15).astype(np.uint16)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_half_arithmetic_is_rounded_once(modules: dict[int, Module], name: str, arch: int) -> None:
    a, b, c = (half_patterns(name, seed) for seed in (4, 5, 6))
    kernel = "half_ops" if name == "f16" else "bfloat_ops"
    got = columns(modules[arch], kernel, [a, b, c], 9, np.uint32, arch)
    for half, order in ((0, slice(None)), (16, slice(None, None, -1))):
        x, y, z = (decode(p[order], name) for p in (a, b, c))
        functions = [lambda x, y, z: x + y, lambda x, y, z: x - y, lambda x, y, z: x * y, lambda x, y, z: x * y + z]
        expected = [apply_exactly(f, name, "rn", x, y, z) for f in functions]
        expected += [np.minimum(x, y), np.maximum(x, y), np.maximum(x, y), -x, np.abs(x)]
        for k, column in enumerate(expected):
            values = decode((got[k] >> np.uint32(half)).astype(np.uint16), name)
            np.testing.assert_array_equal(values, column, err_msg=f"operation {k} half {half}")


def test_packed_maximum_propagates_nan_only_when_told(modules: dict[int, Module]) -> None:
    a, b = np.full(4, 0x7FC1, np.uint16), np.full(4, 0x3F80, np.uint16)
    got = columns(modules[90], "bfloat_ops", [a, b, b], 9, np.uint32)
    assert set(got[5]) == {0x3F803F80}
    assert set(got[6]) == {0x7FFF7FFF}


def test_conversion_to_halves_rounds_to_nearest_even(modules: dict[int, Module]) -> None:
    rng = np.random.default_rng(7)
    a = np.concatenate([random_floats(rng, 300, np.float32, -30, 20), random_floats(rng, 100, np.float32, -140, 127)])
    a[:5] = [65504, 65519.9, 65520, 3.4e38, 1e-45]
    a[5:105] = decode(half_patterns("bf16", 8)[:100], "bf16") * (1 + 2.0**-8)  # half-way between two bfloat16
    got = columns(modules[90], "narrow_ops", [a, a.astype(np.float64)], 6, np.uint16)
    for first, name in ((0, "bf16"), (3, "f16")):
        expected = np.array([round_exactly(Fraction(float(x)), name) if np.isfinite(x) else x for x in a])
        np.testing.assert_array_equal(decode(got[first], name), expected)
        np.testing.assert_array_equal(decode(got[first + 1], name), expected)
        np.testing.assert_array_equal(decode(got[first + 2], name), -expected)


def test_conversion_of_nan_and_infinity_to_halves(modules: dict[int, Module]) -> None:
    a = np.array([np.nan, np.inf, -np.inf], np.float32)
    got = columns(modules[90], "narrow_ops", [a, a.astype(np.float64)], 6, np.uint16)
    np.testing.assert_array_equal(got[0], [0x7FFF, 0x7F80, 0xFF80])
    np.testing.assert_array_equal(got[3], [0x7FFF, 0x7C00, 0xFC00])


def test_widening_of_every_half_is_exact(modules: dict[int, Module]) -> None:
    a = np.arange(65536, dtype=np.uint16)
    got = columns(modules[90], "widen_ops", [a], 2, np.float32)
    np.testing.assert_array_equal(got, [decode(a, "bf16"), decode(a, "f16")])


def test_float_to_integer_rounds_saturates_and_sends_nan_to_zero(modules: dict[int, Module]) -> None:
    rng = np.random.default_rng(9)
    a = np.concatenate(
        [rng.uniform(-300, 300, 200), rng.uniform(-1e10, 1e10, 100), [2.5, 3.5, -2.5, 1e30, -1e30, np.nan, 0.5, -0.5]]
    )
    got = columns(modules[90], "float_to_int", [a], 12, np.int64)
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


def test_integer_to_float_rounds_in_every_direction(modules: dict[int, Module]) -> None:
    rng = np.random.default_rng(10)
    a = np.concatenate(
        [rng.integers(-(2**63), 2**63 - 1, 200), rng.integers(-(2**31), 2**31, 100), rng.integers(-(2**54), 2**54, 100)]
    )
    a[:3] = [2**63 - 1, -(2**63), 2**24 + 1]
    got = columns(modules[90], "int_to_float", [a], 10, np.float64)
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


def test_int32_operations(modules: dict[int, Module]) -> None:
    rng = np.random.default_rng(11)
    a, b, c = (rng.integers(0, 2**32, N, dtype=np.uint64) >> rng.integers(0, 32, N).astype(np.uint64) for _ in range(3))
    a[:6], b[:6], c[:6] = (
        [0, 1, 2**31, 2**32 - 1, 2**31 - 1, 5],
        [1, 2**32 - 1, 2**31, 7, 3, 40],
        [0, 31, 32, 33, 63, 0x7654],
    )
    b[b == 0] = 3
    a, b, c = (x.astype(np.uint32) for x in (a, b, c))
    got = columns(modules[90], "int32_ops", [a, b, c], 28, np.uint32)
    for i in range(N):
        assert got[:, i].tolist() == expected_int32(int(a[i]), int(b[i]), int(c[i])), (a[i], b[i], c[i])


def test_int64_operations(modules: dict[int, Module]) -> None:
    rng = np.random.default_rng(12)
    a, b = (rng.integers(0, 2**64, N, dtype=np.uint64) >> rng.integers(0, 64, N).astype(np.uint64) for _ in range(2))
    b[b == 0] = 3
    a[:3] = [0, 2**63, 2**64 - 1]
    got = columns(modules[90], "int64_ops", [a, b], 14, np.uint64)
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


def test_comparisons_with_and_without_nan(modules: dict[int, Module]) -> None:
    values = np.array([-np.inf, -1, -0.0, 0.0, 1e-45, 2, np.inf, np.nan], np.float32)
    a, b = (x.ravel() for x in np.meshgrid(values, values))
    got = columns(modules[90], "comparisons", [a, b], 1, np.uint32)[0]
    nan = np.isnan(a) | np.isnan(b)
    ordered = [a == b, (a != b) & ~nan, a < b, a <= b, a > b, a >= b]
    expected = [*ordered, *(x | nan for x in ordered), ~nan, nan, ~(a < b), (a < b) & ~(a > 0), a == np.float32(1e-45)]
    for k, column in enumerate(expected):
        np.testing.assert_array_equal(got >> np.uint32(k) & 1, column, err_msg=f"comparison {k}")


def test_packed_float32_and_three_operand_maximum(modules: dict[int, Module]) -> None:
    a, b, c = operands(np.float32, -12, 12)
    got = columns(modules[100], "packed_float32", [x.view(np.uint64) for x in (a, b, c)], 3, np.uint64, 100).view(
        np.float32
    )
    expected = [apply_exactly(lambda x, y, z: x * y + z, "f32", "rn", a, b, c), a + b, a * b]
    np.testing.assert_array_equal(got, np.array(expected, np.float32))
    a[0] = np.nan
    got = columns(modules[100], "max3", [a, b, c], 1, np.float32, 100)[0]
    np.testing.assert_array_equal(got, np.fmax(np.fmax(a, b), c))
