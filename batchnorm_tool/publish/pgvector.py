"""A table of vectors in PostgreSQL with pgvector, behind a view that readers use.

Readers select from a view ``SCHEMA.TABLE``; the rows are in ``TABLE_v<version that built it>``. A
refresh with few changes is one transaction of upserts and deletes in that table. Many changes, or
rows of another kind, make a new table with its index, to which the view then moves in one
transaction; the table before it stays, older ones are dropped. So a reader's statement sees one
version or the other, whole.

``TABLE_contract`` holds, as JSON, what a query of that version must do alike, and
``TABLE_batchnorm_tool`` says which version the view shows. They change in the same transactions, so
that it is right after a kill at any point. An advisory lock of the session keeps two publishers
apart (a pooler must not change the session in between: connect to the server itself).

Where the new rows have other columns or another width, the view is dropped and made again within
the transaction: privileges granted on it must be granted again. What is *not* promised: that other
objects may depend on the view then (PostgreSQL refuses, and so does the target), or that statements
which readers prepared before go on working ("cached plan must not change result type").
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from batchnorm_tool.display import plural
from batchnorm_tool.errors import JobError, OutputError, WorkFailed
from batchnorm_tool.job.messages import Expects
from batchnorm_tool.job.refresh_sections import Publish
from batchnorm_tool.job.types import Fraction, Name, Text, option, wrong
from batchnorm_tool.publish import Facts, Target, version_facts
from batchnorm_tool.publish.pgvector_tables import Bookkeeping, Names, Tables
from batchnorm_tool.publish.pgvector_types import RowShape, unfit_rows
from batchnorm_tool.store.rows import Changes, Publication
from batchnorm_tool.store.state import StoreSchema, Unfit

if TYPE_CHECKING:
    import psycopg

# PostgreSQL cuts names after 63 bytes; ours add `_v`, digits, and `_batchnorm_tool`.
LONGEST_NAME = 40
_PROBE_SECONDS = 5
# PostgreSQL's classes of errors: connection, rollback, resources, object in use, operator, system.
_TRANSIENT_CLASSES = ("08", "40", "53", "55", "57", "58")
_LASTING = re.compile(
    r"password|authentication|does not exist|pg_hba|permission denied|not permitted|no such user"
    r"|invalid|Name or service not known|nodename nor servname|does not support SSL"
)
_ENDS = re.compile("[/?#]")
_GRANTS = "The view was recreated with other columns: grant privileges on it again."


class PublishPgvector(Publish):
    """The keys of ``to: pgvector``."""

    table: Annotated[Name, Expects("a table's name, such as items or public.items")] = Field(
        description="The view that readers use, SCHEMA.NAME or NAME."
    )
    dsn_env: Annotated[Text, Expects("the name of an environment variable")] = option(
        "BATCHNORM_TOOL_PGVECTOR_DSN", "The environment variable that holds the connection string."
    )
    rebuild_above: Fraction = option(0.02, "Share of changed rows that makes a new table.")
    index: Literal["hnsw", "ivfflat", "none"] = option("hnsw", "Index on the vectors.")

    @field_validator("dsn_env")
    @classmethod
    def _check_variable(cls, name: str) -> str:
        if not name.isidentifier():
            text = "must be the name of an environment variable, not the connection string itself."
            raise wrong(text)
        return name


class PgvectorTable(Target):
    """The target ``pgvector``."""

    section = PublishPgvector

    def __init__(self, section: PublishPgvector) -> None:
        super().__init__(section)
        self._names = Names.parse(section.table)
        self.place = f"{self._names.schema}.{self._names.view}"
        self._variable, self._index = section.dsn_env, section.index
        self._rebuild_above = section.rebuild_above

    def check(self) -> None:
        """Look for psycopg and pgvector, the connection string, and a name that is too long."""
        self.check_libraries("psycopg", "pgvector")
        self._check_name()
        self._connection_string()

    def check_layout(self, layout: StoreSchema) -> None:
        """Refuse columns that PostgreSQL cannot have, and a server that will not make them."""
        # One that does not answer is tried again when the version is there to be published.
        try:
            shape = RowShape(layout)
            shape.check()
            with self._connected(connect_timeout=_PROBE_SECONDS) as connection:
                Tables(connection, self._names, shape, self._index).check()
        except WorkFailed:
            return
        except OutputError as error:
            raise JobError(f"`publish`: target `{self.name}`: {error.message}") from error

    def find_unfit(self, table: pa.Table, keys: Sequence[str]) -> Unfit | None:
        """Return the first value that PostgreSQL has no place for."""
        for name in table.column_names:
            column = table[name].combine_chunks()
            for rows, why in unfit_rows(column, is_key=name in keys):
                if rows.any():
                    row = int(rows.argmax())
                    return Unfit(row, name, f"publish target `{self.name}`: {why}")
        return None

    def publish(self, publication: Publication, held: Facts | None) -> Facts:
        """Bring the view to a version."""
        shape = RowShape(publication.layout)
        with self.named_errors(), self._connected() as connection:
            tables = Tables(connection, self._names, shape, self._index)
            with tables.locked():
                facts, warnings = self._publish(tables, publication, held)
        warnings += shape.warnings(self._index)
        return version_facts(publication) | facts | {"warnings": warnings}

    def _publish(
        self, tables: Tables, publication: Publication, held: Facts | None
    ) -> tuple[Facts, list[str]]:
        before = tables.bookkeeping()
        # What an earlier try left may have the name that this one needs.
        warnings = tables.drop_all_but(before.kept if before else set())
        if before is not None and before.is_of(publication):
            return {"table": before.built}, warnings
        changes = self._changes(publication, held, before)
        if before is not None and changes is not None:
            if tables.merge(publication, before, changes):
                counts = {"upserts": changes.upserts, "deletes": changes.deletes}
                return {"table": before.built, **counts}, warnings
            warnings.append(
                f"`{before.built}` did not contain the {plural(publication.rows, 'row')} of "
                f"version {publication.version} after its changes: another program has written to "
                "it. It was rebuilt."
            )
        after, remade = tables.rebuild(publication, before)
        warnings += tables.drop_all_but(after.kept) + [_GRANTS] * remade
        counts = {"upserts": publication.rows, "deletes": 0}
        return {"table": after.built, **counts}, warnings

    def _changes(
        self, publication: Publication, held: Facts | None, before: Bookkeeping | None
    ) -> Changes | None:
        """Return what to do to the table that is there; ``None`` where a new one is to be made."""
        signature = RowShape(publication.layout).signature
        if held is None or before is None or before.shape != signature:
            return None
        if not publication.can_start_from(before.version):
            return None
        changes = publication.changes(before.version)
        few = changes.upserts + changes.deletes <= self._rebuild_above * publication.rows
        return changes if few else None

    @contextlib.contextmanager
    def _connected(self, **options: Any) -> Iterator[psycopg.Connection]:
        """Connect; what psycopg says is reported without the connection string."""
        import psycopg

        text = self._connection_string()
        try:
            with psycopg.connect(text, autocommit=True, **options) as connection:
                yield connection
        except psycopg.Error as error:
            kind = WorkFailed if _is_transient(error) else OutputError
            raise kind(self._describe_error(error, text)) from None

    def _describe_error(self, error: psycopg.Error, text: str) -> str:
        """Return what the server or libpq says in its first line, on one line."""
        said = error.diag.message_primary or str(error).partition("\n")[0]
        hint = f" ({error.diag.message_detail})" if error.diag.message_detail else ""
        return (
            f"PostgreSQL refused: {_without_secrets(said + hint, text)}. Check the server given "
            f"by `{self._variable}`."
        )

    def _check_name(self) -> None:
        name, schema = self._names.view.encode(), self._names.schema.encode()
        if not 0 < len(name) <= LONGEST_NAME or len(schema) > 63 or b"\0" in name + schema:
            raise JobError(
                f"`publish`: target `{self.name}`: `table` is empty, too long, or contains NUL. "
                f"Expected at most {LONGEST_NAME} bytes. Received: `{self.place}`. Choose another "
                "name."
            )

    def _connection_string(self) -> str:
        text = os.environ.get(self._variable)
        if not text:
            raise JobError(
                f"`publish`: target `{self.name}` takes its connection string from the "
                f"environment variable `{self._variable}`, which is not set. Set it, for example "
                "to `postgresql://user@host/database`, or use another one with `dsn_env`."
            )
        if _hides_secrets(text):
            raise JobError(
                f"`publish`: target `{self.name}`: the connection string in `{self._variable}` has "
                "an `@` in the wrong place. Expected one, before the host. Write `%40` for each in "
                "a user's name or a password, and `%2F`, `%3F` and `%23` for `/`, `?` and `#`."
            )
        return text


def _hides_secrets(text: str) -> bool:
    """Tell whether an unescaped password would be taken for host, port or database."""
    rest = text.partition("://")[2]
    before, at, after = rest.partition("@")
    return bool(at) and ("@" in after or _ENDS.search(before) is not None)


def _is_transient(error: psycopg.Error) -> bool:
    """Tell whether running it again may help: the server is away, busy, or short of something."""
    import psycopg

    if error.sqlstate is not None:
        return error.sqlstate[:2] in _TRANSIENT_CLASSES
    # libpq tells of a connection in words alone.
    return isinstance(error, psycopg.OperationalError) and not _LASTING.search(str(error))


def _without_secrets(said: str, text: str) -> str:
    """Return a message of libpq's without the connection string or the password in it."""
    # libpq quotes a string that it cannot parse, and then no part of it is known to be harmless.
    import psycopg

    try:
        password = psycopg.conninfo.conninfo_to_dict(text).get("password")
    except psycopg.Error:
        return "the connection string cannot be parsed"
    return said.replace(str(password), "…") if password else said
