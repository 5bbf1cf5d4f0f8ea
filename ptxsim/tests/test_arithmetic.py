"""Compares the floating point arithmetic of the PTX interpreter with rational numbers or numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ptxsim import Module, compile_ptx, find_nvcc
from python_tests.cuda.ptx_columns import MODES, N, columns, decode, half_patterns, random_floats
from python_tests.operators.exact_rounding import apply_exactly

pytestmark = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc: put it on PATH or pip install nvidia-cuda-nvcc")
SOURCE = Path(__file__).parents[1] / "kernels" / "arithmetic.cu"


@pytest.fixture(scope="module")
def modules() -> dict[int, Module]:
    return {arch: Module.parse(compile_ptx(SOURCE, arch)) for arch in (80, 90, 100)}


def bits(x: np.ndarray) -> np.ndarray:
    return x.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[x.dtype.itemsize])


def operands(dtype: type, low: int, high: int, seed: int = 0) -> list[np.ndarray]:
    """Returns a, b, c with exponents near each other in most rows, so that rounding and cancellation matter."""
    rng = np.random.default_rng(seed)
    a, b = random_floats(rng, N, dtype, low, high), random_floats(rng, N, dtype, low, high)
    c = random_floats(rng, N, dtype, low, high)
    cancels = rng.random(N) < 0.3
    with np.errstate(all="ignore"):
        close = (-(a.astype(np.float64) * b.astype(np.float64))).astype(dtype)
    c[cancels & np.isfinite(close)] = close[cancels & np.isfinite(close)]
    return [a, b, c]


BASIC = [(lambda x, y: x + y), (lambda x, y: x * y)]


@pytest.mark.parametrize(("low", "high"), [(-12, 12), (-149, -60), (30, 128)])
def test_float32_arithmetic_is_rounded_once_in_every_direction(modules: dict[int, Module], low: int, high: int) -> None:
    a, b, c = operands(np.float32, low, high)
    # The exact sum lies next to a tie, too close for a float64 to tell.
    a[4:8] = b[4:8] = 1 + 2.0**-12
    c[4:8] = [2.0**-70, -(2.0**-70), 2.0**-140, -(2.0**-140)]
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
    a = np.array([0.0, -0.0, -np.nan, 1.0, np.nan, -0.0, -np.inf], np.float32)
    b = np.array([-0.0, 0.0, 2.0, np.nan, -np.nan, 5.0, np.inf], np.float32)
    got = columns(modules[90], "float32_ops", [a, b, a], 21, np.float32)
    np.testing.assert_array_equal(got[15], [-0.0, -0.0, 2, 1, np.nan, -0.0, -np.inf])
    np.testing.assert_array_equal(np.signbit(got[15][[0, 1, 5]]), [True, True, True])
    np.testing.assert_array_equal(got[16], [0.0, 0.0, 2, 1, np.nan, 5, np.inf])
    np.testing.assert_array_equal(np.signbit(got[16][:2]), [False, False])
    np.testing.assert_array_equal(np.isnan(got[19]), [False, False, True, True, True, False, False])
    assert (got[19][2:5].view(np.uint32) == 0x7FFFFFFF).all()  # whatever the sign of what it came from


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
    # The exact sum lies next to a tie, too close for a sum of two float64 to tell.
    a[:4], b[:4] = 1 + 2.0**-40, 2.0**-53 * (1 - 2.0**-40) * np.array([1, -1, 1, -1])
    c[:4] = [1 + 2.0**-52, -1 - 2.0**-52, 1.0, -1.0]
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
