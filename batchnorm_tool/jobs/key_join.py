"""Rows of two sets brought together by their keys, whatever the keys' types."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchnorm_tool.errors import InputError
from batchnorm_tool.layout import ROW_COLUMN

if TYPE_CHECKING:
    from batchnorm_tool.predictions import Predictions

Int64s = np.ndarray


@dataclass(frozen=True)
class Join:
    """Which row of one set is which of another.

    Attributes:
        a_keys: The keys of all rows of the first set, a column for each part of the key.
        b_keys: Those of the second one.
        partners: ``int64[n]``, for each row of the first set the one of the second that has its
            key; -1 for none.
    """

    a_keys: pa.Table
    b_keys: pa.Table
    partners: Int64s

    @property
    def common(self) -> Int64s:
        """Rows of the first set that have a partner, ascending."""
        return np.flatnonzero(self.partners >= 0)

    @property
    def removed(self) -> Int64s:
        """Rows of the first set without a partner, ascending."""
        return np.flatnonzero(self.partners < 0)

    @property
    def added(self) -> Int64s:
        """Rows of the second set without a partner, ascending."""
        is_added = np.ones(self.b_keys.num_rows, bool)
        is_added[self.partners[self.common]] = False
        return np.flatnonzero(is_added)


def join_keys(a: Predictions, b: Predictions) -> Join:
    """Find the rows of two sets that have the same key.

    Where one of them has no key, its rows go by their number. Keys of different types are equal if
    their texts are: 17 and "17".

    Args:
        a: The first set; its key has as many parts as that of ``b``.
        b: The second set.

    Returns:
        Which row is which. Needs the keys of both in memory.

    Raises:
        InputError: A key is null or occurs twice in one set, or the two have none in common.
    """
    join = _joined(a, b) if a.key or b.key else _joined_by_number(a, b)
    if not len(join.common):
        raise InputError(_nothing_in_common(a, b, join))
    return join


def _joined(a: Predictions, b: Predictions) -> Join:
    a_keys, b_keys = _keys(a), _keys(b)
    for side, keys in ((a, a_keys), (b, b_keys)):
        _refuse_nulls(side, keys)
    a_codes, b_codes = _codes(a_keys, b_keys)
    for side, keys, codes in ((a, a_keys, a_codes), (b, b_keys, b_codes)):
        _refuse_duplicates(side, keys, codes)
    places = np.full(max(a_codes.max(initial=-1), b_codes.max(initial=-1)) + 1, -1)
    places[b_codes] = np.arange(len(b_codes))
    return Join(a_keys, b_keys, places[a_codes])


def _joined_by_number(a: Predictions, b: Predictions) -> Join:
    rows = np.arange(a.rows)
    return Join(_keys(a), _keys(b), np.where(rows < b.rows, rows, -1))


def _keys(predictions: Predictions) -> pa.Table:
    if not predictions.key:
        return pa.table({ROW_COLUMN: np.arange(predictions.rows)})
    return predictions.read_columns(predictions.key)


def _codes(a: pa.Table, b: pa.Table) -> tuple[Int64s, Int64s]:
    """A number for each row, ``int64[n]`` and ``int64[m]``, equal where the keys are."""
    codes = None
    for one, other in zip(a.columns, b.columns, strict=True):
        found = _column_codes(_plain(one), _plain(other))
        codes = found if codes is None else _paired(codes, found)
    assert codes is not None  # noqa: S101  (a key has at least one column)
    return codes[: a.num_rows], codes[a.num_rows :]


def _column_codes(one: pa.ChunkedArray, other: pa.ChunkedArray) -> Int64s:
    if one.type != other.type:
        one, other = _texts(one), _texts(other)
    both = pa.chunked_array([*one.chunks, *other.chunks], one.type)
    try:
        encoded = both.dictionary_encode()
    except pa.ArrowNotImplementedError:  # such as half floats
        encoded = _texts(both).dictionary_encode()
    codes = [np.asarray(chunk.indices, np.int64) for chunk in encoded.chunks]
    return np.concatenate([np.zeros(0, np.int64), *codes])


def _paired(codes: Int64s, others: Int64s) -> Int64s:
    """One number for each pair; renumbered, so that the next pairing cannot overflow."""
    pairs = codes * (int(others.max(initial=0)) + 1) + others
    return np.asarray(np.unique(pairs, return_inverse=True)[1], np.int64)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column without dictionaries and extension types."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return column.cast(kind.value_type)
    return column.cast(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else column


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.chunked_array([[str(value) for value in column.to_pylist()]], pa.large_string())


def _refuse_nulls(side: Predictions, keys: pa.Table) -> None:
    for name in keys.column_names:
        if keys[name].null_count:
            row = int(keys[name].is_null().index(value=True).as_py())
            msg = (
                f"{side.locate(row)}: the key `{name}` is null. Expected a key in every row. "
                f"Received: {keys[name].null_count:,} rows without. Fill them in, or name another "
                "column with `key`."
            )
            raise InputError(msg)


def _refuse_duplicates(side: Predictions, keys: pa.Table, codes: Int64s) -> None:
    order = np.argsort(codes, kind="stable")
    again = order[1:][codes[order[1:]] == codes[order[:-1]]]
    if not len(again):
        return
    row = int(again.min())
    first = int(np.flatnonzero(codes == codes[row])[0])
    msg = (
        f"{side.locate(row)}: the key {key_in_words(keys, row)} is there already, in "
        f"{side.locate(first)}. Expected each key once. Received: {len(again):,} rows whose key "
        "another row before them has. Remove them, or name more columns with `key`."
    )
    raise InputError(msg)


def _nothing_in_common(a: Predictions, b: Predictions, join: Join) -> str:
    examples = [
        f"{_example(keys)} in {side.path}" for side, keys in ((a, join.a_keys), (b, join.b_keys))
    ]
    return (
        "The two sets have no key in common. Expected rows of both with the same key. "
        f"Received: {' and '.join(examples)}. Name the columns that identify a row with `key`."
    )


def _example(keys: pa.Table) -> str:
    if not keys.num_rows:
        return "no rows at all"
    kinds = ", ".join(str(kind) for kind in keys.schema.types)
    return f"{key_in_words(keys, 0)} ({kinds})"


def key_in_words(keys: pa.Table, row: int) -> str:
    """The key of one row as messages show it.

    Example:
        >>> key_in_words(pa.table({"shop": ["a"], "item": [17]}), 0)
        "`shop` 'a', `item` 17"
    """
    return ", ".join(f"`{name}` {keys[name][row].as_py()!r}" for name in keys.column_names)


def plain_keys(keys: pa.Table, rows: Int64s | Sequence[int]) -> list[Any]:
    """The keys of some rows as JSON has them, a list for each where a key has several parts.

    Example:
        >>> plain_keys(pa.table({"shop": ["a", "b"], "item": [17, 18]}), [1])
        [['b', 18]]
    """
    chosen = keys.take(pa.array(rows, pa.int64()))
    columns = [[_plain_value(value) for value in column.to_pylist()] for column in chosen.columns]
    return columns[0] if len(columns) == 1 else [list(key) for key in zip(*columns, strict=True)]


def _plain_value(value: Any) -> Any:
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
