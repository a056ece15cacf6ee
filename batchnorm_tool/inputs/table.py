"""Open an input: find its files, inspect them, and check that they make one table of one schema."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import starmap

import numpy as np
import pyarrow as pa

from batchnorm_tool.environment import map_in_order
from batchnorm_tool.errors import InputError, warn
from batchnorm_tool.formats import Inspected, arrow_columns, files, format_named, recognise
from batchnorm_tool.inputs.files import InputFile, Listed, Member, Partition, Table, list_files
from batchnorm_tool.job import Input

FOOTER_THREADS = 8
DEFAULT_KEY = "key"
# What Hive, Spark and pyarrow write for a null partition value.
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
# Types of one family hold the same kind of value: the wider of two holds the other's exactly.
_FAMILIES = (
    (pa.types.is_decimal,),
    (pa.types.is_timestamp,),
    (pa.types.is_time,),
    (pa.types.is_duration,),
    (pa.types.is_date,),
    arrow_columns.STRINGS,
    (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary),
)


@dataclass(frozen=True)
class _Opened:
    file: InputFile
    schema: pa.Schema


def open_table(spec: Input) -> Table:
    """Find and inspect the input's files; no rows are read."""
    if isinstance(spec.path, Mapping):
        opened = _open_groups(spec, spec.path)
    else:
        opened = _open_files(list_files(spec.path), spec.format, spec.dtype)
    keys: tuple[str, ...] = ()
    if spec.keys is not None:
        opened, keys = _with_keys(opened, spec)
    schema, unlike = _merge_schemas([one.schema for one in opened])
    unreadable = _without_width(opened[0].file, schema) | {
        name: _difference(name, schema, opened[0], opened[number])
        for name, number in unlike.items()
    }
    if len(unreadable) == len(schema):
        raise InputError(next(iter(unreadable.values())))
    read = [_read_as(one, schema, unreadable) for one in opened]
    typed, schema = _typed_partitions(read, schema)
    _warn_of_extensions(schema)
    spaces: dict[str, str] = {}
    for one in opened:
        if space := arrow_columns.provenance_in(one.schema).get("space"):
            spaces.setdefault(str(space), one.file.path)
    return Table(typed, schema, keys, unreadable, spaces)


def _without_width(first: InputFile, schema: pa.Schema) -> dict[str, str]:
    """Name lists of width 0, which Arrow writes into Parquet and cannot read from it."""
    return {
        field.name: (
            f"{first.path}, column `{field.name}`: cannot be read from Parquet. Expected values. "
            f"Received: {field.type}, lists of width 0. Remove the column."
        )
        for field in schema
        if first.format == "parquet"
        and arrow_columns.holds(field.type, arrow_columns.is_empty_list)
    }


def _open_files(listed: Sequence[Listed], form: str | None, dtype: str | None) -> list[_Opened]:
    # All of them before any is inspected: one stray file among thousands is named at once.
    formats = [recognise(item.path, form) for item in listed]
    for item, name in zip(listed, formats, strict=True):
        if name != formats[0]:
            raise InputError(
                f"{item.path}: differs in format from {listed[0].path}. Expected: {formats[0]}. "
                f"Received: {name}. Select one format, with a glob such as `DIR/*.parquet`."
            )
    read = format_named(formats[0], dtype).inspect
    inspected = list(map_in_order(read, [item.path for item in listed], FOOTER_THREADS))
    return [
        _Opened(_input_file(item, formats[0], found, dtype), found.schema)
        for item, found in zip(listed, inspected, strict=True)
    ]


def _input_file(item: Listed, form: str, found: Inspected, dtype: str | None) -> InputFile:
    return InputFile(
        path=item.path,
        format=form,
        bytes=found.bytes,
        rows=found.rows,
        fingerprint=found.fingerprint,
        partitions=tuple(Partition(name, value) for name, value in item.partitions),
        dtype=dtype if form == "npy" else None,
    )


def _open_groups(spec: Input, paths: Mapping[str, str]) -> list[_Opened]:
    """Open NPY files side by side: the first of every column, the second of every column, ..."""
    columns = {
        name: _open_files(list_files(path), None, spec.dtype) for name, path in paths.items()
    }
    for name, (opened, *_) in columns.items():
        if opened.file.format != "npy":
            raise InputError(
                f"`input.path.{name}`: {opened.file.path} cannot be combined with other files. "
                f"Expected: NPY. Received: {opened.file.format}. Use NPY files, or one table with "
                "all columns."
            )
    (first_name, first), *others = columns.items()
    for name, other in others:
        _check_aligned(first_name, first, name, other)
    rows = zip(*columns.values(), strict=True)
    return [_group(dict(zip(columns, row, strict=True))) for row in rows]


def _group(columns: Mapping[str, _Opened]) -> _Opened:
    members = tuple(_member(name, one.file) for name, one in columns.items())
    schema = pa.schema([one.schema.field(0).with_name(name) for name, one in columns.items()])
    first = next(iter(columns.values())).file
    return _Opened(_with_members(first, members), schema)


