"""What feeds one model input, and whether those columns fit it in kind and width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import Field
from batchnorm_tool.errors import InputError
from batchnorm_tool.features.columns import (
    Shape,
    StoredColumn,
    conversion,
    in_words,
    lengths_to_fill,
)
from batchnorm_tool.features.images import is_image_shape
from batchnorm_tool.features.values import STRING, Conversion, array_dtype

if TYPE_CHECKING:
    from batchnorm_tool.job import Input


@dataclass(frozen=True)
class Feed:
    """The columns for one model input.

    Attributes:
        field: The model input.
        columns: One list or scalar column, or several scalar ones to stack, in order.
        fill: What stands for a null, by column.
        decode: Format of the encoded images, by column.
        judge_nonfinite: Whether a NaN or an infinity makes a bad row.
    """

    field: Field
    columns: tuple[str, ...]
    fill: Mapping[str, float | str]
    decode: Mapping[str, str]
    judge_nonfinite: bool = True

    def conversion(self, column: str) -> Conversion:
        """How the values of one of the columns become the input's."""
        return Conversion(column, self.field, self.fill.get(column))

    @property
    def image_kind(self) -> str | None:
        """Format of the encoded images that feed the input, if such do."""
        return self.decode.get(self.columns[0]) if len(self.columns) == 1 else None


def stored_column(schema: pa.Schema, columns: Sequence[str]) -> StoredColumn:
    """The columns as one: several scalar ones are as good as a list column."""
    first = StoredColumn.of(schema.field(columns[0]))
    if len(columns) == 1:
        return first
    width = (len(columns),)
    name = f"{columns[0]}` … `{columns[-1]}"
    return StoredColumn(name, f"{len(columns)} scalar columns", width, width, first.leaf)


def check_fit(schema: pa.Schema, feed: Feed) -> Shape:
    """Check that the columns hold what the input takes.

    Args:
        schema: Of a table that has the columns.
        feed: The columns, and the input.

    Returns:
        The length that each list level of the stored column must have, ``None`` where rows decide.

    Raises:
        InputError: They differ in kind or in width; the message shows both.
        ModelError: No column can feed the input.
    """
    array_dtype(feed.field)
    for name in feed.columns:
        _check_kind(StoredColumn.of(schema.field(name)), feed)
    stored = stored_column(schema, feed.columns)
    if feed.image_kind:
        return ()
    lengths = lengths_to_fill(stored, feed.field.shape)
    if lengths is None:
        raise InputError(_width_differs(stored, feed.field))
    return lengths


def feeds(
    schema: pa.Schema,
    columns: Mapping[str, Sequence[str]],
    inputs: Sequence[Field],
    spec: Input,
) -> list[Feed]:
    """What feeds each input, given what `match_features` found."""
    fields = {field.name: field for field in inputs or stored_fields(schema, columns)}
    judge = bool(inputs)
    return [
        Feed(fields[name], tuple(names), spec.fill, spec.decode, judge)
        for name, names in columns.items()
    ]


def stored_fields(schema: pa.Schema, columns: Mapping[str, Sequence[str]]) -> tuple[Field, ...]:
    """Stored predictions as fields: true shape, and their own float type (float64 for integers).

    Args:
        schema: Of a table that has the columns.
        columns: What `match_features` found where there is no model.

    Returns:
        One field for each name; a size is ``None`` where lists have no fixed length.

    Raises:
        InputError: A column does not hold numbers.

    Example:
        >>> schema = pa.schema({"embedding": pa.list_(pa.float16(), 32)})
        >>> stored_fields(schema, {"vector": ("embedding",)})
        (Field(name='vector', shape=(32,), dtype='float16'),)
    """
    fields = []
    for name, names in columns.items():
        stored = [StoredColumn.of(schema.field(column)) for column in names]
        for column in stored:
            if not column.is_numeric or 0 in column.lengths:
                raise InputError(
                    f"The column {in_words(column)} holds no vectors. Expected lists of numbers, "
                    f"or scalar columns of numbers. Received: {column.kind}. Name another column."
                    f"{conversion(column)}"
                )
        shape = stored[0].shape if len(stored) == 1 and stored[0].shape else (len(stored),)
        fields.append(Field(name, shape, _float_name([column.leaf for column in stored])))
    return tuple(fields)


def _float_name(leaves: Sequence[pa.DataType]) -> str:
    if not all(pa.types.is_floating(leaf) for leaf in leaves):
        return "float64"
    return str(np.result_type(*(leaf.to_pandas_dtype() for leaf in leaves)))


def input_in_words(field: Field) -> str:
    """The model input as messages show it: ``x`` (float32, shape (64,))."""
    return f"`{field.name}` ({field.dtype}, shape {_shape_in_words(field.shape)})"


def _check_kind(stored: StoredColumn, feed: Feed) -> None:
    if len(feed.columns) > 1 and stored.lengths:
        raise InputError(
            f"The column {in_words(stored)} is one of several that feed `{feed.field.name}`. "
            "Expected one list column alone, or scalar columns to stack. Received: a list among "
            f"{len(feed.columns)} columns. Name one of the two in `input.features`."
        )
    wanted = _wanted_kind(stored, feed)
    if wanted is not None:
        raise InputError(
            f"The column {in_words(stored)} does not fit {input_in_words(feed.field)}. "
            f"Expected {wanted}. Received: {stored.kind}. {_next_step(stored, feed)}"
            f"{conversion(stored)}"
        )


def _wanted_kind(stored: StoredColumn, feed: Feed) -> str | None:
    """What the column should hold instead, in words; ``None`` where it holds the right thing."""
    if stored.name in feed.decode:
        if feed.image_kind is None or not is_image_shape(feed.field.shape):
            return "an input of shape (height, width, channels) for decoded images"
        return None if stored.is_bytes else "encoded images (binary)"
    if feed.field.dtype == STRING:
        return None if stored.is_text else "strings"
    return None if stored.is_numeric else "numbers"


def _next_step(stored: StoredColumn, feed: Feed) -> str:
    if stored.name in feed.decode:
        return f"Take `{stored.name}` out of `input.decode`, or name another column."
    if stored.is_bytes:
        return f"If it holds images, add `decode: {{{stored.name}: jpeg}}` to `input`."
    return "Name another column in `input.features`, or convert this one with `input.transform`."


def _width_differs(stored: StoredColumn, field: Field) -> str:
    return (
        f"The column {in_words(stored)} does not fit the model input {input_in_words(field)}: its "
        f"width differs from the model's input. Expected {_count_in_words(field.shape)} in each "
        f"row. Received: {_count_in_words(stored.shape)}. Name other columns in `input.features`, "
        "or reshape this one with `input.transform`."
    )


def _count_in_words(shape: Shape) -> str:
    if not shape:
        return "1 value"
    if len(shape) == 1:
        return f"{'any number of' if shape[0] is None else shape[0]} values"
    known = [size for size in shape if size is not None]
    total = f" ({math.prod(known)} values)" if len(known) == len(shape) else ""
    return f"an array of shape {_shape_in_words(shape)}{total}"


def _shape_in_words(shape: Shape) -> str:
    sizes = ["any" if size is None else str(size) for size in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
