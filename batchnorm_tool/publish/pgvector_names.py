"""What things are called in the database, and what it says of itself."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchnorm_tool.publish.contract import Publication

BOOKKEEPING = "_batchnorm_tool"


@dataclass(frozen=True)
class Names:
    """The names in the database; they are quoted wherever they are used.

    Attributes:
        schema: Of everything.
        view: What readers select from.
    """

    schema: str
    view: str

    @classmethod
    def parse(cls, text: str) -> Names:
        """Read ``NAME`` or ``SCHEMA.NAME``.

        Example:
            >>> Names.parse("items"), Names.parse("shop.items").schema
            (Names(schema='public', view='items'), 'shop')
        """
        schema, dot, view = text.rpartition(".")
        return cls(schema if dot else "public", view)

    @property
    def bookkeeping(self) -> str:
        """The table that says which version the view shows."""
        return f"{self.view}{BOOKKEEPING}"

    def built_in(self, version: int, read: str | None) -> str:
        """The name of the table that a version builds, beside the one that is ``read`` now."""
        name = f"{self.view}_v{version}"
        return f"{name}_again" if name == read else name

    def is_built(self, table: str) -> bool:
        """Whether a table is called as one of ours."""
        return re.fullmatch(re.escape(self.view) + r"_v\d+(_again)?", table) is not None

    @property
    def lock_key(self) -> int:
        """The key of the advisory lock, a signed 64-bit number."""
        digest = hashlib.sha256(f"batchnorm-tool:{self.schema}.{self.view}".encode()).digest()
        return int.from_bytes(digest[:8], "big", signed=True)


@dataclass(frozen=True)
class Bookkeeping:
    """What the database says of itself.

    Attributes:
        version: The version that the view shows.
        run_id: The run that made it.
        built: The table that the view reads.
        previous: The table that it read before.
        shape: `RowShape.signature` of both view and table.
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
        """Whether the view shows this very publication."""
        run_id = publication.record.get("run_id")
        return (self.version, self.run_id) == (publication.version, run_id)

    def values(self) -> tuple[Any, ...]:
        """The values of its row, in order."""
        return (self.version, self.run_id, self.built, self.previous, self.shape)
