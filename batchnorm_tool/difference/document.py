"""What was found, as data: counts, columns, statistics; and the document that keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from batchnorm_tool import canonical
from batchnorm_tool.chunk import Field
from batchnorm_tool.difference.statistics import InputStatistics
from batchnorm_tool.row_hash import HASH_VERSION
from batchnorm_tool.store.state import NIGHT

if TYPE_CHECKING:
    from batchnorm_tool.storage import Storage

DOCUMENT = f"{NIGHT}/difference.json"
FATES = f"{NIGHT}/fates.npy"


@dataclass(frozen=True)
class Counts:
    """Rows by what they are.

    ``rows_in`` is the sum of ``new``, ``changed``, ``recomputed``, ``touched``, ``same``,
    ``deleted`` and ``unknown_deletes``.

    Attributes:
        rows_in: Rows of tonight's input.
        new: Rows whose key the live version does not know.
        changed: Known rows with other features.
        recomputed: Rows with the same features that are to be predicted again.
        touched: Rows with the same features and other passed-through values.
        same: Rows that stay as they are.
        deleted: Known rows that the input says to delete.
        unknown_deletes: Unknown rows that the input says to delete.
        bad: Of the new, changed and recomputed rows, those that the model cannot take.
        vanished: Rows of the dataset that are to go: not in the input, or deleted by it.
        forgotten: Rows that are to go and were only remembered as bad, not in the dataset.
    """

    rows_in: int
    new: int
    changed: int
    recomputed: int
    touched: int
    same: int
    deleted: int
    unknown_deletes: int
    bad: int
    vanished: int
    forgotten: int

    @property
    def for_the_model(self) -> int:
        """Rows that the model is to predict."""
        return self.new + self.changed + self.recomputed - self.bad

    @property
    def is_nothing(self) -> bool:
        """Whether nothing is to be done: the live version is what tonight's input says."""
        kept = self.same + self.unknown_deletes
        return kept == self.rows_in and not self.vanished and not self.forgotten


@dataclass(frozen=True)
class Difference:
    """Tonight's input against the live version; the rows themselves lie in ``night/``.

    Attributes:
        counts: Rows by what they are.
        live_rows: Rows of the live version that are in the dataset.
        features: For each input of the model, the column of ``night/changed`` that holds it.
        reason: The column of ``night/bad`` that says why.
        inputs: The inputs of the model, every size known.
        statistics: Of tonight's input.
        warnings: What the features gave reason to warn of.
        hash_version: How rows were hashed.
    """

    counts: Counts
    live_rows: int
    features: dict[str, str]
    reason: str
    inputs: tuple[Field, ...]
    statistics: InputStatistics
    warnings: tuple[str, ...] = ()
    hash_version: str = HASH_VERSION

    def to_dict(self) -> dict[str, Any]:
        """As JSON-safe data."""
        return {
            "counts": asdict(self.counts),
            "live_rows": self.live_rows,
            "features": self.features,
            "reason": self.reason,
            "inputs": [asdict(field) for field in self.inputs],
            "statistics": self.statistics.to_dict(),
            "warnings": list(self.warnings),
            "hash_version": self.hash_version,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Difference:
        """The inverse of `to_dict`."""
        inputs = tuple(Field(f["name"], tuple(f["shape"]), f["dtype"]) for f in data["inputs"])
        changes = {
            "counts": Counts(**data["counts"]),
            "inputs": inputs,
            "statistics": InputStatistics.from_dict(data["statistics"]),
            "warnings": tuple(data["warnings"]),
        }
        return cls(**{**data, **changes})

    def save(self, storage: Storage) -> None:
        """Write the document: from here on the difference is found."""
        storage.put(DOCUMENT, canonical.sealed_json(self.to_dict()))

    @classmethod
    def load(cls, storage: Storage) -> Difference | None:
        """The difference that was found; ``None`` where none was, or its document is damaged."""
        text = storage.get(DOCUMENT)
        data = None if text is None else canonical.opened_json(text)
        try:
            return None if data is None else cls.from_dict(data)
        except (KeyError, TypeError, ValueError):
            return None