def _member(column: str, file: InputFile, first_row: int = 0) -> Member:
    return Member(column, file.path, file.bytes, file.fingerprint, file.format, first_row)


def _with_members(file: InputFile, members: tuple[Member, ...]) -> InputFile:
    text = "\n".join(f"{m.column}\t{m.fingerprint}\t{m.first_row}" for m in members)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    size = sum(member.bytes for member in members)
    return replace(file, members=members, bytes=size, fingerprint=fingerprint)


def _check_aligned(
    first_name: str, first: Sequence[_Opened], name: str, other: Sequence[_Opened]
) -> None:
    expected, received = ([one.file.rows for one in side] for side in (first, other))
    if expected != received:
        raise InputError(
            f"`input.path.{name}`: does not match the rows of `{first_name}`. Expected: files "
            f"of {expected[:8]} rows. Received: {received[:8]}. Use arrays with equal numbers of "
            "rows."
        )


def _with_keys(opened: list[_Opened], spec: Input) -> tuple[list[_Opened], tuple[str, ...]]:
    """Put the rows of a keys file beside those of all input files, in their order."""
    first = opened[0].file
    if first.format != "npy":
        raise InputError(
            "`input.keys` is a key file for NPY input. Expected: NPY files in `input.path`. "
            f"Received: {first.path} ({first.format}). Did you mean `input.key`, which names a "
            "column?"
        )
    keys = _only_keys_file(str(spec.keys))
    rows = sum(one.file.rows for one in opened)
    if keys.file.rows != rows:
        raise InputError(
            f"{keys.file.path}: does not match the rows of `input.path`. Expected: {rows} keys. "
            f"Received: {keys.file.rows}. Provide one key per row."
        )
    is_npy = keys.file.format == "npy"
    column = _key_name(spec.key) if is_npy else ""
    fields = [keys.schema.field(0).with_name(column)] if is_npy else list(keys.schema)
    joined, first_row = [], 0
    for one in opened:
        joined.append(_beside(one, _member(column, keys.file, first_row), fields))
        first_row += one.file.rows
    return joined, tuple(field.name for field in fields)


def _key_name(key: str | Sequence[str] | None) -> str:
    names = [key] if isinstance(key, str) else list(key or [])
    return names[0] if len(names) == 1 else DEFAULT_KEY


def _only_keys_file(path: str) -> _Opened:
    opened = _open_files(list_files(path), None, None)
    if len(opened) != 1 or opened[0].file.format == "arrow":
        raise InputError(
            f"`input.keys`: expected one NPY or Parquet file. Received: {len(opened)} of "
            f"format {opened[0].file.format}. Write all keys to one file."
        )
    return opened[0]


def _beside(one: _Opened, keys: Member, fields: Sequence[pa.Field]) -> _Opened:
    members = one.file.members or (_member(one.schema.field(0).name, one.file),)
    schema = pa.schema([*one.schema, *fields])
    files.check_schema(one.file.path, schema)
    return _Opened(_with_members(one.file, (*members, keys)), schema)


def _read_as(one: _Opened, schema: pa.Schema, unreadable: Mapping[str, str]) -> InputFile:
    """Return the file, with the fields that it is read as where they are not its own."""
    if one.schema.equals(schema):
        return one.file
    fields = [
        schema.field(own.name)
        for own in one.schema
        if own.name not in unreadable and not own.equals(schema.field(own.name))
    ]
    return replace(one.file, read_as=pa.schema(fields)) if fields else one.file


def _difference(name: str, schema: pa.Schema, first: _Opened, other: _Opened) -> str:
    is_first = name in first.schema.names
    expected = _described(schema if is_first else first.schema, name)
    return (
        f"{other.file.path}, column `{name}`: differs in type from {first.file.path}. "
        f"Expected: {expected}. Received: {_described(other.schema, name)}. Write both with the "
        "same schema."
    )


def _described(schema: pa.Schema, name: str) -> str:
    index = schema.get_field_index(name)
    if index < 0:
        return "no such column"
    shape = (schema.field(index).metadata or {}).get(arrow_columns.SHAPE)
    return f"{schema.field(index).type}" + (f" of shape {shape.decode()}" if shape else "")


def _typed_partitions(
    read: Sequence[InputFile], schema: pa.Schema
) -> tuple[tuple[InputFile, ...], pa.Schema]:
    """Give partitions their types, and the schema their columns, at its end.

    A partition is of integers where all its values are (``007`` is none: it would come back as
    ``7``), else of strings.
    """
    names = [partition.name for partition in read[0].partitions]
    for file in read:
        _check_names(file, read[0].path, names)
    for name in sorted(set(names).intersection(schema.names)):
        warn(f"column `{name}` is stored in the files; the directories' values are not used.")
    columns = [
        _typed([file.partitions[number].value for file in read], name)
        for number, name in enumerate(names)
        if name not in schema.names
    ]
    for first, *_ in columns:
        schema = schema.append(pa.field(first.name, pa.type_for_alias(first.dtype)))
    rows = zip(*columns, strict=True) if columns else [()] * len(read)
    typed = (replace(file, partitions=tuple(row)) for file, row in zip(read, rows, strict=True))
    return tuple(typed), schema


