"""Row norms and unit vectors, right over the whole range of float16, float32 and float64.

A norm is accumulated in float64 by `numpy.linalg.norm`, a component is divided in float64, and the
quotient is rounded once. The squares of float32 and narrower numbers never leave float64's range.
Rows of float64 whose squares do are first scaled by a power of two, as LAPACK's ``nrm2`` does; an
``lp`` norm is always taken of the row divided by its largest component.

A norm is a function in `batchnorm_tool.registry.NORMS`. It takes ``float64[n, d]``, C order, with
at least one component, and returns ``float64[n, 1]``: 0 for zeros alone, NaN for a row with NaN,
else inf for a row with inf, each from its own row, and twice as much for twice the row. Where its
powers or sums leave float64's range, `row_norms` scales the row and asks it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from batchnorm_tool.display import did_you_mean
from batchnorm_tool.errors import InputError, JobError
from batchnorm_tool.registry import NORMS, load

Float64s: TypeAlias = npt.NDArray[np.float64]
Anything: TypeAlias = npt.NDArray[Any]

NORM_NAMES: Mapping[str, str] = MappingProxyType(
    {name: name if ":" in place else place for name, place in NORMS.items()}
)
"""Every accepted spelling of a norm, with the name that it goes by."""

_SMALLEST_NORMAL = float(np.finfo(np.float64).smallest_normal)
# Squares that add up to at least 2**-960 lose nothing to underflow: float64's smallest number is
# 2**-1074, which leaves 114 bits between them for rounding (53) and for the number of components.
_SURELY_RIGHT = 2.0**-480
_BLOCK_VALUES = 131072  # 1 MiB of float64
# bfloat16 keeps 7 bits after the point; 10 leave room for a rounding and a sticky bit.
_BFLOAT16_DROPPED_BITS = np.uint64(52 - 10)


@dataclass(frozen=True)
class Norm:
    """A named row norm; `parse` is the forgiving way to make one.

    Args:
        name: ``"none"``, ``"l1"``, ``"l2"``, ``"max"`` or ``"lp"``.
        p: The order of an ``"lp"`` norm, 1 or more; None for every other name.

    Raises:
        JobError: An unknown name, or a ``p`` that is missing, out of range or out of place.
    """

    name: str
    p: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no norm."""
        if self.name not in NORM_NAMES.values():
            raise JobError(_unknown_norm(self.name))
        if self.name == "lp":
            _check_order(self.p)
        elif self.p is not None:
            raise JobError(
                f"`p` is only for the norm 'lp'. Received: p={self.p!r} with norm {self.name!r}. "
                "Remove `p`, or choose the norm 'lp'."
            )

    @classmethod
    def parse(cls, text: str, p: float | None = None) -> Norm:
        """Make a norm of what a person wrote.

        Args:
            text: A key of `NORM_NAMES` in any case, or ``"lp:3"`` for p = 3.
            p: The order, where ``text`` is plain ``"lp"``. ``lp`` stays ``lp`` for p = 1, 2 or inf.
        """
        if not isinstance(text, str):
            raise JobError(_unknown_norm(text))
        name, colon, order = text.strip().lower().partition(":")
        if name not in NORM_NAMES:
            raise JobError(_unknown_norm(text))
        if colon:
            p = _written_order(text, order, p)
        return cls(NORM_NAMES[name], p if p is None else _as_float(p))

    @property
    def label(self) -> str:
        """The name in statistics, such as ``l2`` or ``lp:3``; `parse` reads it back."""
        return self.name if self.p is None else f"lp:{repr(self.p).removesuffix('.0')}"


def _unknown_norm(received: object) -> str:
    return (
        f"Unknown norm. Expected: one of {', '.join(NORM_NAMES)}, or 'lp:P' with a number P of 1 "
        f"or more. Received: {received!r}.{did_you_mean(received, NORM_NAMES)}"
    )


def _check_order(p: float | None) -> None:
    if p is None:
        raise JobError("The norm 'lp' needs `p`. Expected: `p: 3`, or 'lp:3'. Received: no `p`.")
    if not p >= 1:  # also refuses NaN
        raise JobError(
            f"`p` must be a number of 1 or more (below 1 there is no norm). Received: {p!r}."
        )


def _as_float(p: object) -> float:
    try:
        return float(p)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        raise JobError(f"`p` must be a number of 1 or more. Received: {p!r}.") from error


