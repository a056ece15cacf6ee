"""Read a finished run back: keys, vectors and norms, whichever format they were written in."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchnorm_tool import layout
from batchnorm_tool.errors import JobError
from batchnorm_tool.formats.vectors import rows_of
from batchnorm_tool.jobs.stored_run import StoredRun, open_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd

    from batchnorm_tool.layout import OutputLayout

_BATCH_ROWS = 65_536


def read(path: str | os.PathLike[str], raw: bool = False) -> StoredVectors:  # noqa: FBT001, FBT002
    """Open the vectors of a finished run; rows are read when they are asked for.

    Args:
        path: The run's output directory, or the ``vectors`` directory in it; any output format.
        raw: Give the predictions as they were before normalization: vector times norm, multiplied
            in float64 and rounded once to the stored dtype. Not promised: what a kept prediction
            with NaN or infinity held, or one that the stored dtype cannot hold.

    Returns:
        The vectors, with their keys and norms. Not promised: that a bit that flipped on the disk is
        noticed; `batchnorm_tool.verify` reads every checksum.

    Raises:
        InputError: No finished run lies there; the message says what does.
        Damaged: Its manifest is not what its checksum says.

    Example:
        >>> from batchnorm_tool import read
        >>> keys, vectors, norms = read("runs/digits").to_numpy()  # doctest: +SKIP
        >>> vectors.shape, norms.shape  # doctest: +SKIP
        ((1797, 32), (1797,))
    """
    return StoredVectors(open_run(os.fspath(path)), raw)


@dataclass(frozen=True)
class StoredVectors:
    """The vectors of a finished run, their keys and their norms.

    Rows come in the order of the input. Null vectors and norms (policy ``nullify``) are NaN in
    NumPy and pandas. In batches they are null, unless the run was written as NPY, which knows NaN
    alone.
    """

    _run: StoredRun
    _raw: bool = False

    def __repr__(self) -> str:
        return f"StoredVectors({self.path!r}: {self.rows:,} rows of {', '.join(self.outputs)})"

    @property
    def path(self) -> str:
        """The run's output directory."""
        return self._run.path

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The run's manifest, as plain data."""
        return self._run.manifest.data

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the model's outputs that are stored, in order."""
        return tuple(output.name for output in self._run.layouts)

    @property
    def schema(self) -> pa.Schema:
        """Of every batch: key and passed-through columns, then vectors and norms."""
        return self._run.schema

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._run.rows

    def __len__(self) -> int:
        return self.rows

    def batches(self, batch_rows: int = _BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Stream all columns in the order of the input.

        Args:
            batch_rows: Rows of a batch; the last batch of each part is shorter. Memory is bounded
                by it.

        Returns:
            Batches of the schema `schema`, whichever format was written. Vectors are flat lists of
            fixed size; where their rank is higher, their shape is in the field's metadata.

        Raises:
            JobError: ``batch_rows`` is below 1.
            Damaged: A file is missing, or cannot be read.
        """
        if batch_rows < 1:
            msg = f"`batch_rows` must be at least 1. Received: {batch_rows}."
            raise JobError(msg)
        return self._batches(self._run.schema.names, batch_rows)

    def to_numpy(self, output: str | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Load one output into memory.

        Args:
            output: Its name; may be left out where there is only one.

        Returns:
            Keys, vectors and norms. Keys: ``[n]``, or tuples in ``object[n]`` where several columns
            make the key. Vectors: ``[n, *shape]`` in the stored dtype. Norms: ``float64[n]``, or
            ``float64[n, v]`` where a row has ``v`` vectors.

        Raises:
            JobError: There are several outputs and none is named, or none of that name.
            Damaged: A file is missing, or cannot be read.
        """
        chosen = self._choose(output)
        vectors = np.empty((self.rows, *chosen.shape), self._run.job.output.dtype)
        sizes = (chosen.vectors,) if chosen.norm_per_vector else ()
        norms = np.empty((self.rows, *sizes), np.float64)
        keys: list[pa.RecordBatch] = []
        row = 0
        names = [*self._run.keys, chosen.vector_column, chosen.norm_column]
        for batch in self._batches(names, _BATCH_ROWS):
            place = slice(row, row + batch.num_rows)
            flat = rows_of(batch[chosen.vector_column])
            vectors[place] = flat.reshape(batch.num_rows, *chosen.shape)
            norms[place] = rows_of(batch[chosen.norm_column])
            keys.append(batch.select(list(self._run.keys)))
            row = place.stop
        return self._key_array(keys), vectors, norms

    def to_pandas(self) -> pd.DataFrame:
        """Load everything into memory as a frame.

        Returns:
            One row for each row: key and passed-through columns, and for each output a column of
            arrays of its shape and one of norms (of arrays, where a row has several vectors).

        Raises:
            Damaged: A file is missing, or cannot be read.
        """
        import pandas as pd

        table = pa.Table.from_batches(self.batches(), self.schema)
        cells = {}
        for output in self._run.layouts:
            cells[output.vector_column] = _cells(table[output.vector_column], output.shape)
            if output.norm_per_vector:
                cells[output.norm_column] = _cells(table[output.norm_column], (output.vectors,))
        rest = table.drop_columns(list(cells)).to_pandas()
        columns = {name: cells.get(name, rest.get(name)) for name in table.column_names}
        return pd.DataFrame(columns, index=rest.index)

    def _batches(self, names: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        wanted = [*names]
        for output in self._run.layouts if self._raw else ():
            if output.vector_column in wanted and output.norm_column not in wanted:
                wanted.append(output.norm_column)
        for part in self._run.parts:
            for batch in self._run.read_part(part, wanted, batch_rows):
                yield self._restored(batch).select(list(names)) if self._raw else batch

    def _restored(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with predictions in the place of unit vectors."""
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        for output in self._run.layouts:
            if output.vector_column in columns:
                columns[output.vector_column] = raw_predictions(
                    columns[output.vector_column], columns[output.norm_column], output
                )
        return pa.RecordBatch.from_arrays(list(columns.values()), schema=batch.schema)

    def _choose(self, name: str | None) -> OutputLayout:
        layouts = {output.name: output for output in self._run.layouts}
        if name is None and len(layouts) == 1:
            return next(iter(layouts.values()))
        if name is not None and name in layouts:
            return layouts[name]
        near = difflib.get_close_matches(str(name), layouts, n=1)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        listed = ", ".join(f"`{known}`" for known in layouts)
        msg = f"`output` must be one of {listed}. Received: {name!r}.{hint}"
        raise JobError(msg)

    def _key_array(self, batches: list[pa.RecordBatch]) -> np.ndarray:
        schema = pa.schema([self.schema.field(name) for name in self._run.keys])
        columns = pa.Table.from_batches(batches, schema).columns
        if len(columns) == 1 and not columns[0].null_count:
            return np.asarray(columns[0].to_numpy())
        cells = [column.to_pylist() for column in columns]
        return _objects(cells[0] if len(cells) == 1 else list(zip(*cells, strict=True)))


def raw_predictions(units: pa.Array, norms: pa.Array, output: OutputLayout) -> pa.Array:
    """Vector times norm, as a column like that of the unit vectors.

    Args:
        units: Stored vectors, flat lists of fixed size.
        norms: The norm of each, or a list of norms where a row has several vectors.
        output: How they are stored.
    """
    stored = rows_of(units)
    rows = len(stored)
    lengths = rows_of(norms).reshape(rows, output.vectors, 1)
    wide = stored.reshape(rows, output.vectors, output.width).astype(np.float64)
    with np.errstate(all="ignore"):  # kept infinities, and what the stored dtype cannot hold
        restored = (wide * lengths).astype(stored.dtype).reshape(stored.shape)
    return layout.fixed_size_list(restored, units.is_null().to_numpy(zero_copy_only=False))


def _cells(column: pa.ChunkedArray, shape: tuple[int, ...]) -> np.ndarray:
    """A column of lists as ``object[n]`` of arrays of that shape."""
    rows = (row for chunk in column.chunks for row in rows_of(chunk).reshape(-1, *shape))
    return _objects(list(rows))


def _objects(cells: list[Any]) -> np.ndarray:
    array = np.empty(len(cells), object)
    for place, cell in enumerate(cells):
        array[place] = cell
    return array
