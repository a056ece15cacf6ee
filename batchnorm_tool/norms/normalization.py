"""What becomes of a vector after prediction: truncated, projected, divided by its norm, quantized.

Everything is computed in float64 and rounded once. What is fitted over all rows, a mean direction
and the step of int8, comes out the same however the rows are split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from batchnorm_tool.norms.norm import (
    L2,
    Anything,
    Float64s,
    Norm,
    row_blocks,
    row_norms,
    unit_vectors,
    wide_blocks,
    widen,
)

Quantized: TypeAlias = Literal["int8", "binary"]
"""How components are stored in fewer bits than a float: one byte, or one bit."""

_STEPS = 127  # on each side of 0: int8 without -128, so that the negative of a vector is one, too
_ULP = np.finfo(np.float64).eps
_FRACTION_BITS = 40
_MOST_SUMMED = 2 ** (62 - _FRACTION_BITS)  # components of at most 1, in an int64


@dataclass(frozen=True)
class Normalization:
    """What becomes of each vector of an output after prediction.

    Args:
        norm: What a vector is divided by.
        truncate: Only so many of the first components are kept.
        mean: Direction that is projected off: float64, of L2 length 1, as long as what is kept.
        dtype: ``"int8"`` or ``"binary"`` (one bit per component); None for a float dtype.
        scale: What one step of int8, or one sign of binary, stands for. None of binary: such that
            a decoded vector has length 1.

    Example:
        >>> import numpy as np
        >>> halves = Normalization(Norm("l2"), truncate=2, dtype="int8", scale=1 / 127)
        >>> codes, norms = halves.apply(np.array([[3.0, 4.0, 12.0]]))
        >>> codes, norms
        (array([[ 76, 102]], dtype=int8), array([[5.]]))
        >>> halves.decode(codes).round(2)
        array([[0.6, 0.8]], dtype=float32)
    """

    norm: Norm
    truncate: int | None = None
    mean: tuple[float, ...] | None = None
    dtype: Quantized | None = None
    scale: float | None = None

    @property
    def keeps_all(self) -> bool:
        """Whether the norm is that of the prediction itself."""
        return self.truncate is None and self.mean is None

    def kept_width(self, width: int) -> int:
        """Return how many of ``width`` components are kept."""
        return width if self.truncate is None else min(self.truncate, width)

    def stored_width(self, width: int) -> int:
        """Return how many numbers are stored for ``width`` components of a prediction."""
        kept = self.kept_width(width)
        return -(-kept // 8) if self.dtype == "binary" else kept

    def stored_dtype(self, dtype: npt.DTypeLike) -> np.dtype:
        """Return the dtype of what is stored, where ``dtype`` is that of floats."""
        return np.dtype({"int8": np.int8, "binary": np.uint8}.get(self.dtype or "", dtype))

    def kept(self, vectors: Anything) -> Float64s:
        """Return what is kept of vectors ``[n, d]`` before they are divided: float64[n, k].

        A row's result depends on that row alone, to the last bit.
        """
        x64 = widen(vectors[:, : self.truncate])
        return x64 if self.mean is None else _projected(x64, np.array(self.mean))

    def apply(
        self, vectors: Anything, dtype: npt.DTypeLike = np.float32
    ) -> tuple[Anything, Float64s]:
        """Return vectors as they are stored, and the norms of what was kept of them.

        Args:
            vectors: Raw predictions ``[n, d]``.
            dtype: Float dtype of the result, unless it is quantized.

        Returns:
            ``dtype[n, k]``, int8[n, k], or uint8[n, ceil(k / 8)] of packed bits, the first
            component the highest; and norms float64[n, 1].
        """
        stored, norms, _ = self.divide(vectors if self.keeps_all else self.kept(vectors), dtype)
        return stored, norms

    def divide(
        self, kept: Anything, dtype: npt.DTypeLike = np.float32
    ) -> tuple[Anything, Float64s, npt.NDArray[np.bool_]]:
        """Return what `apply` does of what is kept already, and whose components were clipped."""
        floats = np.dtype(np.float64 if self.dtype else dtype)
        stored = np.empty((len(kept), self.stored_width(kept.shape[1])), self.stored_dtype(dtype))
        norms, clipped = np.empty((len(kept), 1)), np.zeros(len(kept), bool)
        for block, x64 in wide_blocks(kept):
            norms[block] = row_norms(x64, self.norm)
            units = unit_vectors(x64, norms[block], self.norm, floats)
            if self.dtype == "int8":
                with np.errstate(over="ignore"):
                    units /= self._step
                # Half a step more is what rounding takes off.
                clipped[block] = (np.abs(units) > _STEPS + 0.5).any(axis=1)
                # NaN has no int8; the norm of such a row tells.
                units = np.rint(np.clip(np.nan_to_num(units, copy=False), -_STEPS, _STEPS))
            stored[block] = np.packbits(units > 0, axis=1) if self.dtype == "binary" else units
        return stored, norms, clipped

    def decode(self, stored: Anything, width: int | None = None) -> Anything:
        """Return float32[n, k] of int8 or binary vectors; others as they are.

        Args:
            stored: What `apply` returned.
            width: k, of binary vectors; default: all of their bits.
        """
        if self.dtype is None:
            return stored
        if self.dtype == "int8":
            return (stored.astype(np.float64) * self._step).astype(np.float32)
        signs = np.unpackbits(stored, axis=1, count=width).astype(np.float64) * 2 - 1
        ones = row_norms(np.ones((1, signs.shape[1])), self.norm)[0, 0]
        return (signs * (self.scale or 1 / ones)).astype(np.float32)

    def largest(self, kept: Anything) -> float:
        """Return the size of the largest component of the unit vectors of what is kept.

        Rows that are not finite do not count; 0.0 where there is no other.
        """
        found = 0.0
        for _, x64 in wide_blocks(kept):
            norms = row_norms(x64, self.norm)
            units = unit_vectors(x64, norms, self.norm, np.float64)
            sizes = np.abs(units).max(axis=1, initial=0.0)
            good = np.isfinite(norms[:, 0]) & np.isfinite(sizes)
            found = max(found, float(sizes[good].max(initial=0.0)))
        return found

    @property
    def rounding_step(self) -> float:
        """The distance of two values of a stored component; 0.0 of floats and bits."""
        return self._step if self.dtype == "int8" else 0.0

    def length_errors(self, decoded: Anything, lengths: Float64s, norms: Float64s) -> Float64s:
        """Return how far lengths are from what they must be: 1, and 0 where there was no vector.

        Args:
            decoded: The vectors, ``[n, k]``; those of int8 may be too short where one was clipped.
            lengths: Their lengths under the norm, float64[n].
            norms: What was divided by, float64[n].
        """
        zero = (norms == 0) & (self.dtype != "binary")  # bits have no zero
        errors = lengths - np.where(zero, 0.0, 1.0)
        if self.dtype == "int8":
            largest = np.abs(decoded).max(axis=1, initial=0.0)
            short = (errors < 0) & (largest >= np.float32(_STEPS * self._step))
            errors = np.where(short, 0.0, errors)
        return np.abs(errors)

    @property
    def _step(self) -> float:
        # Where there were only zeros, or nothing, any step will do but 0.
        return self.scale or int8_scale(0.0)


def int8_scale(largest: float) -> float:
    """Return the step of int8 that just holds a component of this size."""
    return (largest or 1.0) / _STEPS


@dataclass(frozen=True)
class DirectionSum:
    """The sum of vectors' directions, each of length 1 so that no huge vector decides.

    It is exact, as integers are, and the same in whatever order vectors and sums are added.

    Args:
        steps: The sum of each component, in steps of 2**-80.
    """

    steps: tuple[int, ...]

    @classmethod
    def of(cls, kept: Anything) -> DirectionSum:
        """Add up the directions of vectors ``[n, d]``; zeros and NaN or inf are left out."""
        if len(kept) > _MOST_SUMMED:
            return cls.of(kept[:_MOST_SUMMED]) + cls.of(kept[_MOST_SUMMED:])
        total, rest = np.zeros((2, kept.shape[1]), np.int64)
        for _, x64 in wide_blocks(kept):
            lengths = row_norms(x64, L2)
            good = np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)
            units = unit_vectors(x64[good], lengths[good], L2, np.float64)
            # What a step leaves is added, too: vectors that are all alike have themselves as their
            # mean direction to the last bit, so that nothing but zeros is left of them.
            steps = np.ldexp(units, _FRACTION_BITS)
            whole = np.rint(steps)
            total += whole.astype(np.int64).sum(axis=0)
            rest += np.rint(np.ldexp(steps - whole, _FRACTION_BITS)).astype(np.int64).sum(axis=0)
        both = zip(total.tolist(), rest.tolist(), strict=True)
        return cls(tuple((high << _FRACTION_BITS) + low for high, low in both))

    def __add__(self, other: DirectionSum) -> DirectionSum:
        return DirectionSum(tuple(a + b for a, b in zip(self.steps, other.steps, strict=True)))

    def mean(self) -> tuple[float, ...] | None:
        """Return the mean direction, of L2 length 1; None where the directions cancel out."""
        # Below half of 2**-40, rounding is all that is left of directions that cancel out.
        found = max(map(abs, self.steps), default=0) >> (_FRACTION_BITS - 1)
        return unit_direction(np.array(self.steps, np.float64)) if found else None


def unit_direction(vector: Anything) -> tuple[float, ...]:
    """Return a vector's direction as `Normalization` takes it."""
    row = widen(vector[np.newaxis])
    return tuple(unit_vectors(row, row_norms(row, L2), L2, np.float64)[0].tolist())


def _projected(x64: Float64s, mean: Float64s) -> Float64s:
    """Return ``v - (v . mean) mean`` of each row; zeros where rounding alone is left of it."""
    for block in row_blocks(*x64.shape):
        rows = x64[block]
        peaks = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
        with np.errstate(all="ignore"):  # NaN and inf stay what they are: their row is bad
            # A power of two keeps products of huge rows within float64, and rounds nothing.
            exponents = np.where(np.isfinite(peaks), np.frexp(peaks)[1], 0)
            rows = np.ldexp(rows, -exponents)
            # Twice is enough (Kahan): the first leaves the rounding error of a long product. Each
            # row's products are added up by themselves, so that a split changes no bits.
            for _ in range(2):
                rows = rows - (rows * mean).sum(axis=1, keepdims=True) * mean
            rows[np.abs(rows).max(axis=1, initial=0.0) <= 4 * _ULP] = 0.0
            x64[block] = np.ldexp(rows, exponents)
    return x64
