"""The tables of vectors in PostgreSQL: named, filled, switched and dropped."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from batchnorm_tool.errors import OutputError, WorkFailed
from batchnorm_tool.publish import published_batches
from batchnorm_tool.publish.pgvector_types import RowShape, rows_of
from batchnorm_tool.store.rows import Changes, Publication

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

# How long another publisher, or a server that has not noticed a killed one, is waited for.
LOCK_SECONDS = 60
SWITCH_SECONDS = 2
SWITCH_TRIES = 30
# In the comment of a table: by it we know which ones are ours to drop.
MARK = "built by batchnorm-tool"
BOOKKEEPING, CONTRACT = "_batchnorm_tool", "_contract"


class Tables:
    """The tables of one target, with an index ``"hnsw"``, ``"ivfflat"`` or ``"none"``."""

    def __init__(
        self, connection: psycopg.Connection, names: Names, shape: RowShape, index: str
    ) -> None:
        self._statements, self._names = Statements(connection, names), names
        self._shape, self._index = shape, index

    def check(self) -> None:
        """Look for pgvector, the schema, and the rights to write there; nothing is changed."""
        schema, book = self._names.schema, self._names.bookkeeping
        self._expect(
            "pgvector: install the extension `vector` on the server",
            "SELECT to_regtype('vector') IS NOT NULL OR EXISTS (SELECT FROM"
            " pg_available_extensions WHERE name = 'vector')",
        )
        self._expect(
            f"the schema `{schema}`: create it",
            "SELECT to_regnamespace(quote_ident(%s)) IS NOT NULL",
            schema,
        )
        self._expect(
            f"a schema `{schema}` that this user may create tables in: grant it CREATE",
            "SELECT has_schema_privilege(quote_ident(%s), 'CREATE, USAGE')",
            schema,
        )
        before = None
        if self._exists(book):
            self._expect(
                f"a table `{book}` that this user owns: make it the owner",
                "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = {relation}",
                *(schema, book),
            )
            before = self.bookkeeping()
        self._check_view(before)

    def _expect(self, what: str, statement: str, *values: str) -> None:
        if not self._statements.value(statement, values):
            raise OutputError(f"The database is not ready. Expected {what}.")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other publishers to the same view away; what a publication needs is made."""
        key = (self._names.lock_key,)
        self._statements.run("SET client_min_messages = warning")
        self._statements.run(f"SET lock_timeout = '{LOCK_SECONDS}s'")
        self._statements.run("SELECT pg_advisory_lock(%s)", key)
        # It ends with the session, as it must where this one breaks off.
        self._prepare()
        yield
        self._statements.run("SELECT pg_advisory_unlock(%s)", key)

    def _prepare(self) -> None:
        from pgvector.psycopg import register_vector

        if self._statements.value("SELECT to_regtype('vector')::text") is None:
            self._statements.run("CREATE EXTENSION IF NOT EXISTS vector")
        register_vector(self._statements.connection)
        self._statements.run(
            "CREATE TABLE IF NOT EXISTS {book} (one boolean PRIMARY KEY DEFAULT true CHECK (one),"
            " version bigint NOT NULL, run_id text, built text NOT NULL, previous text,"
            " shape text NOT NULL, updated_at timestamptz NOT NULL)"
        )
        self._prepare_contract()

    def _prepare_contract(self) -> None:
        """Make the table of the contract; one of that name that is not ours is refused."""
        name, run = self._names.contract, self._statements.run
        if self._exists(name):
            self._expect(
                f"no table `{name}` of somebody else: rename it, or choose another `table`",
                "SELECT obj_description({relation}, 'pg_class') IS NOT DISTINCT FROM %s",
                *(self._names.schema, name, MARK),
            )
            return
        with self._statements.connection.transaction():
            # Of type json, which keeps a text as it is: a checksum is over it.
            run("CREATE TABLE {contract} (version bigint NOT NULL, contract json NOT NULL)")
            run(f"COMMENT ON TABLE {{contract}} IS '{MARK}'")

    def bookkeeping(self) -> Bookkeeping | None:
        """Return what the view shows, or ``None`` where there is no view."""
        row = self._statements.run(
            "SELECT version, run_id, built, previous, shape FROM {book}"
        ).fetchone()
        return Bookkeeping(*row) if row and self._exists(self._names.view) else None

    def merge(self, publication: Publication, before: Bookkeeping, changes: Changes) -> bool:
        """Change the table that is there; nothing unless it then has as many rows as it must."""
        from psycopg import Rollback

        table = self._statements.table(before.built)
        run_id = publication.record.run_id
        with self._statements.connection.transaction() as transaction:
            self._upsert(table, changes)
            self._delete(table, changes)
            # Another program's rows would stay for ever: where the count is off, the table is built
            # again.
            rows = self._statements.value("SELECT count(*) FROM {table}", table=table)
            if rows != publication.rows:
                raise Rollback(transaction)
            after = replace(before, version=publication.version, run_id=run_id)
            self._note(after, publication.contract)
        return bool(rows == publication.rows)

    def rebuild(
        self, publication: Publication, before: Bookkeeping | None
    ) -> tuple[Bookkeeping, bool]:
        """Make a new table with its index, then let the view read it; see `_switch`."""
        self._check_view(before)
        read = before.built if before else None
        name = self._names.built_in(publication.version, read)
        table = self._statements.table(name)
        self._create(table)
        # Before the indexes: PostgreSQL builds one over rows that are there faster than row by row
        # ("Populating a Database" in its manual).
        shape, rows = self._shape, publication.all_batches()
        self._statements.copy(table, shape, shape.schema, rows)
        self._add_indexes(table, publication.rows)
        run_id = publication.record.run_id
        after = Bookkeeping(publication.version, run_id, name, read, shape.signature)
        return after, self._switch(after, publication.contract)

    def drop_all_but(self, kept: set[str]) -> list[str]:
        """Drop the tables of older versions and of broken off ones."""
        import psycopg

        warnings = []
        for name in sorted(self._built() - kept):
            try:
                self._statements.run("DROP TABLE {table}", table=self._statements.table(name))
            except psycopg.Error as error:
                warnings.append(f"`{name}` stays: {error.diag.message_primary}.")
        return warnings

    def _built(self) -> set[str]:
        rows = self._statements.run(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = to_regnamespace("
            "quote_ident(%s)) AND obj_description(oid, 'pg_class') = %s",
            (self._names.schema, MARK),
        )
        return {name for (name,) in rows if self._names.is_built(name)}

    def _exists(self, name: str) -> bool:
        relation = self._names.schema, name
        return bool(self._statements.value("SELECT {relation} IS NOT NULL", relation))

    def _check_view(self, before: Bookkeeping | None) -> None:
        if before is None and self._exists(self._names.view):
            raise OutputError(
                f"`{self._names.schema}.{self._names.view}` exists, but is not recorded in "
                f"`{self._names.bookkeeping}`. Choose another `table`, or drop it."
            )

    def _create(self, table: sql.Composable) -> None:
        statements, layout = self._statements, self._shape.layout
        required = {*layout.keys, layout.vector}
        columns = [
            statements.each("{0} " + kind + (" NOT NULL" if name in required else ""), [name])
            for name, kind in self._shape.columns.items()
        ]
        with statements.connection.transaction():
            joined = statements.text(", ").join(columns)
            statements.run("CREATE TABLE {table} ({columns})", table=table, columns=joined)
            statements.run(f"COMMENT ON TABLE {{table}} IS '{MARK}'", table=table)

    def _add_indexes(self, table: sql.Composable, rows: int) -> None:
        layout, indexed = self._shape.layout, self._shape.indexed()
        keys = self._statements.columns(layout.keys)
        self._statements.run("ALTER TABLE {table} ADD PRIMARY KEY ({keys})", table=table, keys=keys)
        if self._index != "none" and indexed is not None:
            pattern = f"USING {self._index} ({indexed}) {_options(self._index, rows)}"
            what = self._statements.each(pattern, [layout.vector])
            self._statements.run("CREATE INDEX ON {table} {what}", table=table, what=what)
        # Without statistics the planner may scan the whole table until autovacuum comes by.
        self._statements.run("ANALYZE {table}", table=table)

    def _upsert(self, table: sql.Composable, changes: Changes) -> None:
        statements, names, keys = self._statements, self._shape.columns, self._shape.layout.keys
        statements.run("CREATE TEMP TABLE staged (LIKE {table}) ON COMMIT DROP", table=table)
        staged = statements.text("pg_temp.staged")
        statements.copy(staged, self._shape, self._shape.schema, changes.upsert_batches())
        statements.run(
            "INSERT INTO {table} ({names}) SELECT {names} FROM {staged}"
            " ON CONFLICT ({keys}) DO UPDATE SET {updates}",
            table=table,
            staged=staged,
            names=statements.columns(names),
            keys=statements.columns(keys),
            updates=statements.each(
                "{0} = excluded.{0}", [name for name in names if name not in keys]
            ),
        )

    def _delete(self, table: sql.Composable, changes: Changes) -> None:
        statements, keys = self._statements, self._shape.layout.keys
        statements.run(
            "CREATE TEMP TABLE gone ON COMMIT DROP AS SELECT {keys} FROM {table} LIMIT 0",
            keys=statements.columns(keys),
            table=table,
        )
        gone = statements.text("pg_temp.gone")
        key_schema = self._shape.layout.key_schema
        statements.copy(gone, self._shape, key_schema, changes.delete_batches())
        statements.run(
            "DELETE FROM {table} AS live USING {gone} AS gone WHERE {same}",
            table=table,
            gone=gone,
            same=statements.each("live.{0} = gone.{0}", keys, " AND "),
        )

    def _switch(self, after: Bookkeeping, contract: bytes | None) -> bool:
        """Let the view read what was built; whether the view had to be made again."""
        # New readers queue up behind the switch while it waits for running ones: hence several
        # short waits.
        from psycopg.errors import LockNotAvailable

        for _ in range(SWITCH_TRIES):
            with contextlib.suppress(LockNotAvailable):
                return self._try_to_switch(after, contract)
        raise WorkFailed(
            f"`{self._names.schema}.{self._names.view}` is in constant use: the view could not be "
            f"switched in {SWITCH_TRIES} tries of {SWITCH_SECONDS} s. Look for an open "
            "transaction in `pg_stat_activity`."
        )

    def _try_to_switch(self, after: Bookkeeping, contract: bytes | None) -> bool:
        statements, view = self._statements, self._names.view
        with statements.connection.transaction():
            statements.run(f"SET LOCAL lock_timeout = '{SWITCH_SECONDS}s'")
            remade = self._exists(view) and self._columns(view) != self._columns(after.built)
            if remade:
                statements.run("DROP VIEW {view}")
            table = statements.table(after.built)
            statements.run("CREATE OR REPLACE VIEW {view} AS SELECT * FROM {table}", table=table)
            self._note(after, contract)
        return remade

    def _columns(self, name: str) -> list[Any]:
        return self._statements.run(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = {relation} AND attnum > 0 ORDER BY attnum",
            (self._names.schema, name),
        ).fetchall()

    def _note(self, after: Bookkeeping, contract: bytes | None) -> None:
        self._statements.run("DELETE FROM {book}")
        self._statements.run(
            "INSERT INTO {book} (version, run_id, built, previous, shape, updated_at)"
            " VALUES (%s, %s, %s, %s, %s, now())",
            astuple(after),
        )
        self._statements.run("DELETE FROM {contract}")
        if contract is not None:
            values = after.version, contract.decode(errors="replace")
            self._statements.run("INSERT INTO {contract} VALUES (%s, %s)", values)


def _options(index: str, rows: int) -> str:
    """Ask for as many lists as pgvector's documentation advises; HNSW keeps its defaults."""
    if index != "ivfflat":
        return ""
    lists = rows // 1000 if rows <= 1_000_000 else round(rows**0.5)
    return f"WITH (lists = {max(1, lists)})"


class Statements:
    """Statements about the tables of one target.

    In a statement, ``{view}``, ``{book}`` and ``{contract}`` are the target's view, bookkeeping
    table and contract, and ``{relation}`` is what two values name, a schema and a table or view in
    it; what else is in braces is given by name. The connection is in autocommit mode: transactions
    are begun where they are needed.
    """

    def __init__(self, connection: psycopg.Connection, names: Names) -> None:
        from psycopg import sql

        self.connection, self._sql, self._names = connection, sql, names
        self._known = {
            "view": self.table(names.view),
            "book": self.table(names.bookkeeping),
            "contract": self.table(names.contract),
            "relation": self.text("to_regclass(quote_ident(%s) || '.' || quote_ident(%s))"),
        }

    def table(self, name: str) -> sql.Composable:
        """Return a table of the target's schema."""
        return self._sql.Identifier(self._names.schema, name)

    def each(self, pattern: str, names: Iterable[str], between: str = ", ") -> sql.Composable:
        """Return a pattern once for each name, in place of ``{0}``."""
        text, quoted = self._sql.SQL(pattern), map(self._sql.Identifier, names)
        return self._sql.SQL(between).join(text.format(name) for name in quoted)

    def columns(self, names: Iterable[str]) -> sql.Composable:
        """Return names of columns with commas between them."""
        return self.each("{0}", names)

    def text(self, words: str) -> sql.SQL:
        """Return SQL as it stands: never anything from outside."""
        return self._sql.SQL(words)

    def run(
        self, statement: str, values: tuple[Any, ...] = (), **parts: sql.Composable
    ) -> psycopg.Cursor[Any]:
        """Execute a statement."""
        composed = self._sql.SQL(statement).format(**self._known, **parts)
        return self.connection.execute(composed, values or None)

    def value(self, statement: str, values: tuple[Any, ...] = (), **parts: sql.Composable) -> Any:
        """Return the first value of the first row."""
        row = self.run(statement, values, **parts).fetchone()
        return None if row is None else row[0]

    def copy(
        self,
        table: sql.Composable,
        shape: RowShape,
        schema: pa.Schema,
        batches: Iterable[pa.RecordBatch],
    ) -> None:
        """Append the columns of ``schema`` to a table, in PostgreSQL's binary form."""
        # In binary, a float32 goes over as its four bytes; as text, digits would be made and read
        # for each.
        composed = self._sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)")
        statement = composed.format(table, self.columns(schema.names))
        with self.connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types([shape.columns[name].partition("(")[0] for name in schema.names])
            for rows in published_batches(batches, schema):
                for row in rows_of(rows, shape.layout.vector):
                    copy.write_row(row)


