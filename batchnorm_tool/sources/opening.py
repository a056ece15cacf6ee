"""Open an input: find its files, inspect them, and check that they make one table."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from batchnorm_tool.errors import InputError
from batchnorm_tool.formats import Inspected, format_named, local_file, recognise
from batchnorm_tool.formats.vectors import holds, is_empty_list
from batchnorm_tool.input_warnings import warn
from batchnorm_tool.sources.input_file import InputFile, Member, Partition, Table
from batchnorm_tool.sources.listing import Listed, list_files
from batchnorm_tool.sources.one_schema import merge_schemas
from batchnorm_tool.sources.partitions import typed_partitions

if TYPE_CHECKING:
    from batchnorm_tool.job import Input

FOOTER_THREADS = 8
DEFAULT_KEY = "key"


@dataclass(frozen=True)
class _Opened:
    file: InputFile
    schema: pa.Schema


def open_table(spec: Input) -> Table:
    """Find and inspect the input's files; no rows are read.

    Args:
        spec: The job's ``input``: ``path``, ``format``, ``dtype``, ``keys`` and ``key`` are used.

    Returns:
        The table.

    Raises:
        InputError: If a file is missing, damaged or unlike the others.
    """
    if isinstance(spec.path, Mapping):
        opened = _open_groups(spec, spec.path)
    else:
        opened = _open_files(list_files(spec.path), spec.format, spec.dtype)
    keys: tuple[str, ...] = ()
    if spec.keys is not None:
        opened, keys = _with_keys(opened, spec)
    schema, unlike = merge_schemas([one.schema for one in opened])
    unreadable = _without_width(opened[0].file, schema) | {
        name: _difference(name, schema, opened[0], opened[number])
        for name, number in unlike.items()
    }
    if len(unreadable) == len(schema):
        raise InputError(next(iter(unreadable.values())))
    read = [_read_as(one, schema, unreadable) for one in opened]
    files, schema = typed_partitions(read, schema)
    _warn_of_extensions(schema)
    return Table(files, schema, keys, unreadable)


def _without_width(first: InputFile, schema: pa.Schema) -> dict[str, str]:
    """Lists of width 0, which Arrow writes into Parquet and cannot read from it."""
    return {
        field.name: f"{first.path}, column `{field.name}`: cannot be read from Parquet. Expected "
        f"values. Received: {field.type}, lists of width 0. Leave the column out."
        for field in schema
        if first.format == "parquet" and holds(field.type, is_empty_list)
    }


def _open_files(listed: Sequence[Listed], form: str | None, dtype: str | None) -> list[_Opened]:
    formats = [recognise(item.path, form) for item in listed]
    for item, name in zip(listed, formats, strict=True):
        if name != formats[0]:
            message = (
                f"{item.path}: is of another format than {listed[0].path}. Expected: {formats[0]}. "
                f"Received: {name}. Give one of them, with a glob such as `DIR/*.parquet`."
            )
            raise InputError(message)
    read = format_named(formats[0], dtype).inspect
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        inspected = list(pool.map(read, [item.path for item in listed]))
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
    """NPY files side by side: the first file of every column, the second of every column, ..."""
    columns = {
        name: _open_files(list_files(path), None, spec.dtype) for name, path in paths.items()
    }
    for name, files in columns.items():
        _check_npy(f"input.path.{name}", files[0].file)
    (first_name, first), *others = columns.items()
    for name, opened in others:
        _check_aligned(first_name, first, name, opened)
    rows = zip(*columns.values(), strict=True)
    return [_group(dict(zip(columns, row, strict=True))) for row in rows]


def _check_npy(key: str, file: InputFile) -> None:
    if file.format != "npy":
        message = (
            f"`{key}`: {file.path} cannot stand beside other files. Expected: NPY. "
            f"Received: {file.format}. Give NPY files, or one table with all columns."
        )
        raise InputError(message)


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
        message = (
            f"`input.path.{name}`: does not line up with `{first_name}`. Expected: files of "
            f"{expected[:8]} rows. Received: {received[:8]}. Give arrays with the same rows."
        )
        raise InputError(message)


def _with_keys(opened: list[_Opened], spec: Input) -> tuple[list[_Opened], tuple[str, ...]]:
    """Put the rows of a keys file beside those of all input files, in their order."""
    first = opened[0].file
    if first.format != "npy":
        message = (
            "`input.keys` is a file of keys for NPY input. Expected: NPY files in `input.path`. "
            f"Received: {first.path} ({first.format}). Did you mean `input.key`, which names a "
            "column?"
        )
        raise InputError(message)
    keys = _only_keys_file(str(spec.keys))
    rows = sum(one.file.rows for one in opened)
    if keys.file.rows != rows:
        message = (
            f"{keys.file.path}: does not line up with `input.path`. Expected: {rows} keys. "
            f"Received: {keys.file.rows}. Give one key for each row."
        )
        raise InputError(message)
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
        message = (
            "`input.keys`: expected one NPY or Parquet file. "
            f"Received: {len(opened)} of format {opened[0].file.format}. Write the keys into one."
        )
        raise InputError(message)
    return opened[0]


def _beside(one: _Opened, keys: Member, fields: Sequence[pa.Field]) -> _Opened:
    members = one.file.members or (_member(one.schema.field(0).name, one.file),)
    schema = pa.schema([*one.schema, *fields])
    local_file.check_schema(one.file.path, schema)
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
        f"{other.file.path}, column `{name}`: has another type than in {first.file.path}. "
        f"Expected: {expected}. Received: {_described(other.schema, name)}. "
        "Write both with the same schema."
    )


def _described(schema: pa.Schema, name: str) -> str:
    index = schema.get_field_index(name)
    if index < 0:
        return "no such column"
    shape = (schema.field(index).metadata or {}).get(b"shape")
    return f"{schema.field(index).type}" + (f" of shape {shape.decode()}" if shape else "")


def _warn_of_extensions(schema: pa.Schema) -> None:
    for field in schema:
        name = (field.metadata or {}).get(b"ARROW:extension:name")
        if name is not None:
            words = (
                f"column `{field.name}`: extension type `{name.decode()}` is unknown here; "
                f"its storage type {field.type} is used."
            )
            warn(words)
