"""Rows of a refresh, counted by what they are and by what became of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import AliasChoices, Field


@dataclass(frozen=True, kw_only=True)
class RefreshRows:
    """Rows of a refresh; ``rows_in`` is the sum of those up to ``unknown_deletes``.

    Attributes:
        new: Rows whose key the live version does not know.
        changed: Known rows with other features.
        recomputed: Rows with the same features that are predicted again.
        touched: Rows with the same features and other passed-through values.
        deleted: Known rows that the input says to delete; others are ``unknown_deletes``.
        bad: Of the new, changed and recomputed rows, those whose features the model cannot take.
        vanished: Rows of the dataset that are to go: not in the input, or deleted by it.
        forgotten: Rows that are to go and were only remembered as bad, not in the dataset.
        reused: New, changed and recomputed rows that got a vector that was known.
        stale: Rows of the version that keep an older vector, because they are bad now.
        quarantined: Bad rows that have no vector: remembered, and not in the dataset.
        live: Rows in the dataset; before the refresh is made ready, those of the live version.
    """

    rows_in: Annotated[
        int, Field(validation_alias=AliasChoices("in", "rows_in"), serialization_alias="in")
    ] = 0
    new: int = 0
    changed: int = 0
    recomputed: int = 0
    touched: int = 0
    same: int = 0
    deleted: int = 0
    unknown_deletes: int = 0
    bad: int = 0
    vanished: int = 0
    forgotten: int = 0
    predicted: int = 0
    reused: int = 0
    stale: int = 0
    quarantined: int = 0
    live: int = 0

    @property
    def computed(self) -> int:
        """Rows that were computed again: changed ones and all others that had to."""
        return self.changed + self.recomputed

    @property
    def for_the_model(self) -> int:
        """Rows that need a vector, and that the model can take."""
        return self.new + self.computed - self.bad

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be done: the live version is what the input says."""
        kept = self.same + self.unknown_deletes
        return kept == self.rows_in and not self.vanished and not self.forgotten
