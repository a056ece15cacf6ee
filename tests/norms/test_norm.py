"""Norms and unit vectors against exact decimal arithmetic, and bit for bit against themselves."""

from __future__ import annotations

import math
import pickle
from decimal import Context, Decimal, localcontext
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from batchnorm_tool.errors import InputError, JobError
from batchnorm_tool.norms.norm import NORM_NAMES, Norm, row_blocks, row_norms, unit_vectors, widen
from tests.bits import same_bits

NORMS = [Norm.parse(text) for text in ("l1", "l2", "max", "lp:1", "lp:2.5", "lp:3", "lp:50")]
FLOATS = ["float16", "float32", "float64"]
ORDERS = {"l1": 1, "l2": 2}
HUGE = np.finfo(np.float64).max
TINY = 5e-324

EDGE_ROWS = {
    "pythagorean": ("float16 float32 float64", [3, 4, 0]),
    "four_300s": ("float16 float32 float64", [300] * 4),
    "float16_extremes": ("float16 float32 float64", [65504, -6e-8, 65504]),
    "float16_subnormals": ("float16 float32 float64", [6e-8, -1.2e-7, 0]),
    "3e38": ("float32 float64", [3e38, 3e38, -3e38]),
    "3e38_beside_1": ("float32 float64", [3e38, 1, 0]),
    "1e20": ("float32 float64", [1e20, 2e20]),
    "1e-30": ("float32 float64", [1e-30, 1e-30, 2e-30]),
    "float32_subnormals": ("float32 float64", [1e-45, 3e-45]),
    "1e307": ("float64", [1e307, -1e307, 3e306, 0]),
    "1e308_beside_1": ("float64", [1e308, 1]),
    "1e-160": ("float64", [1e-160, 3e-160]),
    "1e-200_beside_1e-320": ("float64", [1e-200, 1e-320]),
    "normal_and_subnormal": ("float64", [2.3e-308, 1e-310]),
    "smallest": ("float64", [TINY, TINY, 0]),
    "subnormals": ("float64", [1e-310, -7e-311, 3e-312]),
}
EDGE_CASES = [
    pytest.param(dtype, row, id=f"{name}-{dtype}")
    for name, (dtypes, row) in EDGE_ROWS.items()
    for dtype in dtypes.split()
]


def exact_norm(row: np.ndarray, norm: Norm) -> Decimal:
    sizes = [abs(Decimal(float(x))) for x in row]
    if norm.name == "max":
        return max(sizes)
    p = Decimal(ORDERS.get(norm.name, norm.p))
    return sum((s**p for s in sizes if s), Decimal(0)) ** (1 / p)


def decimal_context() -> Any:
    return localcontext(Context(prec=60, Emin=-(10**9), Emax=10**9))


def ulps(got: Any, exact: Decimal, dtype: str) -> float:
    """How far ``got`` is from ``exact``, in units of the last place of ``dtype`` there."""
    spacing = float(np.spacing(np.abs(np.array(float(exact)).astype(dtype))))
    return float(abs(Decimal(float(got)) - exact) / Decimal(spacing))


def halves(x: Any, norm: str | Norm, dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray]:
    chosen = norm if isinstance(norm, Norm) else Norm.parse(norm)
    x64 = widen(x)
    norms = row_norms(x64, chosen)
    return unit_vectors(x64, norms, chosen, dtype), norms


def rows_of(dtype: str, **kwargs: Any) -> st.SearchStrategy[np.ndarray]:
    shape = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)
    width = 8 * np.dtype(dtype).itemsize
    return hnp.arrays(dtype, shape, elements=st.floats(width=width, **kwargs))


# Names


@pytest.mark.parametrize(("text", "name"), NORM_NAMES.items(), ids=NORM_NAMES)
def test_every_spelling_means_its_norm(text: str, name: str) -> None:
    p = 3 if name == "lp" else None
    assert Norm.parse(f" {text.upper()} ", p) == Norm(name, p)


@pytest.mark.parametrize(
    ("text", "p", "label"),
    [
        ("cosine", None, "l2"),
        ("lp:3", None, "lp:3"),
        ("LP: 2", 2, "lp:2"),
        ("lp", 1, "lp:1"),
        ("lp", 4 / 3, "lp:1.3333333333333333"),
        ("lp", math.inf, "lp:inf"),
    ],
)
def test_a_label_is_short_and_reads_back(text: str, p: float | None, label: str) -> None:
    norm = Norm.parse(text, p)
    assert norm.label == label
    assert Norm.parse(label) == norm
    assert pickle.loads(pickle.dumps(norm)) == norm  # noqa: S301


@pytest.mark.parametrize(
    ("text", "p", "words"),
    [
        ("eucledian", None, "Did you mean `euclidean`"),
        ("l3", None, "Received: 'l3'"),
        (False, None, "Received: False"),
        ("lp", None, "needs `p`"),
        ("lp:", None, "number of 1 or more"),
        ("lp:three", None, "Received: 'three'"),
        ("lp", 0.5, "Received: 0.5"),
        ("lp", math.nan, "Received: nan"),
        ("lp", -math.inf, "Received: -inf"),
        ("lp:3", 4, "given twice"),
        ("l2", 2, "is only for the norm 'lp'"),
        ("l2:3", None, "is only for the norm 'lp'"),
    ],
)
def test_what_is_no_norm_is_refused_with_a_reason(text: Any, p: float | None, words: str) -> None:
    with pytest.raises(JobError, match=words):
        Norm.parse(text, p)