def _check_names(file: InputFile, first_path: str, expected: Sequence[str]) -> None:
    received = [partition.name for partition in file.partitions]
    if received != expected:
        raise InputError(
            f"{file.path}: its partitions differ from those of {first_path}. "
            f"Expected: {expected}. Received: {received}. Move it, or select the files with a "
            "glob."
        )


def _typed(values: Sequence[str | int | None], name: str) -> list[Partition]:
    texts = [None if value == _NULL_PARTITION else str(value) for value in values]
    given = [text for text in texts if text is not None]
    if given and all(_is_integer(text) for text in given):
        return [Partition(name, None if t is None else int(t), "int64") for t in texts]
    return [Partition(name, text, "string") for text in texts]


def _is_integer(text: str) -> bool:
    try:
        return str(int(text)) == text and -(2**63) <= int(text) < 2**63
    except ValueError:
        return False


def _warn_of_extensions(schema: pa.Schema) -> None:
    for field in schema:
        name = (field.metadata or {}).get(b"ARROW:extension:name")
        if name is not None:
            warn(
                f"column `{field.name}`: extension type `{name.decode()}` is unknown here; "
                f"its storage type {field.type} is used."
            )


def _merge_schemas(schemas: Iterable[pa.Schema]) -> tuple[pa.Schema, dict[str, int]]:
    """Find the schema as which files of one table can be read, of those of each, in order.

    Columns match by name. A type is widened where every value of both keeps its meaning; whether
    a column may be null, what a list calls its items, and other programs' metadata do not count.

    Returns:
        The schema, and for each column that cannot be read as one the number of the first file in
        which it is unlike those before, or lacks; its field is the first one found.
    """
    first, *others = schemas
    fields = {field.name: field for field in first}
    differing: dict[str, int] = {}
    for number, other in enumerate(others, 1):
        # Nearly all files are alike, and comparing whole schemas is one call into Arrow.
        if other.equals(first, check_metadata=True):
            continue
        theirs = {field.name: field for field in other}
        for name in dict.fromkeys([*fields, *theirs]):
            merged = _merge(fields.get(name), theirs.get(name))
            if merged is None:
                differing.setdefault(name, number)
                fields.setdefault(name, theirs.get(name))
            elif name not in differing:
                fields[name] = merged
    return pa.schema(list(fields.values()), first.metadata), differing


def _merge(first: pa.Field | None, other: pa.Field | None) -> pa.Field | None:
    if first is None or other is None:
        return None
    shapes = [(field.metadata or {}).get(arrow_columns.SHAPE) for field in (first, other)]
    kind = _merge_types(first.type, other.type)
    if kind is None or shapes[0] != shapes[1]:
        return None
    return first.with_type(kind).with_nullable(first.nullable or other.nullable)


def _merge_types(first: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if first == other or pa.types.is_null(other):
        return first
    if pa.types.is_null(first):
        return other
    if pa.types.is_nested(first) or pa.types.is_nested(other):
        both_lists = arrow_columns.is_list(first) and arrow_columns.is_list(other)
        return (_merge_lists if both_lists else _merge_children)(first, other)
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in (first, other)):
        return _merge_numbers(first, other)
    return _merge_others(first, other)


def _merge_others(first: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    is_any = arrow_columns.is_any
    if not any(is_any(first, family) and is_any(other, family) for family in _FAMILIES):
        return None
    try:
        schemas = [pa.schema({"": kind}) for kind in (first, other)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # two time zones, or too many digits
        return None


def _merge_lists(first: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    item = _merge(first.field(0), other.field(0))
    are_fixed = [pa.types.is_fixed_size_list(kind) for kind in (first, other)]
    if item is None or (all(are_fixed) and first.list_size != other.list_size):
        return None
    if all(are_fixed):
        return pa.list_(item, first.list_size)
    is_large = any(pa.types.is_large_list(kind) for kind in (first, other))
    return pa.large_list(item) if is_large else pa.list_(item)


def _merge_children(first: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Merge structs with the same names in the same order, and maps."""
    if first.id != other.id or first.num_fields != other.num_fields:
        return None
    sides = [[kind.field(place) for place in range(kind.num_fields)] for kind in (first, other)]
    children = list(starmap(_merge, zip(*sides, strict=True)))
    names = [[child.name for child in side] for side in sides]
    if any(child is None for child in children) or (
        pa.types.is_struct(first) and names[0] != names[1]
    ):
        return None
    return arrow_columns.with_children(first, children)


def _merge_numbers(first: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    dtypes = [np.dtype(kind.to_pandas_dtype()) for kind in (first, other)]
    merged = np.promote_types(*dtypes)
    # No float holds every integer of 64 bits.
    is_inexact = merged.kind == "f" and any(d.kind in "iu" and d.itemsize == 8 for d in dtypes)
    return None if is_inexact else pa.from_numpy_dtype(merged)
