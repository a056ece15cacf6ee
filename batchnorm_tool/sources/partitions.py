"""Hive partitions: `name=value` directories as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from batchnorm_tool.errors import InputError
from batchnorm_tool.input_warnings import warn
from batchnorm_tool.sources.input_file import InputFile, Partition
from batchnorm_tool.sources.listing import NULL_PARTITION


def typed_partitions(
    files: Sequence[InputFile], schema: pa.Schema
) -> tuple[tuple[InputFile, ...], pa.Schema]:
    """Give partitions their types, and the schema their columns.

    Args:
        files: Of one table, their partitions as text.
        schema: Of what the files store; a column of that name wins over the directories.

    Returns:
        The files with integers where all values of a partition are integers (``007`` is not: it
        would come back as ``7``), and the schema with the partitions' columns at its end.

    Raises:
        InputError: If the files differ in their partitions.
    """
    names = [partition.name for partition in files[0].partitions]
    for file in files:
        _check_names(file, files[0].path, names)
    for name in sorted(set(names).intersection(schema.names)):
        words = f"column `{name}` is stored in the files; the directories' values are not used."
        warn(words)
    used = {name: number for number, name in enumerate(names) if name not in schema.names}
    columns = [_typed([file.partitions[n].value for file in files], m) for m, n in used.items()]
    for partition in (column[0] for column in columns):
        schema = schema.append(pa.field(partition.name, pa.type_for_alias(partition.dtype)))
    rows = zip(*columns, strict=True) if columns else [()] * len(files)
    typed = (replace(file, partitions=tuple(row)) for file, row in zip(files, rows, strict=True))
    return tuple(typed), schema


def _check_names(file: InputFile, first_path: str, expected: Sequence[str]) -> None:
    received = [partition.name for partition in file.partitions]
    if received != expected:
        message = (
            f"{file.path}: has other partitions than {first_path}. Expected: {expected}. "
            f"Received: {received}. Move it, or name the files with a glob."
        )
        raise InputError(message)


def _typed(values: Sequence[str | int | None], name: str) -> list[Partition]:
    texts = [None if value == NULL_PARTITION else str(value) for value in values]
    given = [text for text in texts if text is not None]
    if given and all(_is_integer(text) for text in given):
        return [Partition(name, None if t is None else int(t), "int64") for t in texts]
    return [Partition(name, text, "string") for text in texts]


def _is_integer(text: str) -> bool:
    try:
        return str(int(text)) == text and -(2**63) <= int(text) < 2**63
    except ValueError:
        return False
