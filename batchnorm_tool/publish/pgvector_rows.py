"""Which columns a table of vectors has, and which index serves its norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from batchnorm_tool.canonical import sha256
from batchnorm_tool.errors import OutputError
from batchnorm_tool.publish.contract import published_schema
from batchnorm_tool.publish.sql_types import sql_type

if TYPE_CHECKING:
    from batchnorm_tool.store.state import StoreLayout

# The limits of pgvector 0.8: columns, and the two types that an index takes.
LONGEST_VECTOR = 16000
LONGEST_INDEXED = 2000
LONGEST_INDEXED_HALF = 4000
# PostgreSQL's own: every table has these columns, and names are cut after so many bytes.
_SYSTEM_COLUMNS = ("tableoid", "xmin", "cmin", "xmax", "cmax", "ctid")
_LONGEST_NAME = 63
_MOST_COLUMNS = 1600


@dataclass(frozen=True)
class RowShape:
    """The columns of a table, made from the layout of a store.

    Attributes:
        keys: Names of the key columns.
        vector: Name of the vectors' column.
        width: Components of a vector.
        norm_label: The norm that vectors have length 1 under.
        columns: Name and SQL type of every column, in order.
        dtype: Of the vectors in the store.
        schema: The same columns in Arrow.
    """

    keys: tuple[str, ...]
    vector: str
    width: int
    norm_label: str
    columns: tuple[tuple[str, str], ...]
    dtype: str
    schema: pa.Schema

    @classmethod
    def of(cls, layout: StoreLayout) -> RowShape:
        """The shape of a store's published columns."""
        schema, width = published_schema(layout), layout.width
        columns = tuple(
            (
                field.name,
                f"vector({width})" if field.name == layout.vector else sql_type(field.type),
            )
            for field in schema
        )
        return cls(
            layout.keys, layout.vector, width, layout.norm_label, columns, layout.dtype, schema
        )

    def check(self) -> None:
        """Refuse columns that PostgreSQL cannot have, and vectors that are too long.

        Raises:
            OutputError: There are some.
        """
        for name in self.names:
            if name in _SYSTEM_COLUMNS or len(name.encode()) > _LONGEST_NAME:
                msg = (
                    f"a table in PostgreSQL cannot have the column `{name}`. Expected a name of at "
                    f"most {_LONGEST_NAME} bytes, and none of {', '.join(_SYSTEM_COLUMNS)}. Rename "
                    "it in the input (the store's own: `store.columns`, `output.columns`), or "
                    "leave it out of `input.passthrough`."
                )
                raise OutputError(msg)
        if self.width > LONGEST_VECTOR or len(self.columns) > _MOST_COLUMNS:
            msg = (
                f"pgvector takes vectors of at most {LONGEST_VECTOR} components and a table at "
                f"most {_MOST_COLUMNS} columns. Received: {self.width} and {len(self.columns)}. "
                "Use another target."
            )
            raise OutputError(msg)

    @property
    def names(self) -> list[str]:
        """Names of all columns, in order."""
        return [name for name, _ in self.columns]

    @property
    def signature(self) -> str:
        """Equal where rows fit into the same table, under the same index."""
        columns = [list(column) for column in self.columns]
        return sha256({"keys": list(self.keys), "columns": columns, "norm": self.norm_label})

    @property
    def operators(self) -> str:
        """The distance that serves the norm: cosine (``<=>``), or else inner product (``<#>``)."""
        return "cosine" if self.norm_label == "l2" else "ip"

    @property
    def values(self) -> list[str]:
        """Names of the columns that are no keys."""
        return [name for name in self.names if name not in self.keys]

    def schema_of(self, names: list[str]) -> pa.Schema:
        """Some columns in Arrow."""
        return pa.schema([self.schema.field(name) for name in names])

    def types(self, names: list[str]) -> list[str]:
        """The SQL types of some columns, without the numbers in brackets."""
        known = dict(self.columns)
        return [known[name].partition("(")[0] for name in names]

    @property
    def cast(self) -> str:
        """What vectors are cast to for an index, where they are too long for it as they are."""
        return f"halfvec({self.width})" if self.width > LONGEST_INDEXED else ""

    def indexed(self) -> str | None:
        """What an index is over, with ``{0}`` for the column; ``None`` where none can be."""
        if self.width > LONGEST_INDEXED_HALF:
            return None
        if self.cast:
            return f"({{0}}::{self.cast}) halfvec_{self.operators}_ops"
        return f"{{0}} vector_{self.operators}_ops"

    def warnings(self, index: str) -> list[str]:
        """What a reader should know of precision and of the index."""
        told = []
        if self.dtype == "float64":
            told.append("pgvector stores float32: the vectors' float64 was rounded.")
        if index != "none" and self.indexed() is None:
            told.append(f"{self.width} components are too many for an index: none was built.")
        elif index != "none" and self.cast:
            cast = f"{self.vector}::{self.cast}"
            told.append(f"The index is over `{cast}`: queries must cast likewise to use it.")
        return told