@dataclass(frozen=True)
class Names:
    """The names in the database; they are quoted wherever they are used."""

    schema: str
    view: str

    @classmethod
    def parse(cls, text: str) -> Names:
        """Read ``NAME``, which is in the schema ``public``, or ``SCHEMA.NAME``."""
        schema, dot, view = text.rpartition(".")
        return cls(schema if dot else "public", view)

    @property
    def bookkeeping(self) -> str:
        """The table that says which version the view shows."""
        return f"{self.view}{BOOKKEEPING}"

    @property
    def contract(self) -> str:
        """The table that holds the contract of that version."""
        return f"{self.view}{CONTRACT}"

    def built_in(self, version: int, read: str | None) -> str:
        """Name the table that a version builds, beside the one that is ``read`` now."""
        name = f"{self.view}_v{version}"
        return f"{name}_again" if name == read else name

    def is_built(self, table: str) -> bool:
        """Tell whether a table is called as one of ours."""
        return re.fullmatch(re.escape(self.view) + r"_v\d+(_again)?", table) is not None

    @property
    def lock_key(self) -> int:
        """The key of the advisory lock, a signed 64-bit number."""
        digest = hashlib.sha256(f"batchnorm-tool:{self.schema}.{self.view}".encode()).digest()
        return int.from_bytes(digest[:8], "big", signed=True)


@dataclass(frozen=True)
class Bookkeeping:
    """What the database says of itself, in the order of its columns.

    The view shows a version from the table that was ``built``, and read the ``previous`` one
    before; ``shape`` is the `RowShape.signature` of both view and table.
    """

    version: int
    run_id: str | None
    built: str
    previous: str | None
    shape: str

    @property
    def kept(self) -> set[str]:
        """The tables that stay."""
        return {self.built, self.previous or self.built}

    def is_of(self, publication: Publication) -> bool:
        """Tell whether the view shows this very publication."""
        return (self.version, self.run_id) == (publication.version, publication.record.run_id)
