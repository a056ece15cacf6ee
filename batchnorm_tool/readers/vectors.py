"""Open vectors that are stored: to read them with keys and norms, or as predictions to compare.

A run or a store holds unit vectors; for a comparison they come as the predictions that they were
made of, vector times norm.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import python_values
from batchnorm_tool.display import did_you_mean, near_matches, plural
from batchnorm_tool.errors import InputError, JobError
from batchnorm_tool.formats import DATA_DIRECTORY
from batchnorm_tool.formats.arrow_columns import rows_of, shape_of
from batchnorm_tool.norms.output_spec import OutputSpec
from batchnorm_tool.pipeline.manifest import MANIFEST_PATH
from batchnorm_tool.pipeline.plan import PLAN_PATH
from batchnorm_tool.readers.run import open_run
from batchnorm_tool.readers.source import VectorSource, check_key, check_rank, open_files
from batchnorm_tool.readers.store import open_snapshot
from batchnorm_tool.store.state import is_store

if TYPE_CHECKING:
    import pandas as pd


# A run has one of these: finished, under way, or damaged.
_MARKS = (MANIFEST_PATH, PLAN_PATH)
_BATCH_ROWS = 65_536


def read(
    path: str | os.PathLike[str],
    raw: bool = False,  # noqa: FBT001, FBT002
    version: int | None = None,
    *,
    mixed_spaces: bool = False,
    decode: bool = True,
) -> StoredVectors:
    """Open the vectors of a finished run or of a store; rows are read when they are asked for.

    Args:
        path: The run's output directory, or the ``vectors`` directory in it; any output format. Or
            a store's dataset, of which the live version is read.
        raw: Give the predictions as they were before normalization: vector times norm, multiplied
            in float64 and rounded once to the stored dtype. Not promised: what a kept prediction
            with NaN or infinity held, or one that the stored dtype cannot hold.
        version: Of a store: read this kept version instead of the live one.
        mixed_spaces: Also read files of a run that are of another vector space than it: parts of
            another run that were copied into it. Without it, reading them is refused.
        decode: Undo ``normalize.dtype``, int8 or binary: vectors are float32 then. If false, they
            come as they are stored, int8[k] or uint8[ceil(k / 8)].

    Returns:
        The vectors, with their keys and norms. Not promised: that a bit that flipped on the disk is
        noticed; `batchnorm_tool.verify` reads every checksum.

    Raises:
        JobError: A run has no versions, or the store does not keep that one; or what is stored is
            asked for as predictions.
        InputError: ``path`` is neither a finished run nor a store; the message says what it is.
        Damaged: Its manifest, or the store's state, is not what its checksum says.

    Example:
        >>> from batchnorm_tool import read
        >>> keys, vectors, norms = read("runs/digits").to_numpy()  # doctest: +SKIP
        >>> vectors.shape, norms.shape  # doctest: +SKIP
        ((1797, 32), (1797,))
    """
    name = os.fspath(path)
    if raw and not decode:
        raise JobError(
            "`raw=True` gives predictions, which are made of decoded vectors, and `decode=False` "
            "gives vectors as they are stored. Remove one of them."
        )
    if is_store(name):
        return StoredVectors(open_snapshot(name, version, decode=decode), raw)
    run = open_run(name, decode=decode, one_space=not mixed_spaces)
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
            make the key. Vectors: ``[n, *shape]`` in the stored dtype, decoded ones in float32;
            nulls of integers are 0. Norms: ``float64[n]``, or
            ``float64[n, v]`` where a row has ``v`` vectors.

        Raises:
            JobError: There are several outputs and none is named, or none of that name.
            Damaged: A file is missing, or cannot be read.
        """
        chosen = self._choose(output)
        field = self.schema.field(chosen.vector_column)
        shape = shape_of(field) if chosen.shape else ()
        vectors = np.empty((self.rows, *shape), field.type.value_type.to_pandas_dtype())
        sizes = (chosen.vectors,) if chosen.norm_per_vector else ()
        norms = np.empty((self.rows, *sizes), np.float64)
        keys: list[pa.RecordBatch] = []
        row = 0
        names = [*self._source.keys, chosen.vector_column, chosen.norm_column]
        for batch in self._batches(names, _BATCH_ROWS):
            place = slice(row, row + batch.num_rows)
            flat = rows_of(batch[chosen.vector_column])
            vectors[place] = flat.reshape(batch.num_rows, *shape)
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
            shape = shape_of(self.schema.field(output.vector_column)) if output.shape else ()
            cells[output.vector_column] = _cells(table[output.vector_column], shape)
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
            return self._source.outputs[0]
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
            with contextlib.suppress(pa.ArrowInvalid):  # a time of day with nanoseconds
                return np.asarray(columns[0].to_numpy())
        cells = [python_values(column) for column in columns]
        return _objects(cells[0] if len(cells) == 1 else list(zip(*cells, strict=True)))