def test_a_norm_made_by_hand_is_checked_too() -> None:
    with pytest.raises(JobError, match="Unknown norm"):
        Norm("cosine")


# Widening


@pytest.mark.parametrize(
    "dtype", [*FLOATS, ml_dtypes.bfloat16, ">f4", "int8", "uint64", ">i2", "bool"], ids=str
)
def test_widening_is_exact_and_in_c_order(dtype: Any) -> None:
    x = np.asfortranarray([[0, 1, 1], [1, 0, 100]]).astype(dtype)
    wide = widen(x)
    assert wide.dtype == np.float64
    assert wide.flags.c_contiguous
    assert wide.tolist() == [[float(v) for v in row] for row in x.tolist()]


def test_blocks_hold_as_many_rows_as_fit() -> None:
    assert list(row_blocks(5, 65536)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(row_blocks(2, 10**9)) == [slice(0, 1), slice(1, 2)]


def test_widening_copies() -> None:
    x = np.ones((2, 2))
    widen(x)[:] = 7
    assert x.tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    "x",
    [[1j], ["1"], [None], np.ones(1, np.longdouble), np.zeros(1, "V2"), np.zeros(1, "M8[s]")],
    ids=["complex", "text", "object", "longdouble", "void", "time"],
)
def test_widening_refuses_what_is_no_real_number(x: Any) -> None:
    with pytest.raises(InputError, match="Received: dtype"):
        widen(x)


def test_ragged_lists_are_refused() -> None:
    with pytest.raises(InputError, match="equal length"):
        widen([[1.0], [1.0, 2.0]])


# Arithmetic


@pytest.mark.parametrize("norm", NORMS, ids=lambda n: n.label)
@pytest.mark.parametrize(("dtype", "row"), EDGE_CASES)
def test_edge_values_are_exact(dtype: str, row: list[float], norm: Norm) -> None:
    x = np.array([row], dtype)
    unit, norms = halves(x, norm, dtype)
    limit = 2.5 if dtype == "float64" else 0.5 + 1e-6
    with decimal_context():
        length = exact_norm(x[0], norm)
        assert ulps(norms[0, 0], length, "float64") <= 2
        for got, value in zip(unit[0], x[0], strict=True):
            assert ulps(got, Decimal(float(value)) / length, dtype) <= limit


@pytest.mark.parametrize("norm", NORMS, ids=lambda n: n.label)
@pytest.mark.parametrize("dtype", FLOATS)
def test_ordinary_values_are_exact(dtype: str, norm: Norm) -> None:
    x = np.random.default_rng(5).lognormal(size=(20, 64)).astype(dtype)
    unit, norms = halves(x, norm, dtype)
    limit = 4 if dtype == "float64" else 0.5 + 1e-6
    with decimal_context():
        for row, got, length in zip(x, unit, norms[:, 0], strict=True):
            exact = exact_norm(row, norm)
            assert ulps(length, exact, "float64") <= 4
            assert ulps(got[7], Decimal(float(row[7])) / exact, dtype) <= limit


@pytest.mark.parametrize("p", [8.0, 700.0, 5000.0, 1e300, math.inf])
@pytest.mark.parametrize("scale", [1e-310, 1e-30, 1.0, 1e30, 1e307])
def test_any_order_stays_between_its_bounds(p: float, scale: float) -> None:
    unit, norms = halves([[scale, -scale, scale / 2]], Norm("lp", p))
    expected = (2 + 0.5**p) ** (1 / p)
    assert norms[0, 0] / scale == pytest.approx(expected, rel=1e-13)
    assert unit[0].tolist() == pytest.approx([1 / expected, -1 / expected, 0.5 / expected])


@pytest.mark.parametrize("norm", ["l1", "l2", "lp:3"])
def test_a_norm_beyond_float64_is_inf_and_its_vector_right(norm: str) -> None:
    unit, norms = halves([[HUGE, HUGE, 0.0]], norm)
    assert norms.tolist() == [[math.inf]]
    share = 0.5 ** (1 / ORDERS.get(norm, 3))
    assert unit[0].tolist() == pytest.approx([share, share, 0.0], rel=1e-15)


@given(rows_of("float64", allow_nan=False, allow_infinity=False), st.sampled_from(NORMS))
def test_a_finite_row_that_is_not_zero_has_length_one(x: np.ndarray, norm: Norm) -> None:
    unit, _ = halves(x, norm)
    lengths = row_norms(unit, norm)[:, 0]
    assert lengths == pytest.approx(x.any(axis=1).astype(float), rel=1e-14)


