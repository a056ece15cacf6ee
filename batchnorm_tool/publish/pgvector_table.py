"""Filling, switching and dropping the tables of vectors."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from batchnorm_tool.errors import OutputError, WorkFailed
from batchnorm_tool.publish.pgvector_names import Bookkeeping
from batchnorm_tool.publish.pgvector_statements import Statements

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg
    from psycopg import sql

    from batchnorm_tool.publish.contract import Changes, Publication
    from batchnorm_tool.publish.pgvector_names import Names
    from batchnorm_tool.publish.pgvector_rows import RowShape

# How long another publisher, or a server that has not noticed a killed one, is waited for.
LOCK_SECONDS = 60
SWITCH_SECONDS = 2
SWITCH_TRIES = 30
# In the comment of a table: by it we know which ones are ours to drop.
MARK = "built by batchnorm-tool"


class Tables:
    """The tables of one target.

    Args:
        connection: In autocommit mode; transactions are begun where they are needed.
        names: What they are called.
        index: ``"hnsw"``, ``"ivfflat"`` or ``"none"``.
    """

    def __init__(self, connection: psycopg.Connection, names: Names, index: str) -> None:
        self._statements, self._names, self._index = Statements(connection, names), names, index

    def check(self) -> None:
        """Look for pgvector, the schema, and the rights to write there; nothing is changed.

        Raises:
            OutputError: One is missing, or somebody else's view has the name.
        """
        schema, book = self._names.schema, self._names.bookkeeping
        found = {
            "pgvector: install the extension `vector` on the server": self._statements.value(
                "SELECT to_regtype('vector') IS NOT NULL OR EXISTS (SELECT FROM"
                " pg_available_extensions WHERE name = 'vector')"
            ),
            f"the schema `{schema}`: create it": self._statements.value(
                "SELECT to_regnamespace(quote_ident(%s)) IS NOT NULL", (schema,)
            ),
        }
        if all(found.values()):
            mine = "this user may create tables in: grant it CREATE"
            found[f"a schema `{schema}` that {mine}"] = self._statements.value(
                "SELECT has_schema_privilege(quote_ident(%s), 'CREATE, USAGE')", (schema,)
            )
        if all(found.values()) and self._exists(book):
            found[f"a table `{book}` that this user owns: make it the owner"] = (
                self._statements.value(
                    "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid ="
                    " to_regclass(quote_ident(%s) || '.' || quote_ident(%s))",
                    (schema, book),
                )
            )
        missing = [what for what, is_there in found.items() if not is_there]
        if missing:
            msg = f"Something is missing in the database. Expected {missing[0]}."
            raise OutputError(msg)
        self._check_view(self.bookkeeping() if self._exists(book) else None)

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

    def bookkeeping(self) -> Bookkeeping | None:
        """What the view shows, or ``None`` where there is no view."""
        row = self._statements.run(
            "SELECT version, run_id, built, previous, shape FROM {book}"
        ).fetchone()
        return Bookkeeping(*row) if row and self._exists(self._names.view) else None

    def merge(
        self, publication: Publication, shape: RowShape, before: Bookkeeping, changes: Changes
    ) -> bool:
        """Change the table that is there, in one transaction.

        Returns:
            Whether it then has as many rows as it must; where not, nothing was changed.
        """
        from psycopg import Rollback

        table = self._statements.table(before.built)
        run_id = publication.record.get("run_id")
        with self._statements.connection.transaction() as transaction:
            self._upsert(table, shape, changes)
            self._delete(table, shape, changes)
            rows = self._statements.value("SELECT count(*) FROM {table}", table=table)
            if rows != publication.rows:
                raise Rollback(transaction)
            self._note(replace(before, version=publication.version, run_id=run_id))
        return bool(rows == publication.rows)

    def rebuild(
        self, publication: Publication, shape: RowShape, before: Bookkeeping | None
    ) -> tuple[Bookkeeping, bool]:
        """Make a new table with its index, then let the view read it.

        Returns:
            What holds now, and whether the view was made anew for other columns.
        """
        self._check_view(before)
        read = before.built if before else None
        name = self._names.built_in(publication.version, read)
        table = self._statements.table(name)
        self._create(table, shape)
        self._statements.copy(table, shape.names, shape, publication.all_batches())
        self._add_indexes(table, shape, publication.rows)
        run_id = publication.record.get("run_id")
        after = Bookkeeping(publication.version, run_id, name, read, shape.signature)
        return after, self._switch(after)

    def drop_all_but(self, kept: set[str]) -> list[str]:
        """Drop the tables of older versions and of broken off ones.

        Returns:
            A warning for each that cannot be dropped.
        """
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
        statement = "SELECT to_regclass(quote_ident(%s) || '.' || quote_ident(%s)) IS NOT NULL"
        return bool(self._statements.value(statement, (self._names.schema, name)))

    def _check_view(self, before: Bookkeeping | None) -> None:
        if before is None and self._exists(self._names.view):
            msg = (
                f"`{self._names.schema}.{self._names.view}` exists, and "
                f"`{self._names.bookkeeping}` does not know it. Choose another `table`, or drop it."
            )
            raise OutputError(msg)

    def _create(self, table: sql.Composable, shape: RowShape) -> None:
        statements = self._statements
        required = {*shape.keys, shape.vector}
        columns = [
            statements.each("{0} " + kind + (" NOT NULL" if name in required else ""), [name])
            for name, kind in shape.columns
        ]
        with statements.connection.transaction():
            joined = statements.listed(columns)
            statements.run("CREATE TABLE {table} ({columns})", table=table, columns=joined)
            mark = statements.text(f"'{MARK}'")
            statements.run("COMMENT ON TABLE {table} IS {mark}", table=table, mark=mark)

    def _add_indexes(self, table: sql.Composable, shape: RowShape, rows: int) -> None:
        keys = self._statements.columns(shape.keys)
        self._statements.run("ALTER TABLE {table} ADD PRIMARY KEY ({keys})", table=table, keys=keys)
        indexed = shape.indexed()
        if self._index != "none" and indexed is not None:
            pattern = f"USING {self._index} ({indexed}) {_options(self._index, rows)}"
            what = self._statements.each(pattern, [shape.vector])
            self._statements.run("CREATE INDEX ON {table} {what}", table=table, what=what)
        self._statements.run("ANALYZE {table}", table=table)

    def _upsert(self, table: sql.Composable, shape: RowShape, changes: Changes) -> None:
        statements = self._statements
        statements.run("CREATE TEMP TABLE tonight (LIKE {table}) ON COMMIT DROP", table=table)
        tonight = statements.text("pg_temp.tonight")
        statements.copy(tonight, shape.names, shape, changes.upsert_batches())
        statements.run(
            "INSERT INTO {table} ({names}) SELECT {names} FROM {tonight}"
            " ON CONFLICT ({keys}) DO UPDATE SET {updates}",
            table=table,
            tonight=tonight,
            names=statements.columns(shape.names),
            keys=statements.columns(shape.keys),
            updates=statements.each("{0} = excluded.{0}", shape.values),
        )

    def _delete(self, table: sql.Composable, shape: RowShape, changes: Changes) -> None:
        statements, keys = self._statements, list(shape.keys)
        statements.run(
            "CREATE TEMP TABLE gone ON COMMIT DROP AS SELECT {keys} FROM {table} LIMIT 0",
            keys=statements.columns(keys),
            table=table,
        )
        gone = statements.text("pg_temp.gone")
        statements.copy(gone, keys, shape, changes.delete_batches())
        statements.run(
            "DELETE FROM {table} AS live USING {gone} AS gone WHERE {same}",
            table=table,
            gone=gone,
            same=statements.each("live.{0} = gone.{0}", keys, " AND "),
        )

    def _switch(self, after: Bookkeeping) -> bool:
        """Let the view read what was built; whether the view had to be made anew.

        New readers queue up behind the switch while it waits for running ones: hence several
        short waits.
        """
        from psycopg.errors import LockNotAvailable

        for _ in range(SWITCH_TRIES):
            with contextlib.suppress(LockNotAvailable):
                return self._try_to_switch(after)
        msg = (
            f"`{self._names.schema}.{self._names.view}` is in use without a pause: the view could "
            f"not be switched in {SWITCH_TRIES} tries of {SWITCH_SECONDS} s. Look for a "
            "transaction in `pg_stat_activity` that stays open."
        )
        raise WorkFailed(msg)

    def _try_to_switch(self, after: Bookkeeping) -> bool:
        with self._statements.connection.transaction():
            self._statements.run(f"SET LOCAL lock_timeout = '{SWITCH_SECONDS}s'")
            remade = self._switch_view(after.built)
            self._note(after)
        return remade

    def _switch_view(self, name: str) -> bool:
        """Let the view read a table; whether it had to be made anew."""
        statements, view = self._statements, self._names.view
        remade = self._exists(view) and self._columns(view) != self._columns(name)
        if remade:
            statements.run("DROP VIEW {view}")
        table = statements.table(name)
        statements.run("CREATE OR REPLACE VIEW {view} AS SELECT * FROM {table}", table=table)
        return remade

    def _columns(self, name: str) -> list[Any]:
        rows = self._statements.run(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid ="
            " to_regclass(quote_ident(%s) || '.' || quote_ident(%s)) AND attnum > 0"
            " ORDER BY attnum",
            (self._names.schema, name),
        )
        return list(rows)

    def _note(self, after: Bookkeeping) -> None:
        self._statements.run("DELETE FROM {book}")
        self._statements.run(
            "INSERT INTO {book} (version, run_id, built, previous, shape, updated_at)"
            " VALUES (%s, %s, %s, %s, %s, now())",
            after.values(),
        )


def _options(index: str, rows: int) -> str:
    """As many lists as pgvector's documentation advises; HNSW keeps its defaults."""
    if index != "ivfflat":
        return ""
    lists = rows // 1000 if rows <= 1_000_000 else round(rows**0.5)
    return f"WITH (lists = {max(1, lists)})"
