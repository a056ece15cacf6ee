"""What a stored column holds in each row, and how that fills a model input of a certain shape.

Two shapes meet here. A column's *lengths* are those of its list levels, outermost first: ``()`` for
scalars, ``(64,)`` for lists of 64, ``(8, 8)`` for lists of lists, ``None`` where lengths may vary.
Its *shape* is what a row means: the same, unless the column is flat and its metadata (of NPY input,
or of a tensor type) tells the true shape.
"""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
from pyarrow import types

from batchnorm_tool.chunk import Field
from batchnorm_tool.errors import InputError
from batchnorm_tool.features.values import STRING, Conversion, Shape, array_dtype, is_image_shape
from batchnorm_tool.formats.arrow_columns import is_list
from batchnorm_tool.job import Input

# The fields of what Spark's VectorUDT stores, sparse or dense.
_SPARK_VECTOR = ["type", "size", "indices", "values"]
_MISFIT = -1
_NUMBERS = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
_BYTES = (types.is_binary, types.is_large_binary, types.is_binary_view)
_TEXTS = (*_BYTES, types.is_string, types.is_large_string, types.is_string_view, types.is_null)


@dataclass(frozen=True)
class StoredColumn:
    """A column of an input table, its list levels taken apart.

    Its ``kind`` is its Arrow type, in words for messages; ``leaf`` is that of the innermost values.
    """

    name: str
    kind: str
    lengths: Shape
    shape: Shape
    leaf: pa.DataType

    @classmethod
    def of(cls, field: pa.Field) -> Self:
        """Take apart the type of one column of a schema."""
        lengths, shape, leaf = _taken_apart(_storage_type(field.type), _declared_shape(field))
        return cls(field.name, str(field.type), lengths, shape, leaf)

    @property
    def is_numeric(self) -> bool:
        """Whether the innermost values are numbers, booleans, or nothing but nulls."""
        return any(is_kind(self.leaf) for is_kind in _NUMBERS)

    @property
    def is_text(self) -> bool:
        """Whether the innermost values are strings or bytes, which TensorFlow takes for strings."""
        return any(is_kind(self.leaf) for is_kind in _TEXTS)

    @property
    def is_bytes(self) -> bool:
        """Whether each row is one string of bytes, such as an encoded image."""
        return not self.lengths and any(is_kind(self.leaf) for is_kind in _BYTES)


@functools.lru_cache(maxsize=1024)  # every chunk of an input asks
def _taken_apart(
    kind: pa.DataType, declared: tuple[int, ...] | None
) -> tuple[Shape, Shape, pa.DataType]:
    lengths, leaf = _peel(kind)
    fits = declared is not None and lengths == (math.prod(declared),)
    return lengths, declared if declared is not None and fits else lengths, leaf