def _written_order(text: str, order: str, p: float | None) -> float:
    written = _as_float(order)
    if p is not None and _as_float(p) != written:
        raise JobError(
            f"The norm's order is given twice, with different values. Received: norm {text!r} "
            f"with p={p!r}. Remove one of them."
        )
    return written


def row_blocks(rows: int, width: int) -> Iterator[slice]:
    """Cut rows into blocks whose float64 copies stay in the cache of a core."""
    # Temporary arrays of a megabyte and more are also taken from the system again, and zeroed by
    # it, each time: in blocks, norms and statistics of 1 M vectors of 64 took 0.6 instead of 1.4
    # CPU seconds.
    step = max(1, _BLOCK_VALUES // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def wide_blocks(vectors: Anything) -> Iterator[tuple[slice, Float64s]]:
    """Yield the blocks of rows ``[n, d]``, and `widen` of each."""
    for block in row_blocks(*vectors.shape):
        yield block, widen(vectors[block])


L1 = Norm("l1")
L2 = Norm("l2")
MAX = Norm("max")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the dtype of arrays of a name: NumPy's, ``"bfloat16"``, or ``"string"`` (object)."""
    if name == "bfloat16":
        import ml_dtypes  # a twentieth of a run with nothing to do, and a contract lacks it

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(object if name == "string" else name)


def numeric_array(x: npt.ArrayLike) -> Anything:
    """Return real numbers of at most 64 bits as an array, in their own dtype and order."""
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise InputError(
            f"The values are not an array: {error}. Expected: vectors of equal length."
        ) from error
    # Not longdouble: float64 cannot hold its values, so that widening would change them.
    narrow_float = array.dtype.kind == "f" and array.dtype.itemsize <= np.dtype(np.float64).itemsize
    if narrow_float or array.dtype.kind in "iub" or array.dtype.name == "bfloat16":
        return array
    raise InputError(
        "Norms need real numbers of at most 64 bits. Expected: float16, bfloat16, float32, "
        f"float64, integers or bool. Received: dtype {array.dtype}. Convert it first."
    )


def widen(x: npt.ArrayLike) -> Float64s:
    """Copy real numbers of any shape and byte order into a float64 array in C order.

    Exact, except for integers beyond 2**53, which are rounded.
    """
    # C order matters: NumPy adds up a Fortran-ordered array in another order, with other low-order
    # bits.
    array = numeric_array(x)
    with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN like any other
        return np.array(array, dtype=np.float64, order="C", copy=True)


def row_norms(x64: Float64s, norm: Norm) -> Float64s:
    """Measure the length of every row, in float64.

    A row's result depends on that row alone, to the last bit, however rows are split.

    Args:
        x64: float64[n, d], C order, as `widen` makes it.
        norm: Which norm; ``none`` gives ones.

    Returns:
        float64[n, 1]: NaN for a row with NaN, else inf for a row with inf. A finite row has inf
        only where its true norm is beyond float64's maximum, and 0 only where it is all zeros.
    """
    if not x64.size:  # numpy.linalg.norm knows no maximum of nothing
        return np.full((len(x64), 1), float(norm.name == "none"))
    measure = load(NORMS, norm.name)
    with np.errstate(all="ignore"):
        if norm.p is not None:
            return measure(x64, norm.p)
        norms: Float64s = measure(x64)
        # Squares may have underflowed or overflowed in few rows only, and only these are measured
        # again. Put as a negation, the test is true of NaN, too.
        unsure = ~((norms >= _SURELY_RIGHT) & (norms < math.inf))
        if unsure.any():
            rows, scaled, exponents = _scaled_rows(x64, np.flatnonzero(unsure))
            norms[rows] = np.ldexp(measure(scaled), exponents)
    return norms


def ones(x64: Float64s) -> Float64s:
    """Return 1 for each row: ``none`` divides by nothing."""
    return np.ones((len(x64), 1))


def l1_norms(x64: Float64s) -> Float64s:
    """Add up the sizes of each row's components."""
    return np.linalg.norm(x64, 1, axis=1, keepdims=True)


def l2_norms(x64: Float64s) -> Float64s:
    """Return the root of the sum of each row's squares."""
    # Along the last axis of an array in C order each row is added up by itself, in an order that
    # depends on its width alone: however rows are split, their norms have the same bits.
    return np.linalg.norm(x64, 2, axis=1, keepdims=True)


def max_norms(x64: Float64s) -> Float64s:
    """Return the size of each row's largest component."""
    # A maximum is exact in any order, and so found in half the time that `numpy.linalg.norm` takes
    # for short rows.
    starts = np.arange(0, x64.size, x64.shape[1])
    return np.maximum.reduceat(np.abs(x64).reshape(-1), starts)[:, np.newaxis]


def lp_norms(x64: Float64s, p: float) -> Float64s:
    """Measure rows divided by their peaks: no power overflows, and the largest cannot vanish."""
    # It also keeps the root exact: a sum far from 1 would multiply the rounding error of `1 / p` by
    # its logarithm (up to 90 ulp for values of 1e38).
    sizes = np.abs(x64)
    peaks = sizes.max(axis=1, keepdims=True)
    # Divided by 1, rows of zeros, of NaN and of inf keep what they are; 0 / 0 and inf / inf would
    # be NaN.
    peaks[(peaks == 0) | ~np.isfinite(peaks)] = 1
    sizes /= peaks
    lengths: Float64s = peaks * np.linalg.norm(sizes, p, axis=1, keepdims=True)
    return lengths


def _scaled_rows(
    x64: Float64s, rows: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.intp], Float64s, npt.NDArray[np.int32]]:
    """Pick the finite, non-zero ``rows``, times powers of two that bring their peaks near 1."""
    peaks = np.abs(x64[rows]).max(axis=1, keepdims=True)
    worth = np.flatnonzero((peaks > 0) & (peaks < math.inf))
    # Powers of two, as in LAPACK's `nrm2`: they change exponents alone, and round no component that
    # is large enough to count.
    exponents = np.frexp(peaks[worth])[1]
    return rows[worth], np.ldexp(x64[rows[worth]], -exponents), exponents


