"""What is refused of whoever asks for stored predictions: arguments, and columns of no use."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from batchnorm_tool.display import near_matches
from batchnorm_tool.errors import InputError, JobError


def several(given: Any) -> list[Any]:
    """Return a list of several things, or of the only one."""
    is_one = isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable)
    return [given] if is_one or (isinstance(given, np.ndarray) and not given.ndim) else [*given]


def checked_names(argument: str, given: Any) -> tuple[str, ...]:
    """Return names of columns, given as one or several; none for ``None``.

    Raises:
        JobError: They are no texts, or one is there twice.
    """
    names = [] if given is None else several(given)
    if not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
        msg = (
            f"`{argument}` must be the name of a column, or a list of different names. "
            f"Received: {given!r}."
        )
        raise JobError(msg)
    return tuple(names)


def checked_path(argument: str, given: Any) -> str:
    """Return a path as text.

    Raises:
        JobError: It is no path.
    """
    if not isinstance(given, (str, os.PathLike)):
        raise JobError(f"`{argument}` must be a path. Received: {given!r}.")
    return os.fspath(given)


def checked_whole(argument: str, number: Any, least: int = 0) -> int:
    """Return a whole number of a certain size at least.

    Raises:
        JobError: It is none.
    """
    if not _is_whole(number, least):
        msg = f"`{argument}` must be a whole number, {least} or more. Received: {number!r}."
        raise JobError(msg)
    return int(number)


def checked_ks(given: Any) -> tuple[int, ...]:
    """Return numbers of neighbours, given as one or several: ascending, each once.

    Raises:
        JobError: They are none.
    """
    numbers = several(given)
    if not numbers or not all(_is_whole(k, 1) for k in numbers):
        msg = f"`k` must be numbers of neighbours, 1 or more each. Received: {given!r}."
        raise JobError(msg)
    return tuple(sorted({int(k) for k in numbers}))


def _is_whole(number: Any, least: int) -> bool:
    is_number = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
    return is_number and number >= least


def check_columns(
    path: str, names: Sequence[str], stored: Sequence[str], argument: str = ""
) -> None:
    """Refuse names that are not among the stored columns.

    Args:
        path: Of the predictions.
        names: The columns wanted.
        stored: The columns that there are.
        argument: What names them, if anything does.

    Raises:
        InputError: One of them is not there.
    """
    for name in names:
        if name not in stored:
            named_by = f", which `{argument}` names" if argument else ""
            known = ", ".join(f"`{each}`" for each in stored)
            expected = f"Expected one of: {known}." if stored else "It has vectors alone."
            msg = (
                f"{path}: has no column `{name}`{named_by}{near_matches(name, stored)}. {expected} "
                f"Received: `{name}`."
            )
            raise InputError(msg)


def check_key(path: str, key: Sequence[str], schema: pa.Schema) -> None:
    """Refuse a key that is not there, or that cannot name a row.

    Raises:
        InputError: It is not there, or holds lists or structs.
    """
    check_columns(path, key, schema.names, "key")
    for name in key:
        kind = schema.field(name).type
        if pa.types.is_nested(kind) or pa.types.is_null(kind):
            msg = (
                f"{path}: `key` names the column `{name}`, which cannot name a row. Expected "
                f"numbers, strings or dates. Received: {kind}. Name another column."
            )
            raise InputError(msg)


def check_rank(path: str, column: str, shape: Sequence[int | None]) -> None:
    """Refuse rows that hold more than one vector.

    Raises:
        InputError: The shape of a row has several axes.
    """
    if len(shape) > 1:
        msg = (
            f"{path}: `{column}` holds an array of shape {tuple(shape)} in each row. Expected one "
            "vector in each row. Received: several. Store them flat, or name another column with "
            "`column`."
        )
        raise InputError(msg)
