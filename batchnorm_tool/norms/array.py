"""Normalization of one array in memory, whatever its rank, dtype and axes."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from batchnorm_tool.errors import BadRows, InputError, JobError
from batchnorm_tool.norms.norm import (
    MAX,
    Anything,
    Float64s,
    Norm,
    numeric_array,
    row_norms,
    unit_vectors,
    wide_blocks,
)

Policy: TypeAlias = Literal["keep", "nan", "raise"]

_POLICIES = ("keep", "nan", "raise")


@overload
def normalize(
    x: npt.ArrayLike,
    norm: str | Norm = "l2",
    *,
    axis: int | tuple[int, ...] = -1,
    p: float | None = None,
    zero: Policy = "keep",
    nonfinite: Policy = "keep",
    return_norm: Literal[False] = False,
) -> Anything: ...
@overload
def normalize(
    x: npt.ArrayLike,
    norm: str | Norm = "l2",
    *,
    axis: int | tuple[int, ...] = -1,
    p: float | None = None,
    zero: Policy = "keep",
    nonfinite: Policy = "keep",
    return_norm: Literal[True],
) -> tuple[Anything, Float64s]: ...
def normalize(  # noqa: PLR0913  (the field's words for one array function, as in scikit-learn)
    x: npt.ArrayLike,
    norm: str | Norm = "l2",
    *,
    axis: int | tuple[int, ...] = -1,
    p: float | None = None,
    zero: Policy = "keep",
    nonfinite: Policy = "keep",
    return_norm: bool = False,
) -> Anything | tuple[Anything, Float64s]:
    """Scale the vectors of an array to length 1.

    Args:
        x: Real numbers of any rank and memory order, empty arrays too: what NumPy reads, or lists
            of equal length in a pandas Series, an Arrow array or a list.
        norm: ``"l2"`` (or cosine, euclidean), ``"l1"``, ``"max"`` (or linf), ``"lp"`` with ``p``,
            ``"lp:3"``, or ``"none"``.
        axis: The axis, or axes, along which a vector lies.
        p: The order of an ``"lp"`` norm, 1 or more.
        zero: What becomes of a vector of zeros: ``"keep"`` it, ``"nan"``, or ``"raise"``.
        nonfinite: What becomes of a vector with NaN or inf: ``"keep"`` what IEEE division gives,
            make all of it ``"nan"``, or ``"raise"``.
        return_norm: Also return the norms.

    Returns:
        An array of the shape and dtype of ``x`` (integers and bool become float64), in C order.
        With ``return_norm``, a pair of it and the norms: float64, of the shape of ``x`` without
        ``axis``. The norm of a finite vector is inf where it is beyond float64's maximum; the
        vector is right all the same, but cannot be scaled back.

    Raises:
        BadRows: A vector that ``zero`` or ``nonfinite`` says to raise for.
        InputError: ``x`` does not hold real numbers of at most 64 bits, or a row is null or of
            another length than the others.
        JobError: An unknown norm or policy, or an axis that ``x`` does not have.

    Example:
        >>> normalize([[3.0, 4.0], [0.0, 0.0]])
        array([[0.6, 0.8],
               [0. , 0. ]])
        >>> vectors, norms = normalize([[1, 3], [2, 2]], "l1", axis=0, return_norm=True)
        >>> norms
        array([3., 5.])
    """
    array = array_of(x)
    chosen = _chosen_norm(norm, p)
    axes = _checked_axes(axis, array.ndim)
    ends = tuple(range(-len(axes), 0))
    moved = np.moveaxis(array, axes, ends)
    lead = moved.shape[: array.ndim - len(axes)]
    rows = moved.reshape(math.prod(lead), math.prod(moved.shape[len(lead) :]))
    policies = _RowPolicies(
        _checked_policy("zero", zero), _checked_policy("nonfinite", nonfinite), lead
    )
    vectors, norms = _normalize_rows(rows, chosen, policies)
    result = np.asarray(np.moveaxis(vectors.reshape(moved.shape), ends, axes), order="C")
    return (result, norms.reshape(lead)) if return_norm else result


def array_of(x: Any) -> Anything:
    """Read real numbers as an array: as NumPy does, or rows that are lists, stacked."""
    is_arrow = type(x).__module__.partition(".")[0] == "pyarrow" and hasattr(x, "null_count")
    try:
        array = None if is_arrow else np.asarray(x)
    except ValueError:  # lists of several lengths
        array = None
    if array is not None and (array.dtype != object or not array.ndim):
        return numeric_array(array)
    import pyarrow as pa

    try:
        column = x if is_arrow else pa.array(x if array is None else [*array], from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return numeric_array(x)
    return _stacked(column)


def _stacked(column: Any) -> Anything:
    """Return an Arrow column as an array, every list level an axis."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    shape = [len(values)]
    while True:
        values = values.storage if isinstance(values, pa.ExtensionArray) else values
        if pa.types.is_dictionary(values.type):
            values = values.dictionary.take(values.indices)
        _refuse_rows(column, values.is_null(), shape, "is null, or contains a null")
        if not hasattr(values, "flatten") or not hasattr(values.type, "value_field"):
            break
        lengths = pc.list_value_length(values)
        usual = _most_common(lengths.to_numpy())
        words = f"differs in length from most, which have {usual}"
        _refuse_rows(column, pc.not_equal(lengths, usual), shape, words)
        values = values.flatten()
        shape.append(usual)
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.string()).cast(pa.float64())
    return numeric_array(values.to_numpy(zero_copy_only=False)).reshape(shape)


