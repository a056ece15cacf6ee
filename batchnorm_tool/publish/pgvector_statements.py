"""Running statements whose names are quoted, and copying rows into a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchnorm_tool.publish.contract import published_batches
from batchnorm_tool.publish.sql_types import rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import psycopg
    import pyarrow as pa
    from psycopg import sql

    from batchnorm_tool.publish.pgvector_names import Names
    from batchnorm_tool.publish.pgvector_rows import RowShape


class Statements:
    """Statements about the tables of one target.

    In a statement, ``{view}`` and ``{book}`` are the target's view and bookkeeping table; what
    else is in braces is given by name.

    Args:
        connection: In autocommit mode; transactions are begun where they are needed.
        names: What the tables are called.
    """

    def __init__(self, connection: psycopg.Connection, names: Names) -> None:
        from psycopg import sql

        self.connection, self._sql, self._names = connection, sql, names
        self._known = {"view": self.table(names.view), "book": self.table(names.bookkeeping)}

    def table(self, name: str) -> sql.Composable:
        """A table of the target's schema."""
        return self._sql.Identifier(self._names.schema, name)

    def columns(self, names: Iterable[str]) -> sql.Composable:
        """Names of columns with commas between them."""
        return self.each("{0}", names)

    def each(self, pattern: str, names: Iterable[str], between: str = ", ") -> sql.Composable:
        """A pattern once for each name, in place of ``{0}``."""
        text, quoted = self._sql.SQL(pattern), map(self._sql.Identifier, names)
        return self._sql.SQL(between).join(text.format(name) for name in quoted)

    def listed(self, parts: Iterable[sql.Composable]) -> sql.Composable:
        """Parts with commas between them."""
        return self._sql.SQL(", ").join(parts)

    def text(self, words: str) -> sql.Composable:
        """SQL as it stands: never anything from outside."""
        return self._sql.SQL(words)

    def run(
        self, statement: str, values: tuple[Any, ...] = (), **parts: sql.Composable
    ) -> psycopg.Cursor[Any]:
        """Execute a statement."""
        composed = self._sql.SQL(statement).format(**self._known, **parts)
        return self.connection.execute(composed, values or None)

    def value(self, statement: str, values: tuple[Any, ...] = (), **parts: sql.Composable) -> Any:
        """The first value of the first row."""
        row = self.run(statement, values, **parts).fetchone()
        return None if row is None else row[0]

    def copy(
        self,
        table: sql.Composable,
        names: list[str],
        shape: RowShape,
        batches: Iterable[pa.RecordBatch],
    ) -> None:
        """Append rows to a table, in PostgreSQL's binary form."""
        composed = self._sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)")
        schema = shape.schema_of(names)
        with (
            self.connection.cursor() as cursor,
            cursor.copy(composed.format(table, self.columns(names))) as copy,
        ):
            copy.set_types(shape.types(names))
            for rows in published_batches(batches, schema):
                for row in rows_of(rows, shape.vector):
                    copy.write_row(row)
