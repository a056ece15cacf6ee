"""Predictions that a finished run normalized: its unit vectors times their norms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from batchnorm_tool.errors import InputError
from batchnorm_tool.formats.local_file import near_matches
from batchnorm_tool.formats.vectors import rows_of
from batchnorm_tool.jobs.reading import raw_predictions
from batchnorm_tool.predictions.checks import check_key, check_rank
from batchnorm_tool.predictions.contract import PredictionBatch, Predictions

if TYPE_CHECKING:
    from batchnorm_tool.jobs.stored_run import StoredRun
    from batchnorm_tool.layout import OutputLayout

# Rows of scalar columns, without vectors.
_COLUMN_ROWS = 65_536


def predictions_of_run(
    run: StoredRun, path: str, column: tuple[str, ...], key: tuple[str, ...]
) -> Predictions:
    """Take one output of a finished run; see `batchnorm_tool.predictions.open_predictions`."""
    output = _output(run, path, column)
    check_rank(path, output.name, output.shape)
    check_key(path, key, run.schema)
    vectors = {one.vector_column for one in run.layouts}
    return Predictions(
        path=path,
        kind="run",
        rows=run.rows,
        width=output.width,
        dtype=run.job.output.dtype,
        column=(output.name,),
        key=key or run.keys,
        columns=tuple(name for name in run.schema.names if name not in vectors),
        provenance=_provenance_of_run(run, output),
        _stream=_RunStream(run, output),
    )


def _output(run: StoredRun, path: str, column: Sequence[str]) -> OutputLayout:
    """The output that ``column`` names, by its own name or by that of its column."""
    if not column and len(run.layouts) == 1:
        return run.layouts[0]
    known = {one.vector_column: one for one in run.layouts} | {one.name: one for one in run.layouts}
    if len(column) == 1 and column[0] in known:
        return known[column[0]]
    received = ", ".join(f"`{name}`" for name in column)
    hint = near_matches(column[0], known) if column else ""
    msg = (
        f"{path}: which output of this run is meant is not evident. Expected `column` to be one "
        f"of: {', '.join(f'`{one.name}`' for one in run.layouts)}. "
        f"Received: {received or 'none'}{hint}."
    )
    raise InputError(msg)


def _provenance_of_run(run: StoredRun, output: OutputLayout) -> Mapping[str, Any]:
    identity = run.manifest.identity
    return {
        "space": run.manifest.data["space"],
        "model": run.job.model.path if run.job.model else None,
        "model_sha256": identity.space["model"],
        "output": output.name,
        "norm": output.norm.label,
        "versions": dict(identity.bits["versions"]),
        "made_of": dict(identity.space),
    }


@dataclass(frozen=True)
class _RunStream:
    """Rows of a finished run, its predictions restored."""

    run: StoredRun
    output: OutputLayout

    def batches(self, columns: Sequence[str], batch_rows: int) -> Iterator[PredictionBatch]:
        stored = (self.output.vector_column, self.output.norm_column)
        names = tuple(dict.fromkeys([*stored, *columns]))
        for part in self.run.parts:
            first_row = part.first
            for batch in self.run.read_part(part, names, batch_rows):
                raw = raw_predictions(batch[stored[0]], batch[stored[1]], self.output)
                missing = raw.is_null().to_numpy(zero_copy_only=False)
                others = pa.Table.from_batches([batch]).select(list(columns))
                yield PredictionBatch(first_row, rows_of(raw), missing, others)
                first_row += batch.num_rows

    def read_columns(self, columns: Sequence[str]) -> pa.Table:
        schema = pa.schema([self.run.schema.field(name) for name in columns])
        batches = (
            batch
            for part in self.run.parts
            for batch in self.run.read_part(part, columns, _COLUMN_ROWS)
        )
        return pa.Table.from_batches(batches, schema)

    def locate(self, row: int) -> tuple[str, int]:
        part = next(one for one in reversed(self.run.parts) if one.first <= row)
        file = self.run.file_of(part, self.output.vector_column)
        return f"{self.run.path}/{file}", row - part.first
