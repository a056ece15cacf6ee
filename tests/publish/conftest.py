from __future__ import annotations

from tests.postgres import VARIABLE, database, server

__all__ = ["VARIABLE", "database", "server"]