def _cells(column: pa.ChunkedArray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a column of lists as ``object[n]`` of arrays of that shape."""
    return _objects([row for chunk in column.chunks for row in rows_of(chunk).reshape(-1, *shape)])


def _objects(cells: list[Any]) -> np.ndarray:
    array = np.empty(len(cells), object)
    for place, cell in enumerate(cells):
        array[place] = cell
    return array


def open_predictions(
    path: str | os.PathLike[str],
    column: str | Sequence[str] | None = None,
    key: str | Sequence[str] | None = None,
    *,
    mixed_spaces: bool = False,
) -> VectorSource:
    """Open stored predictions; no more rows are read than it takes to tell their width.

    Files of several vector spaces are refused, unless they may be ``mixed_spaces``.

    Of a run or a store raw predictions are restored, ``column`` is an output, and its own key is
    the default. Of data the default is the only column with lists of numbers, and no key: rows go
    by their number.
    """
    name = os.fspath(path)
    columns, keys = checked_names("column", column), checked_names("key", key)
    if is_store(name):
        found = _chosen(open_snapshot(name), columns, keys)
    elif _is_run(name):
        found = _chosen(open_run(name, one_space=not mixed_spaces), columns, keys)
    else:
        found = open_files(name, columns, keys, mixed_spaces=mixed_spaces)
    found.provenance  # noqa: B018  (here is where it warns)
    return found


def _chosen(source: VectorSource, column: tuple[str, ...], key: tuple[str, ...]) -> VectorSource:
    output = chosen_output(source.outputs, source.name, column)
    check_rank(source.name, output.name, output.shape)
    check_key(source.name, key, source.schema)
    return replace(source, chosen=output, keys=key or source.keys)


def _is_run(path: str) -> bool:
    root = Path(path)
    above = [root.parent] if root.name == DATA_DIRECTORY else []
    # Not `Path.is_file`, which raises for a name that is too long.
    return any(os.path.isfile(at / name) for at in [root, *above] for name in _MARKS)  # noqa: PTH113


def chosen_output(layouts: Sequence[OutputSpec], path: str, column: Sequence[str]) -> OutputSpec:
    """Return the output that ``column`` names, by its own name or by that of its column."""
    if not column and len(layouts) == 1:
        return layouts[0]
    known = {one.vector_column: one for one in layouts} | {one.name: one for one in layouts}
    if len(column) == 1 and column[0] in known:
        return known[column[0]]
    received = ", ".join(f"`{name}`" for name in column)
    hint = near_matches(column[0], known) if column else ""
    raise InputError(
        f"{path}: this run has {plural(len(layouts), 'output')}. Expected `column` to be one of: "
        f"{', '.join(f'`{one.name}`' for one in layouts)}. "
        f"Received: {received or 'none'}{hint}."
    )


def several(given: Any) -> list[Any]:
    """Return a list of several things, or of the only one."""
    is_one = isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable)
    return [given] if is_one or (isinstance(given, np.ndarray) and not given.ndim) else [*given]


def checked_names(argument: str, given: Any) -> tuple[str, ...]:
    """Return names of columns, given as one or several; none for ``None``."""
    names = [] if given is None else several(given)
    if not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
        raise JobError(
            f"`{argument}` must be the name of a column, or a list of distinct names. "
            f"Received: {given!r}."
        )
    return tuple(names)


def checked_path(argument: str, given: Any) -> str:
    """Return a path as text."""
    if not isinstance(given, (str, os.PathLike)):
        raise JobError(f"`{argument}` must be a path. Received: {given!r}.")
    return os.fspath(given)


def checked_whole(argument: str, number: Any, least: int = 0) -> int:
    """Return an integer of a certain size at least."""
    if not _is_whole(number, least):
        raise JobError(f"`{argument}` must be an integer, {least} or more. Received: {number!r}.")
    return int(number)


def checked_ks(given: Any) -> tuple[int, ...]:
    """Return numbers of neighbours, given as one or several: ascending, each once."""
    numbers = several(given)
    if not numbers or not all(_is_whole(k, 1) for k in numbers):
        raise JobError(f"`k` must be numbers of neighbours, 1 or more each. Received: {given!r}.")
    return tuple(sorted({int(k) for k in numbers}))


def _is_whole(number: Any, least: int) -> bool:
    is_number = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
    return is_number and number >= least
