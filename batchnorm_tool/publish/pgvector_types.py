"""Which columns a table of vectors has, and which index serves its norm."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchnorm_tool.errors import OutputError
from batchnorm_tool.publish import published_schema
from batchnorm_tool.storage.checked_json import sha256
from batchnorm_tool.store.state import StoreSchema

# The limits of pgvector 0.8: columns, and the two types that an index takes.
LONGEST_VECTOR = 16000
LONGEST_INDEXED = 2000
LONGEST_INDEXED_HALF = 4000
# PostgreSQL's own: every table has these columns, and names are cut after so many bytes.
_SYSTEM_COLUMNS = ("tableoid", "xmin", "cmin", "xmax", "cmax", "ctid")
_LONGEST_NAME = 63
_MOST_COLUMNS = 1600
JSON = "jsonb"
LONGEST_KEY = 2600  # bytes; a page of an index takes 2,704 for a whole row
# Seconds since 1970: a year within what Python has, for whatever time zone; and 2**63 microseconds.
_TIMES = (
    "Expected the years 2 to 9998, or a span within 292,000 years. Received: one outside that "
    "range."
)
_YEAR_2, _YEAR_9998, _SPAN = -62_104_060_800, 253_370_764_800, 2**63 / 10**6 - 1
_SIMPLE = {
    pa.bool_(): "boolean",
    pa.int8(): "smallint",
    pa.uint8(): "smallint",
    pa.int16(): "smallint",
    pa.uint16(): "integer",
    pa.int32(): "integer",
    pa.uint32(): "bigint",
    pa.int64(): "bigint",
    pa.uint64(): "numeric(20,0)",
    pa.float16(): "real",
    pa.float32(): "real",
    pa.float64(): "double precision",
    pa.date32(): "date",
    pa.date64(): "date",
}
_FAMILIES = {
    "text": (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    "bytea": (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary),
    "time without time zone": (pa.types.is_time,),
    "interval": (pa.types.is_duration,),
}


@dataclass(frozen=True)
class RowShape:
    """A store's published columns as those of a table."""

    layout: StoreSchema

    @cached_property
    def schema(self) -> pa.Schema:
        """The same columns in Arrow."""
        return published_schema(self.layout)

    @cached_property
    def columns(self) -> dict[str, str]:
        """The SQL type of every column, by name and in order."""
        types = {field.name: sql_type(field.type) for field in self.schema}
        return types | {self.layout.vector: f"vector({self.layout.width})"}

    def check(self) -> None:
        """Refuse columns that PostgreSQL cannot have, and vectors that are too long."""
        for name in self.columns:
            if name in _SYSTEM_COLUMNS or len(name.encode()) > _LONGEST_NAME:
                raise OutputError(
                    f"a table in PostgreSQL cannot have the column `{name}`. Expected a name of "
                    f"at most {_LONGEST_NAME} bytes, and not one of {', '.join(_SYSTEM_COLUMNS)}. "
                    "Rename it in the input (the store's own: `store.columns`, `output.columns`), "
                    "or remove it from `input.passthrough`."
                )
        width = self.layout.width
        if width > LONGEST_VECTOR or len(self.columns) > _MOST_COLUMNS:
            raise OutputError(
                f"pgvector takes vectors of at most {LONGEST_VECTOR} components and a table at "
                f"most {_MOST_COLUMNS} columns. Received: {width} and {len(self.columns)}. Use "
                "another target."
            )

    @property
    def signature(self) -> str:
        """Equal where rows fit into the same table, under the same index."""
        keys, columns = list(self.layout.keys), list(map(list, self.columns.items()))
        return sha256({"keys": keys, "columns": columns, "norm": self.layout.norm_label})

    @property
    def operators(self) -> str:
        """The distance that serves the norm: cosine (``<=>``), or else inner product (``<#>``)."""
        return "cosine" if self.layout.norm_label == "l2" else "ip"

    @property
    def cast(self) -> str:
        """What vectors are cast to for an index, where they are too long for it as they are."""
        width = self.layout.width
        return f"halfvec({width})" if width > LONGEST_INDEXED else ""

    def indexed(self) -> str | None:
        """Return what an index is over, with ``{0}`` for the column; ``None`` where none can be."""
        if self.layout.width > LONGEST_INDEXED_HALF:
            return None
        if self.cast:
            return f"({{0}}::{self.cast}) halfvec_{self.operators}_ops"
        return f"{{0}} vector_{self.operators}_ops"

    def warnings(self, index: str) -> Iterator[str]:
        """Yield what a reader should know of precision and of the index."""
        if self.layout.dtype == "float64":
            yield "pgvector stores float32: the float64 vectors were rounded."
        if index != "none" and self.indexed() is None:
            yield f"{self.layout.width} components are too many for an index; none was built."
        elif index != "none" and self.cast:
            cast = f"{self.layout.vector}::{self.cast}"
            yield f"The index is over `{cast}`: queries must use the same cast to benefit from it."


