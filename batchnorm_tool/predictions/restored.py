"""Predictions restored from unit vectors and their norms, of a run or of a store alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from batchnorm_tool.display import near_matches
from batchnorm_tool.errors import InputError
from batchnorm_tool.formats.vectors import rows_of
from batchnorm_tool.layout import raw_predictions
from batchnorm_tool.predictions.contract import PredictionBatch

if TYPE_CHECKING:
    from batchnorm_tool.jobs.reading import Stored
    from batchnorm_tool.layout import OutputLayout

# Rows of scalar columns, without vectors.
_COLUMN_ROWS = 65_536


def chosen_output(
    layouts: Sequence[OutputLayout], path: str, column: Sequence[str]
) -> OutputLayout:
    """The output that ``column`` names, by its own name or by that of its column.

    Raises:
        InputError: There is no such output, or several and none is named.
    """
    if not column and len(layouts) == 1:
        return layouts[0]
    known = {one.vector_column: one for one in layouts} | {one.name: one for one in layouts}
    if len(column) == 1 and column[0] in known:
        return known[column[0]]
    received = ", ".join(f"`{name}`" for name in column)
    hint = near_matches(column[0], known) if column else ""
    msg = (
        f"{path}: which output of this run is meant is not evident. Expected `column` to be one "
        f"of: {', '.join(f'`{one.name}`' for one in layouts)}. "
        f"Received: {received or 'none'}{hint}."
    )
    raise InputError(msg)


@dataclass(frozen=True)
class RestoredStream:
    """Rows of one output, its predictions restored."""

    stored: Stored
    output: OutputLayout

    def batches(self, columns: Sequence[str], batch_rows: int) -> Iterator[PredictionBatch]:
        """All rows in order, with further columns that are there."""
        vector, norm = self.output.vector_column, self.output.norm_column
        first_row = 0
        for batch in self.stored.read(tuple(dict.fromkeys([vector, norm, *columns])), batch_rows):
            raw = raw_predictions(batch[vector], batch[norm], self.output)
            missing = raw.is_null().to_numpy(zero_copy_only=False)
            others = pa.Table.from_batches([batch]).select(list(columns))
            yield PredictionBatch(first_row, rows_of(raw), missing, others)
            first_row += batch.num_rows

    def read_columns(self, columns: Sequence[str]) -> pa.Table:
        """All rows of columns that are there."""
        schema = pa.schema([self.stored.schema.field(name) for name in columns])
        return pa.Table.from_batches(self.stored.read(columns, _COLUMN_ROWS), schema)

    def locate(self, row: int) -> tuple[str, int]:
        """Where a row lies, and its number there."""
        return self.stored.path, row
