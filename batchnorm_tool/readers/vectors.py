"""Read a finished run or a store back: keys, vectors and norms, whatever form they lie in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchnorm_tool.display import did_you_mean, plural
from batchnorm_tool.errors import JobError
from batchnorm_tool.formats.arrow_columns import rows_of
from batchnorm_tool.pipeline.output_schema import OutputSpec
from batchnorm_tool.readers.run import open_run
from batchnorm_tool.readers.source import VectorSource
from batchnorm_tool.readers.store import open_snapshot
from batchnorm_tool.store.state import is_store

if TYPE_CHECKING:
    import pandas as pd


_BATCH_ROWS = 65_536


def read(
    path: str | os.PathLike[str],
    raw: bool = False,  # noqa: FBT001, FBT002
    version: int | None = None,
) -> StoredVectors:
    """Open the vectors of a finished run or of a store; rows are read when they are asked for.

    Args:
        path: The run's output directory, or the ``vectors`` directory in it; any output format. Or
            a store's dataset, of which the live version is read.
        raw: Give the predictions as they were before normalization: vector times norm, multiplied
            in float64 and rounded once to the stored dtype. Not promised: what a kept prediction
            with NaN or infinity held, or one that the stored dtype cannot hold.
        version: Of a store: read this kept version instead of the live one.

    Returns:
        The vectors, with their keys and norms. Not promised: that a bit that flipped on the disk is
        noticed; `batchnorm_tool.verify` reads every checksum.

    Raises:
        JobError: A run has no versions, or the store does not keep that one.
        InputError: ``path`` is neither a finished run nor a store; the message says what it is.
        Damaged: Its manifest, or the store's state, is not what its checksum says.

    Example:
        >>> from batchnorm_tool import read
        >>> keys, vectors, norms = read("runs/digits").to_numpy()  # doctest: +SKIP
        >>> vectors.shape, norms.shape  # doctest: +SKIP
        ((1797, 32), (1797,))
    """
    name = os.fspath(path)
    if is_store(name):
        return StoredVectors(open_snapshot(name, version), raw)
    run = open_run(name)
    if version is not None:
        raise JobError(
            f"`version` names a version of a store, and `{name}` is a run, which has no versions. "
            f"Received: {version}. Omit it."
        )
    return StoredVectors(run, raw)


@dataclass(frozen=True)
class StoredVectors:
    """The vectors of a finished run or of a version of a store, their keys and their norms.

    Rows of a run come in the order of the input; those of a store in no particular order. Null
    vectors and norms (policy ``nullify``) are NaN in NumPy and pandas. In batches they are null,
    unless the run was written as NPY, which knows NaN alone.
    """

    _source: VectorSource
    _raw: bool = False

    def __repr__(self) -> str:
        return (
            f"StoredVectors({self.path!r}: {plural(self.rows, 'row')} of {', '.join(self.outputs)})"
        )

    @property
    def path(self) -> str:
        """The run's output directory, or the store's dataset."""
        return self._source.path

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The run's manifest, or the record of the refresh that made the version, as plain data."""
        return self._source.document

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the model's outputs that are stored, in order."""
        return tuple(output.name for output in self._source.outputs)

    @property
    def schema(self) -> pa.Schema:
        """Of every batch.

        Of a run: key and passed-through columns, then vectors and norms. Of a store: keys, vector
        and norm, ``feature_hash``, ``passthrough_hash``, ``status`` (``good``, or ``stale:`` and
        why: the vector is that of an earlier refresh), ``version`` (in which the row was written),
        then passed-through columns.
        """
        return self._source.schema

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._source.rows

    def __len__(self) -> int:
        return self.rows

    def batches(self, batch_rows: int = _BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Stream all columns, a run's in the order of the input.

        Args:
            batch_rows: Rows of a batch; the last batch of each part is shorter, and so are those of
                a store with wide rows. Memory is bounded by it.

        Returns:
            Batches of the schema `schema`, whichever format was written. Vectors are flat lists of
            fixed size; where their rank is higher, their shape is in the field's metadata.

        Raises:
            JobError: ``batch_rows`` is below 1.
            Damaged: A file is missing, or cannot be read.
        """
        if batch_rows < 1:
            raise JobError(f"`batch_rows` must be at least 1. Received: {batch_rows}.")
        return self._batches(self._source.schema.names, batch_rows)

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
        vectors = np.empty((self.rows, *chosen.shape), self._source.dtype)
        sizes = (chosen.vectors,) if chosen.norm_per_vector else ()
        norms = np.empty((self.rows, *sizes), np.float64)
        keys: list[pa.RecordBatch] = []
        row = 0
        names = [*self._source.keys, chosen.vector_column, chosen.norm_column]
        for batch in self._batches(names, _BATCH_ROWS):
            place = slice(row, row + batch.num_rows)
            flat = rows_of(batch[chosen.vector_column])
            vectors[place] = flat.reshape(batch.num_rows, *chosen.shape)
            norms[place] = rows_of(batch[chosen.norm_column])
            keys.append(batch.select(list(self._source.keys)))
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
        for output in self._source.outputs:
            cells[output.vector_column] = _cells(table[output.vector_column], output.shape)
            if output.norm_per_vector:
                cells[output.norm_column] = _cells(table[output.norm_column], (output.vectors,))
        rest = table.drop_columns(list(cells)).to_pandas()
        columns = {name: cells.get(name, rest.get(name)) for name in table.column_names}
        return pd.DataFrame(columns, index=rest.index)

    def _batches(self, names: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        return (self._source.read_raw if self._raw else self._source.read)(names, batch_rows)

    def _choose(self, name: str | None) -> OutputSpec:
        outputs = {output.name: output for output in self._source.outputs}
        if name is None and len(outputs) == 1:
            return next(iter(outputs.values()))
        if name is not None and name in outputs:
            return outputs[name]
        listed = ", ".join(f"`{known}`" for known in outputs)
        raise JobError(
            f"`output` must be one of {listed}. Received: {name!r}.{did_you_mean(name, outputs)}"
        )

    def _key_array(self, batches: list[pa.RecordBatch]) -> np.ndarray:
        schema = self._source.schema_of(self._source.keys)
        columns = pa.Table.from_batches(batches, schema).columns
        if len(columns) == 1 and not columns[0].null_count:
            return np.asarray(columns[0].to_numpy())
        cells = [column.to_pylist() for column in columns]
        return _objects(cells[0] if len(cells) == 1 else list(zip(*cells, strict=True)))


def _cells(column: pa.ChunkedArray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a column of lists as ``object[n]`` of arrays of that shape."""
    rows = (row for chunk in column.chunks for row in rows_of(chunk).reshape(-1, *shape))
    return _objects(list(rows))


def _objects(cells: list[Any]) -> np.ndarray:
    array = np.empty(len(cells), object)
    for place, cell in enumerate(cells):
        array[place] = cell
    return array
