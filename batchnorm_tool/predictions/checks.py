"""What every kind of stored predictions refuses: columns that are not there, or of no use."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from batchnorm_tool.errors import InputError
from batchnorm_tool.formats.local_file import near_matches


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
