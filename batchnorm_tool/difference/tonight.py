"""Tonight's input: the table, how the model reads it, and what its columns are for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa

from batchnorm_tool.errors import InputError
from batchnorm_tool.row_hash import type_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchnorm_tool.chunk import Field
    from batchnorm_tool.features import FeatureReader
    from batchnorm_tool.sources import Table
    from batchnorm_tool.store.column_types import Unfit

# What a value of variable length is taken for; only the sizes of slices and chunks depend on it.
_ASSUMED_BYTES = 32


@dataclass(frozen=True)
class Tonight:
    """Tonight's input.

    Attributes:
        table: The input files as one table.
        reader: How the model's inputs are read of it; every size in ``reader.inputs`` is known.
        feature_columns: The stored columns that feed the model.
        inputs: The model's inputs, every size known.
        keys: The columns that identify a row.
        carried: Key and passed-through columns as the store keeps them.
        mode: ``"full"``: a row that is not there has vanished; ``"delta"``: it is as it was.
        delete_column: A column of booleans: where it is true, the row is to be deleted.
        invalid: Fate of a row that the model cannot take: ``"fail"`` or ``"quarantine"``.
        find_unfit: Finds the first row of a table that a publish target cannot take.
    """

    table: Table
    reader: FeatureReader
    feature_columns: tuple[str, ...]
    inputs: tuple[Field, ...]
    keys: tuple[str, ...]
    carried: pa.Schema
    mode: str = "full"
    delete_column: str | None = None
    invalid: str = "fail"
    find_unfit: Callable[[pa.Table], Unfit | None] = lambda _: None

    @cached_property
    def kept(self) -> tuple[str, ...]:
        """Passed-through columns that are no keys."""
        return tuple(name for name in self.carried.names if name not in self.keys)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read, each once."""
        delete = () if self.delete_column is None else (self.delete_column,)
        return tuple(dict.fromkeys([*self.keys, *self.kept, *self.feature_columns, *delete]))

    @cached_property
    def key_schema(self) -> pa.Schema:
        """The key columns alone."""
        return pa.schema([self.carried.field(name) for name in self.keys])

    @cached_property
    def row_bytes(self) -> int:
        """About how many bytes a row takes in memory."""
        features = sum(
            math.prod(size or 1 for size in field.shape) * _item_bytes(field.dtype)
            for field in self.inputs
        )
        return max(1, features) + _ASSUMED_BYTES * len(self.carried)

    def name_of(self, wanted: str) -> str:
        """A column name for something that is written beside the carried columns."""
        while wanted in self.carried.names:
            wanted += "_"
        return wanted

    def check(self, live_keys: pa.Schema | None) -> None:
        """Check that the columns are there and of the types that the store knows.

        Args:
            live_keys: The key columns of the live version, if there is one.

        Raises:
            InputError: They are not.
        """
        self._check_names()
        self._check_delete_column()
        if live_keys is not None:
            self._check_key_types(live_keys)

    def _check_names(self) -> None:
        self.table.check(self.columns)
        for name in self.columns:
            if name not in self.table.schema.names:
                msg = (
                    f"{self.table.files[0].path}: has no column `{name}`. Received: "
                    f"{', '.join(self.table.schema.names)}. Correct the name in the job."
                )
                raise InputError(msg)

    def _check_delete_column(self) -> None:
        if self.delete_column is None:
            return
        kind = self.table.schema.field(self.delete_column).type
        if not pa.types.is_boolean(kind):
            msg = (
                f"{self.table.files[0].path}, column `{self.delete_column}`: `store.delete_column` "
                f"names it. Expected booleans. Received: {kind}. Write true where a row is to be "
                "deleted."
            )
            raise InputError(msg)

    def _check_key_types(self, live_keys: pa.Schema) -> None:
        expected, received = (
            {field.name: type_name(field.type) for field in schema}
            for schema in (live_keys, self.key_schema)
        )
        if list(expected.items()) != list(received.items()):
            msg = (
                f"{self.table.files[0].path}: its key is not that of the store. Expected: "
                f"{_in_words(expected)}. Received: {_in_words(received)}. Write the columns with "
                "the same types as before, or begin a new store with another `store.path`."
            )
            raise InputError(msg)


def _in_words(columns: dict[str, str]) -> str:
    return ", ".join(f"`{name}` ({kind})" for name, kind in columns.items())


def _item_bytes(dtype: str) -> int:
    digits = "".join(filter(str.isdigit, dtype))
    return int(digits) // 8 if digits else _ASSUMED_BYTES if dtype == "string" else 1