@given(
    rows_of("float64", min_value=-1e3, max_value=1e3),
    st.integers(-900, 900),
    st.sampled_from(NORMS),
)
def test_scaling_by_a_power_of_two_changes_no_bit(x: np.ndarray, exponent: int, norm: Norm) -> None:
    x = np.where(np.abs(x) < 1e-3, 0, x)  # so that scaling itself loses nothing
    unit, norms = halves(x, norm)
    scaled_unit, scaled_norms = halves(np.ldexp(x, exponent), norm)
    assert same_bits(scaled_unit, unit)
    assert same_bits(scaled_norms, np.ldexp(norms, exponent))


@given(st.data(), st.sampled_from(FLOATS), st.sampled_from(NORMS))
def test_vector_times_norm_is_the_prediction(data: st.DataObject, dtype: str, norm: Norm) -> None:
    x = data.draw(rows_of(dtype, allow_nan=False, allow_infinity=False))
    unit, norms = halves(x, norm, dtype)
    reversible = np.isfinite(norms[:, 0])
    x, unit = x[reversible], unit[reversible]
    back = unit.astype(np.float64) * norms[reversible]
    # A component too small for a normal number of the dtype keeps fewer digits.
    told = np.abs(unit) >= np.finfo(dtype).smallest_normal
    sizes = np.abs(x[told])
    last_place = (sizes - np.nextafter(sizes, np.zeros_like(sizes))).astype(np.float64)
    assert (np.abs(back - x)[told] <= last_place).all()


@pytest.mark.parametrize("norm", [*NORMS, Norm("none")], ids=lambda n: n.label)
def test_zeros_stay_zeros(norm: Norm) -> None:
    unit, norms = halves([[0.0, -0.0], [-0.0, -0.0]], norm)
    assert unit.tolist() == [[0, 0], [0, 0]]
    assert norms.tolist() == ([[1], [1]] if norm.name == "none" else [[0], [0]])


@pytest.mark.parametrize("norm", NORMS, ids=lambda n: n.label)
def test_rows_that_are_not_finite_give_what_ieee_says(norm: Norm) -> None:
    unit, norms = halves([[math.inf, 1], [math.nan, 1], [-math.inf, math.nan]], norm)
    np.testing.assert_array_equal(norms[:, 0], [math.inf, math.nan, math.nan])
    np.testing.assert_array_equal(unit[0], [math.nan, 0])
    assert np.isnan(unit[1:]).all()


def test_none_leaves_the_vector_alone() -> None:
    unit, norms = halves([[3.0, HUGE], [TINY, math.nan]], "none")
    np.testing.assert_array_equal(unit, [[3.0, HUGE], [TINY, math.nan]])
    assert norms.tolist() == [[1], [1]]


def test_a_bfloat16_is_rounded_once() -> None:
    above_a_tie = np.array([[1 + 2**-8 + 2**-40, 1 + 2**-8, 2**-134 * (1 + 2**-30), -math.inf]])
    ones = np.ones((1, 1))
    stored = unit_vectors(above_a_tie, ones, Norm("none"), ml_dtypes.bfloat16)
    assert stored.astype(float).tolist() == [[1 + 2**-7, 1, 2**-133, -math.inf]]


# Rows keep to themselves


@given(rows_of("float64"), st.sampled_from(NORMS), st.data())
def test_splitting_rows_changes_no_bit(x: np.ndarray, norm: Norm, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(x)))
    whole = halves(x, norm)
    pieces = [halves(x[:cut], norm), halves(x[cut:], norm)]
    for k in (0, 1):
        assert same_bits(np.concatenate([piece[k] for piece in pieces]), whole[k])


@pytest.mark.parametrize("norm", NORMS, ids=lambda n: n.label)
@pytest.mark.parametrize("width", [1, 7, 64, 1000, 8193, 20_001])
def test_a_row_alone_has_the_bits_that_it_has_among_others(width: int, norm: Norm) -> None:
    x = np.random.default_rng(width).standard_normal((5, width))
    vectors, norms = halves(x, norm)
    alone = [halves(x[i : i + 1], norm) for i in range(5)]
    assert same_bits(np.concatenate([unit for unit, _ in alone]), vectors)
    assert same_bits(np.concatenate([length for _, length in alone]), norms)


@given(rows_of("float64"), st.sampled_from(NORMS), st.sampled_from([math.nan, math.inf]))
def test_a_bad_row_changes_no_bit_of_its_neighbours(x: np.ndarray, norm: Norm, bad: float) -> None:
    spoilt = np.insert(x, [0, len(x)], bad, axis=0)
    for got, clean in zip(halves(spoilt, norm), halves(x, norm), strict=True):
        assert same_bits(got[1:-1], clean)


@pytest.mark.parametrize("norm", NORMS, ids=lambda n: n.label)
def test_fortran_order_and_byte_order_change_no_bit(norm: Norm) -> None:
    x = np.random.default_rng(3).standard_normal((50, 300))
    expected = halves(x, norm)
    for same in (np.asfortranarray(x), x.astype(">f8"), np.repeat(x, 2, axis=1)[:, ::2]):
        for got, clean in zip(halves(same, norm), expected, strict=True):
            assert same_bits(got, clean)
