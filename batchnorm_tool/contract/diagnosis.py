"""What is wrong with vectors that are not those of the contract: compared as they are, then mended.

An encoder that errs in one way gives vectors that are right once that is undone. What is tried goes
from the narrow to the wide, so that no cause is named where a nearer one explains the same: the
vectors as they are, their directions, their order, other features; and another model at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from batchnorm_tool.contract.records import Cause
from batchnorm_tool.norms.norm import L1, L2, MAX, Anything, Float64s, Norm, row_norms, widen
from batchnorm_tool.norms.output_spec import OutputSpec

Bools: TypeAlias = npt.NDArray[np.bool_]

_NORMS = (L1, L2, MAX, *(Norm("lp", p) for p in (1.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)))
# Significant bits of float16 and bfloat16, and how far from a row a model may be that computes in
# it throughout, in parts of its length: eight units in the last place.
_NARROW = {11: 2.0**-8, 8: 2.0**-5}
# A component near the middle of two steps may be rounded to either: one in fifty, and one.
_FLIPPED = 50


@dataclass(frozen=True)
class Expected:
    """The vectors of one output that the contract has.

    Args:
        stored: As they are stored, ``[vectors, numbers]``, with their norms ``[vectors]``.
        tolerance: In parts of a vector's length.
    """

    output: OutputSpec
    stored: Anything
    norms: Float64s
    tolerance: float

    def agree(self, got: Anything) -> Bools:
        """Tell which vectors are those that are stored, as they are."""
        if not self._may_be_stored(got):
            return np.zeros(len(self.stored), bool)
        if self.output.normalization.dtype is None:
            return self._excess(widen(got)) <= self.tolerance
        steps = np.abs(self._numbers(got) - self._numbers(self.stored))
        few = np.count_nonzero(steps, axis=1) <= 1 + self._vectors.shape[1] // _FLIPPED
        return few & (steps.max(axis=1) <= 1)

    def alike(self, got: Anything) -> Bools:
        """Tell which vectors are right but for their length, dtype or number of components."""
        if self._is_packed(got):
            bits = 8 * got.shape[1]
            return (self._numbers(got) == self._numbers(self.stored))[:, :bits].all(axis=1)
        return self.agree(got) | (self._excess(*self._scaled(got)) <= self._room(got))

    def largest_difference(self, got: Anything) -> float | None:
        """Return the largest distance of a stored vector, in parts of its length."""
        if not self._may_be_stored(got):
            return None
        stored = self._numbers(self.stored)
        distances = np.linalg.norm(self._numbers(got) - stored, axis=1)
        largest = float(np.max(distances / _lengths(stored)))
        return largest if np.isfinite(largest) else None

    def explain(self, got: Anything) -> tuple[Cause, str] | None:
        """Say what has become of all vectors alike, as the end of a sentence."""
        alike, norm = self.alike(got).all(), self.output.normalization.norm
        kept, room = self._kept(got), 10 * self._room(got)
        if alike and kept.shape == self._vectors.shape and norm.name != "none":
            raw = _close(row_norms(kept, norm), self.norms, room)
            if raw and not _close(self.norms, 1.0, room):
                return "not_normalized", "is not normalized: its vectors have the raw lengths"
        if self._quantized(got).all():
            return "other_dtype", f"holds integers ({got.dtype}) in other steps"
        return self._explain_alike(got, kept, room) if alike else None

    def _explain_alike(self, got: Anything, kept: Float64s, room: float) -> tuple[Cause, str]:
        wanted = (self.stored if self._is_packed(got) else self._vectors).shape[1]
        width, done = got.shape[1], self.output.normalization
        if width != wanted:
            has = "has all" if width > wanted else "has only the first"
            return "truncated", f"{has} {width} components, where {wanted} are stored"
        if (self._excess(kept) <= room).all():
            half = "half precision" if self._room(got) > self.tolerance else None
            return "other_dtype", f"has {half or f'{got.dtype}, not quantized'}"
        for other in _NORMS:
            if other != done.norm and _close(row_norms(kept, other), 1.0, room):
                return "other_norm", f"is divided by the norm `{other.label}`"
        if done.norm.name == "none":
            return "other_norm", "has other lengths than the predictions"
        what = "still has the mean direction in it" if done.mean else "is not normalized"
        return "not_normalized", f"{what}: its vectors have other lengths"

    def take(self, rows: Anything) -> Expected:
        """Return these rows, of which each has one vector or several."""
        places = np.arange(len(self.stored)).reshape(-1, self.output.vectors)[rows].reshape(-1)
        return replace(self, stored=self.stored[places], norms=self.norms[places])

    def _may_be_stored(self, got: Anything) -> bool:
        floats = self.output.normalization.dtype is None
        return got.shape == self.stored.shape and (floats or _is_whole(got))

    def _is_packed(self, got: Anything) -> bool:
        few = got.shape[1] <= self.stored.shape[1]
        return self.output.dtype == "binary" and few and _is_whole(got)

    @cached_property
    def _vectors(self) -> Float64s:
        return widen(self.output.normalization.decode(self.stored, self.output.width))

    def _numbers(self, stored: Anything) -> Float64s:
        """Return what was rounded to be stored: floats, steps, or bits."""
        if self.output.dtype != "binary":
            return widen(stored)
        return widen(np.unpackbits(stored.astype(np.uint8), axis=1, count=self._vectors.shape[1]))

    def _kept(self, got: Anything) -> Float64s:
        width = self._vectors.shape[1]
        whole = got.shape[1] >= width
        return self.output.normalization.kept(got[:, :width]) if whole else widen(got)

    def _scaled(self, got: Anything) -> tuple[Float64s, float]:
        """Return what is kept at the lengths of what is stored, and the rounding of that, in steps.

        Lengths of components that were rounded to steps are known to half a step only.
        """
        kept, norm = self._kept(got), self.output.normalization.norm
        with np.errstate(all="ignore"):
            if norm.name != "none" and kept.shape[1] == self._vectors.shape[1]:
                return kept / row_norms(kept, norm), 0.5
            lengths = _lengths(self._vectors[:, : kept.shape[1]]) / _lengths(kept)
            return kept * lengths[:, np.newaxis], 1.0

    def _excess(self, floats: Float64s, steps: float = 0.5) -> Float64s:
        """Return how far vectors are beyond the rounding of what is stored, relative to it."""
        wanted, quantized = self._vectors[:, : floats.shape[1]], self.output.normalization.dtype
        eps = float(np.finfo(self.output.float_dtype).eps)
        with np.errstate(all="ignore"):
            if quantized == "binary":  # only signs are stored
                wrong = np.where((floats > 0) == (wanted > 0), 0.0, np.abs(floats))
                return np.linalg.norm(wrong, axis=1) / _lengths(floats)
            step = self.output.normalization.scale or 1.0
            rounding = steps * step if quantized else eps * np.abs(wanted)
            over = np.maximum(np.abs(floats - wanted) - rounding, 0.0)
            return np.linalg.norm(over, axis=1) / _lengths(wanted)

    def _room(self, got: Anything) -> float:
        """Return how far a vector may be; further for all that fit a half's few bits."""
        if _is_whole(got) or self.output.float_dtype == "float16":
            return self.tolerance
        parts = np.frexp(widen(got))[0]
        rooms = [room for bits, room in _NARROW.items() if _is_whole(np.ldexp(parts, bits))]
        return max(self.tolerance, *rooms[-1:]) if rooms else self.tolerance

    def _quantized(self, got: Anything) -> Bools:
        """Tell which vectors are integers of the right direction, or cut to integers."""
        if got.shape != self._vectors.shape or not _is_whole(got):
            return np.zeros(len(self.stored), bool)
        codes, wanted = widen(got), self._vectors
        with np.errstate(all="ignore"):
            steps = (codes * wanted).sum(axis=1) / np.square(codes).sum(axis=1)
            errors = np.abs(codes * steps[:, None] - wanted).max(axis=1)
            alike = errors <= steps
        cut = np.all(codes == np.trunc(wanted), axis=1)
        return alike | cut if got.dtype.kind in "iu" else alike


def likeness(expected: Expected, got: Anything) -> Bools:
    """Tell which canary is like which row of an encoder: ``[canaries, rows]``."""
    rows = len(expected.stored) // expected.output.vectors
    places = [np.full(rows, row) for row in range(rows)]
    return np.array([by_row(expected.take(place), got, Expected.alike) for place in places])


def by_row(expected: Expected, got: Anything, test: Callable[[Expected, Anything], Bools]) -> Bools:
    """Tell which rows pass a test with all of their vectors."""
    return np.asarray(test(expected, got).reshape(-1, expected.output.vectors).all(axis=1))


def _is_whole(array: Anything) -> bool:
    return bool((array == np.trunc(array)).all())


def _lengths(vectors: Float64s) -> Float64s:
    lengths = np.linalg.norm(vectors, axis=1)
    return np.where(lengths == 0, 1.0, lengths)


def _close(lengths: Float64s, wanted: Float64s | float, room: float) -> bool:
    return bool((np.abs(lengths.reshape(-1) - wanted) <= room * np.asarray(wanted)).all())