def unit_vectors(x64: Float64s, norms: Float64s, norm: Norm, dtype: npt.DTypeLike) -> Anything:
    """Divide every row by its norm, in float64, and round once.

    Args:
        x64: float64[n, d], C order, as `widen` makes it.
        norms: float64[n, 1], what `row_norms` says of ``x64`` and ``norm``.
        norm: Which norm; ``none`` leaves the rows as they are.
        dtype: The dtype of the result: float16, bfloat16, float32 or float64.

    Returns:
        ``dtype[n, d]``. Rows of zeros stay zeros. A finite row has length 1, also where its norm
        is subnormal or overflowed. Rows with NaN or inf hold what IEEE division gives.
    """
    with np.errstate(all="ignore"):
        if norm.name == "none":
            return _round_once(x64, np.dtype(dtype))
        # Rows of zeros stay zeros: divided by their norm they would be NaN. Rounded while they are
        # in a register, which spares a pass; of bfloat16, `_round_once` must see the quotients.
        own = np.dtype(np.float64 if np.dtype(dtype).name == "bfloat16" else dtype)
        quotients = np.empty(x64.shape, own)
        np.divide(x64, np.where(norms == 0, 1.0, norms), out=quotients, casting="same_kind")
        # A subnormal norm has lost digits, and an infinite one all of them: such rows are brought
        # near 1 first, and divided by the norm that they have there.
        coarse = ((norms > 0) & (norms < _SMALLEST_NORMAL)) | np.isinf(norms)
        if coarse.any():
            rows, scaled, _ = _scaled_rows(x64, np.flatnonzero(coarse))
            quotients[rows] = scaled / row_norms(scaled, norm)
        return quotients if own == dtype else _round_once(quotients, np.dtype(dtype))


def _round_once(x64: Float64s, dtype: np.dtype[Any]) -> Anything:
    if dtype.name == "bfloat16":
        # ml_dtypes goes through float32, which rounds twice. Rounding to odd (here: or-ing what is
        # cut off into the last bit that is kept) makes the later roundings come out as one.
        bits = x64.view(np.uint64)
        kept = (bits >> _BFLOAT16_DROPPED_BITS) << _BFLOAT16_DROPPED_BITS
        sticky = (bits != kept).astype(np.uint64) << _BFLOAT16_DROPPED_BITS
        x64 = (kept | sticky).view(np.float64)
    return x64.astype(dtype)