def _most_common(lengths: Anything) -> int:
    """Return the most common length, the first of several; 0 only where there is no other."""
    found, places, counts = np.unique(lengths, return_index=True, return_counts=True)
    order = np.lexsort((-places, counts, found > 0))
    return int(found[order[-1]]) if len(order) else 0


def _refuse_rows(column: Any, bad: Any, shape: list[int], words: str) -> None:
    at = bad.index(True).as_py()
    if at >= 0:
        row = at // math.prod(shape[1:])
        raise InputError(
            f"Row {row} {words}. Expected: vectors of equal length, without nulls. "
            f"Received: {str(column[row].as_py())[:80]}. Fix it, or remove it."
        )


def _chosen_norm(norm: str | Norm, p: float | None) -> Norm:
    if isinstance(norm, Norm):
        return norm if p is None else Norm.parse(norm.label, p)
    return Norm.parse(norm, p)


def _checked_axes(axis: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Return the axes counted from 0, in order, so that theirs changes no bit of a sum."""
    try:
        given = [operator.index(a) for a in (axis if isinstance(axis, tuple) else (axis,))]
    except TypeError as error:
        raise JobError(
            f"`axis` must be an integer or a tuple of integers. Received: {axis!r}."
        ) from error
    axes = {a % ndim for a in given if -ndim <= a < ndim}
    if len(axes) != len(given):
        raise JobError(
            f"`axis` must name different axes between {-ndim} and {ndim - 1} of an array with "
            f"{ndim} axes. Received: {axis!r}."
        )
    return tuple(sorted(axes))


def _checked_policy(name: str, policy: object) -> str:
    if not isinstance(policy, str) or policy not in _POLICIES:
        raise JobError(f"`{name}` must be one of {', '.join(_POLICIES)}. Received: {policy!r}.")
    return policy


def _normalize_rows(
    rows: Anything, norm: Norm, policies: _RowPolicies
) -> tuple[Anything, Float64s]:
    dtype = rows.dtype if rows.dtype.kind not in "iub" else np.dtype(np.float64)
    vectors = np.empty(rows.shape, dtype)
    norms = np.empty((len(rows), 1))
    for block, x64 in wide_blocks(rows):
        norms[block] = row_norms(x64, norm)
        vectors[block] = unit_vectors(x64, norms[block], norm, dtype)
        policies.apply_policies(x64, vectors[block], block.start)
    return vectors, norms


@dataclass(frozen=True)
class _RowPolicies:
    """What becomes of the bad vectors of an array whose shape, without their axis, is ``lead``."""

    zero: str
    nonfinite: str
    lead: tuple[int, ...]

    def apply_policies(self, x64: Float64s, vectors: Anything, start: int) -> None:
        """Judge the rows from number ``start`` on, and change ``vectors`` where that is asked."""
        if self.zero == self.nonfinite == "keep":
            return
        peaks = row_norms(x64, MAX)[:, 0]
        for name, policy, bad, words in (
            ("zero", self.zero, peaks == 0, "is zero"),
            ("nonfinite", self.nonfinite, ~np.isfinite(peaks), "contains NaN or inf"),
        ):
            if policy == "raise" and bad.any():
                self._fail(start + int(bad.argmax()), name, words)
            if policy == "nan":
                vectors[bad] = np.nan

    def _fail(self, row: int, name: str, words: str) -> None:
        index = tuple(int(i) for i in np.unravel_index(row, self.lead)) if self.lead else ()
        raise BadRows(
            f"The vector at index {index} {words}. Expected: no such vector, "
            f"because {name}='raise'. Received: an array of vectors of shape {self.lead}. Fix it, "
            f"or choose {name}='keep' or 'nan'."
        )