def _storage_type(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _lengths_to_fill(stored: StoredColumn, wanted: Shape) -> Shape | None:
    """Return the length that each list level must have to fill ``wanted``; ``None`` for a misfit.

    In both shapes, ``None`` stands where any length will do, or the rows decide.
    """
    # A flat list fills any shape of as many elements, in C order. Nested lists, and flat ones that
    # declare a shape, fill only that shape, axes of length 1 aside: 8 by 8 pixels are no 64
    # features, and an image with its channels first is no image with its channels last.
    if 0 in stored.lengths:
        return None
    if not stored.shape:
        return () if all(size in (1, None) for size in wanted) else None
    if len(stored.shape) == 1:
        length = _flat_length(stored.shape[0], wanted)
        return None if length == _MISFIT else (length,)
    aligned = _align(stored.shape, wanted)
    is_nested = len(stored.lengths) == len(stored.shape)
    return aligned if is_nested or aligned is None else stored.lengths


def filled_shape(stored: StoredColumn, wanted: Shape, lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Return ``wanted`` without ``None``, for rows whose lists have these ``lengths``."""
    unknown = wanted.count(None)
    found = lengths if len(lengths) == len(stored.shape) else stored.shape
    sizes = tuple(size or 0 for size in found)
    if unknown <= 1:
        rest = math.prod(size for size in wanted if size is not None)
        missing = math.prod(sizes) // rest if rest else 0
        return tuple(missing if size is None else size for size in wanted)
    if len(sizes) == len(wanted):
        return sizes
    inner = iter([size for size, kept in zip(sizes, stored.shape, strict=True) if kept != 1])
    return tuple(1 if size == 1 else next(inner) for size in wanted)


def describe(stored: StoredColumn) -> str:
    """Return the column as in messages: ``pixels (list<float>)``, its shape where declared."""
    declared = "" if stored.shape == stored.lengths else f" of shape {stored.shape}"
    return f"`{stored.name}` ({stored.kind}{declared})"


def conversion(stored: StoredColumn) -> str:
    """Return the line that makes lists of vectors kept in another way; "" for no such column."""
    name, leaf = stored.name, stored.leaf
    if types.is_struct(leaf) and [field.name for field in leaf] == _SPARK_VECTOR:
        line = f'frame.withColumn("{name}", pyspark.ml.functions.vector_to_array("{name}"))'
        return f" The column `{name}` holds vectors of Spark ML: store them with `{line}`."
    if stored.is_bytes or types.is_fixed_size_binary(leaf):
        values = f'numpy.frombuffer(b"".join(table["{name}"].to_pylist()), "<f4")'
        line = f"pyarrow.FixedSizeListArray.from_arrays({values}, WIDTH)"
        return f" If the bytes of `{name}` are float32 numbers, store them with `{line}`."
    return ""


def _flat_length(length: int | None, wanted: Shape) -> int | None:
    unknown = wanted.count(None)
    known = math.prod(size for size in wanted if size is not None)
    if unknown == 0:
        return known if length in (None, known) else _MISFIT
    if unknown > 1:
        return _MISFIT
    if length is None:
        return None if known == 1 else _MISFIT
    return length if known and length % known == 0 else _MISFIT


def _align(stored: Shape, wanted: Shape) -> Shape | None:
    """Return ``stored`` with the sizes that ``wanted`` knows, or ``None`` where they contradict."""
    # Grey images often have a channel axis of their own.
    for exact in (wanted, (*wanted, 1)) if len(wanted) == 2 else (wanted,):
        merged = _merge(stored, exact)
        if merged is not None:
            return merged
    inner = _merge([size for size in stored if size != 1], [size for size in wanted if size != 1])
    if inner is None:
        return None
    sizes = iter(inner)
    return tuple(1 if size == 1 else next(sizes) for size in stored)


def _merge(stored: Shape | list[int | None], wanted: Shape | list[int | None]) -> Shape | None:
    if len(stored) != len(wanted):
        return None
    pairs = list(zip(stored, wanted, strict=True))
    if any(None not in pair and pair[0] != pair[1] for pair in pairs):
        return None
    return tuple(have if want is None else want for have, want in pairs)


def _peel(kind: pa.DataType) -> tuple[Shape, pa.DataType]:
    lengths: list[int | None] = []
    while is_list(kind):
        lengths.append(kind.list_size if types.is_fixed_size_list(kind) else None)
        kind = _storage_type(kind.value_type)
    return tuple(lengths), kind.value_type if types.is_dictionary(kind) else kind


def _declared_shape(field: pa.Field) -> tuple[int, ...] | None:
    if isinstance(field.type, pa.FixedShapeTensorType):
        permutation = field.type.permutation
        if permutation is not None and list(permutation) != sorted(permutation):
            raise InputError(
                f"The column `{field.name}` is a tensor with permuted dimensions. Expected "
                f"dimensions in C order. Received: permutation {list(permutation)}. Store it "
                "without a permutation, or reorder it with `input.transform`."
            )
        return tuple(field.type.shape)
    return _shape_in_metadata((field.metadata or {}).get(b"shape"))


def _shape_in_metadata(text: bytes | None) -> tuple[int, ...] | None:
    """Return the shape that NPY input and our vectors declare; ignore other metadata."""
    try:
        shape = json.loads(text or b"null")
    except (ValueError, RecursionError):
        return None
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        return None
    return tuple(shape)


@dataclass(frozen=True)
class InputBinding:
    """One list or scalar column, or several scalar ones to stack in order, for one model input.

    By column, ``fill`` holds what stands for a null, and ``decode`` the format of encoded images.
    """

    field: Field
    columns: tuple[str, ...]
    fill: Mapping[str, float | str]
    decode: Mapping[str, str]

    def conversion(self, column: str) -> Conversion:
        """Return how the values of one of the columns become the input's."""
        return Conversion(column, self.field, self.fill.get(column))

    @property
    def image_kind(self) -> str | None:
        """Format of the encoded images that feed the input, if such do."""
        return self.decode.get(self.columns[0]) if len(self.columns) == 1 else None


def stored_column(schema: pa.Schema, columns: Sequence[str]) -> StoredColumn:
    """Return the columns as one: several scalar ones are as good as a list column."""
    first = StoredColumn.of(schema.field(columns[0]))
    if len(columns) == 1:
        return first
    width = (len(columns),)
    name = f"{columns[0]}` … `{columns[-1]}"
    return StoredColumn(name, f"{len(columns)} scalar columns", width, width, first.leaf)


def check_fit(schema: pa.Schema, binding: InputBinding) -> Shape:
    """Check that the columns hold what the input takes; return `_lengths_to_fill` of them."""
    array_dtype(binding.field)
    for name in binding.columns:
        _check_kind(StoredColumn.of(schema.field(name)), binding)
    stored = stored_column(schema, binding.columns)
    if binding.image_kind:
        return ()
    lengths = _lengths_to_fill(stored, binding.field.shape)
    if lengths is None:
        raise InputError(
            f"The column {describe(stored)} does not fit the model "
            f"input {describe_input(binding.field)}: its width differs from the model's input. "
            f"Expected {_describe_count(binding.field.shape)} in each row. "
            f"Received: {_describe_count(stored.shape)}. Choose other columns in "
            "`input.features`, or reshape this one with `input.transform`."
        )
    return lengths


def input_bindings(
    schema: pa.Schema, columns: Mapping[str, Sequence[str]], inputs: Sequence[Field], spec: Input
) -> list[InputBinding]:
    """Return what feeds each input, given what `match_features` found."""
    fields = {field.name: field for field in inputs or stored_fields(schema, columns)}
    return [
        InputBinding(fields[name], tuple(names), spec.fill, spec.decode)
        for name, names in columns.items()
    ]


def stored_fields(schema: pa.Schema, columns: Mapping[str, Sequence[str]]) -> tuple[Field, ...]:
    """Return stored predictions as fields: true shape, own float type (float64 for integers).

    A size is ``None`` where lists have no fixed length.
    """
    fields = []
    for name, names in columns.items():
        stored = [StoredColumn.of(schema.field(column)) for column in names]
        for column in stored:
            if not column.is_numeric or 0 in column.lengths:
                raise InputError(
                    f"The column {describe(column)} does not hold vectors. Expected lists of "
                    f"numbers, or scalar columns of numbers. Received: {column.kind}. Choose "
                    f"another column.{conversion(column)}"
                )
        shape = stored[0].shape if len(stored) == 1 and stored[0].shape else (len(stored),)
        fields.append(Field(name, shape, _float_name([column.leaf for column in stored])))
    return tuple(fields)


def _float_name(leaves: Sequence[pa.DataType]) -> str:
    if not all(types.is_floating(leaf) for leaf in leaves):
        return "float64"
    return str(np.result_type(*(leaf.to_pandas_dtype() for leaf in leaves)))


def describe_input(field: Field) -> str:
    """Return the model input as messages show it: ``x`` (float32, shape (64,))."""
    return f"`{field.name}` ({field.dtype}, shape {_describe_shape(field.shape)})"


def _check_kind(stored: StoredColumn, binding: InputBinding) -> None:
    if len(binding.columns) > 1 and stored.lengths:
        raise InputError(
            f"The column {describe(stored)} is one of several that feed `{binding.field.name}`. "
            "Expected a single list column, or scalar columns to stack. Received: a list "
            f"among {len(binding.columns)} columns. Use one or the other in `input.features`."
        )
    wanted = _wanted_kind(stored, binding)
    if wanted is not None:
        raise InputError(
            f"The column {describe(stored)} does not fit {describe_input(binding.field)}. "
            f"Expected {wanted}. Received: {stored.kind}. {_next_step(stored, binding)}"
            f"{conversion(stored)}"
        )


def _wanted_kind(stored: StoredColumn, binding: InputBinding) -> str | None:
    """Say what the column should hold instead; ``None`` where it holds the right thing."""
    if stored.name in binding.decode:
        if binding.image_kind is None or not is_image_shape(binding.field.shape):
            return "an input of shape (height, width, channels) for decoded images"
        return None if stored.is_bytes else "encoded images (binary)"
    if binding.field.dtype == STRING:
        return None if stored.is_text else "strings"
    return None if stored.is_numeric else "numbers"


def _next_step(stored: StoredColumn, binding: InputBinding) -> str:
    if stored.name in binding.decode:
        return f"Remove `{stored.name}` from `input.decode`, or choose another column."
    if stored.is_bytes:
        return f"If it contains images, add `decode: {{{stored.name}: jpeg}}` to `input`."
    return "Choose another column in `input.features`, or convert this one with `input.transform`."


def _describe_count(shape: Shape) -> str:
    if not shape:
        return "1 value"
    if len(shape) == 1:
        return f"{'any number of' if shape[0] is None else shape[0]} values"
    known = [size for size in shape if size is not None]
    total = f" ({math.prod(known)} values)" if len(known) == len(shape) else ""
    return f"an array of shape {_describe_shape(shape)}{total}"


def _describe_shape(shape: Shape) -> str:
    sizes = ["any" if size is None else str(size) for size in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