def sql_type(kind: pa.DataType) -> str:
    """Return the type of a column that holds every value of an Arrow type."""
    # Nanoseconds are cut to microseconds, which is what PostgreSQL has; lists, structs and whatever
    # else has no type of its own becomes `jsonb`.
    if pa.types.is_dictionary(kind):
        return sql_type(kind.value_type)
    if pa.types.is_decimal(kind):
        return f"numeric({kind.precision},{kind.scale})"
    if pa.types.is_timestamp(kind):
        return "timestamp with time zone" if kind.tz else "timestamp without time zone"
    matching = (name for name, tests in _FAMILIES.items() if any(test(kind) for test in tests))
    return _SIMPLE.get(kind) or next(matching, JSON)


def unfit_rows(column: pa.Array, *, is_key: bool) -> Iterator[tuple[np.ndarray, str]]:
    """Find the values of a column that PostgreSQL, or psycopg on the way there, cannot take.

    Yields ``bool[n]``, and why these rows cannot be taken.
    """
    kind = column.type
    if "string" in str(kind):
        yield _rows_with_nul(column), "Expected text without NUL. Received: text with one."
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_duration(kind):
        yield _beyond(column), _TIMES
    if is_key and getattr(kind, "unit", "") == "ns":
        parts = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False) % 1000 != 0
        yield parts, "Expected whole microseconds in a key. Received: a fraction."
    if is_key and sql_type(kind) in {"text", "bytea"}:
        sizes = pc.binary_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        why = f"Expected keys of at most {LONGEST_KEY:,} bytes. Received: more."
        yield sizes > LONGEST_KEY, why


def _rows_with_nul(column: pa.Array) -> np.ndarray:
    if sql_type(column.type) == JSON:
        return np.array([_holds_nul(value) for value in column.to_pylist()], bool)
    found = pc.match_substring(column, "\0").fill_null(False)  # noqa: FBT003
    return np.asarray(found.to_numpy(zero_copy_only=False))


def _holds_nul(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_nul, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_nul, value))
    return isinstance(value, str) and "\0" in value


def _beyond(column: pa.Array) -> np.ndarray:
    """Find dates and times that Python lacks, and spans beyond 64 bits of microseconds."""
    kind = column.type
    width = pa.int32() if kind == pa.date32() else pa.int64()
    values = column.cast(width).cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    a_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}.get(getattr(kind, "unit", ""), 1)
    scale = 1 / 86_400 if kind == pa.date32() else 1000 if kind == pa.date64() else a_second
    low, high = (-_SPAN, _SPAN) if pa.types.is_duration(kind) else (_YEAR_2, _YEAR_9998)
    return np.asarray((values < low * scale) | (values > high * scale))


def rows_of(table: pa.Table, vector: str) -> Iterator[tuple[Any, ...]]:
    """Return the rows of a table as psycopg takes them for a binary ``COPY``."""
    columns = [
        _vectors(table[name]) if name == vector else _values(table[name].combine_chunks())
        for name in table.column_names
    ]
    return zip(*columns, strict=True)


def _vectors(column: pa.ChunkedArray) -> Sequence[Any]:
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1).astype("float32", copy=False)


def _values(column: pa.Array) -> list[Any]:
    from psycopg.types.json import Jsonb

    kind = column.type
    if pa.types.is_dictionary(kind):
        return _values(column.dictionary_decode())
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind) or pa.types.is_time64(kind):
        column = column.cast(_in_microseconds(kind), safe=False)
    if sql_type(kind) == JSON:
        values = column.to_pylist()
        return [None if value is None else Jsonb(value, dumps=as_json) for value in values]
    return column.to_pylist()


def _in_microseconds(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return pa.time64("us") if pa.types.is_time64(kind) else pa.duration("us")


def as_json(value: Any) -> str:
    """Return a nested value as JSON; what JSON has no word for becomes null or text."""
    return json.dumps(_without_nan(value), ensure_ascii=False, default=str)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return value
