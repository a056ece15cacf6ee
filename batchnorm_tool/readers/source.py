"""Vectors that are stored: what can be asked of them anywhere, and those in files and arrays.

Files are read as a run without a model reads them.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from batchnorm_tool import features
from batchnorm_tool.chunk import Field, Reason, fitting_rows, numbered
from batchnorm_tool.comparison.norm_survey import Provenance, SourceFacts
from batchnorm_tool.display import near_matches
from batchnorm_tool.errors import Damaged, InputError, WorkFailed, warn
from batchnorm_tool.features import FeatureReader
from batchnorm_tool.features.matching import VECTOR, names_of
from batchnorm_tool.formats.arrow_columns import provenance_in, rows_of
from batchnorm_tool.inputs import reading
from batchnorm_tool.inputs.files import Table
from batchnorm_tool.inputs.table import open_table
from batchnorm_tool.job import Input
from batchnorm_tool.norms.array import array_of
from batchnorm_tool.norms.norm import Anything, Norm
from batchnorm_tool.norms.normalization import Normalization
from batchnorm_tool.norms.output_spec import OutputSpec
from batchnorm_tool.pipeline import differences, output_schema
from batchnorm_tool.pipeline.plan import Identity

# Rows of a batch of vectors: as many as a core's cache holds, and at most so many.
_BATCH_ROWS = 16_384
_BATCH_BYTES = 8 * 2**20
# Rows of scalar columns, without vectors.
_COLUMN_ROWS = 65_536
# Rows by which the width of lists of open length is told, as a run does.
_SAMPLE_ROWS = 256
_NAME = "array"
# Digits of a hash that messages show.
_DIGITS = 12
MIX = "To mix them all the same, set `mixed_spaces` (`--mixed-spaces`)."


@dataclass(frozen=True)
class PredictionBatch:
    """Consecutive rows of stored predictions, with the further columns asked for.

    Vectors are ``[n, d]`` in float16, float32 or float64, C order, possibly read-only: a view of
    what was read where that is so stored. Those that are ``missing``, ``bool[n]``, are NaN: a
    component is null, or the width another one; a NaN or an infinity in a vector makes none.
    """

    first_row: int
    vectors: np.ndarray
    missing: np.ndarray
    columns: pa.Table

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.missing)


@dataclass(frozen=True, kw_only=True)
class VectorSource(ABC):
    """Stored vectors: of a run, a version of a store, files or an array; read when asked for.

    Attributes:
        path: The run's output directory, the store's dataset, or as ``name``.
        name: What it was called by whoever opened it.
        kind: ``"run"``, ``"store"``, or ``"data"`` for files and arrays.
        dtype: NumPy's name of the type of the vectors' components.
        keys: The columns that name a row; none where its number does.
        chosen: The one that `batches` gives; the first one otherwise.
    """

    path: str
    name: str
    kind: Literal["run", "store", "data"]
    dtype: str
    schema: pa.Schema
    keys: tuple[str, ...]
    outputs: tuple[OutputSpec, ...]
    chosen: OutputSpec | None = None

    @property
    @abstractmethod
    def rows(self) -> int:
        """Number of rows."""

    @property
    def document(self) -> Mapping[str, Any]:
        """What was recorded when a run, or a version of a store, was made, as plain data."""
        raise NotImplementedError

    @cached_property
    def provenance(self) -> Provenance | None:
        """What made the vectors of `output`; ``None`` where nothing tells."""
        return None

    @property
    def output(self) -> OutputSpec:
        """The output that `batches` gives."""
        return self.chosen or self.outputs[0]

    @property
    def width(self) -> int:
        """Components of a vector."""
        return self.output.width

    @property
    def column(self) -> tuple[str, ...]:
        """What names its vectors: of a run or a store the output, of files a column or several."""
        return (self.output.name,)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """All columns but the vectors, keys included."""
        vectors = {output.vector_column for output in self.outputs}
        return tuple(name for name in self.schema.names if name not in vectors)

    @abstractmethod
    def read(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield columns of all rows in order, in batches of at most ``batch_rows``.

        Raises:
            InputError: An input file cannot be read, or was replaced.
            Damaged: A file of a run or a store is missing, or cannot be read.
        """

    def read_raw(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield as `read` does, with predictions in the place of unit vectors."""
        outputs = [o for o in self.outputs if o.norm_column and o.vector_column in columns]
        wanted = dict.fromkeys([*columns, *(output.norm_column for output in outputs)])
        schema = self.schema_of(columns)
        for batch in self.read(tuple(wanted), batch_rows):
            found = dict(zip(wanted, batch.columns, strict=True))
            for output in outputs:
                units, norms = found[output.vector_column], found[output.norm_column]
                found[output.vector_column] = output_schema.raw_predictions(units, norms, output)
            yield pa.RecordBatch.from_arrays([found[name] for name in columns], schema=schema)

    def batches(self, columns: Sequence[str] = ()) -> Iterator[PredictionBatch]:
        """Stream the raw predictions of `output` with further columns; every call starts over.

        A batch has at most 16,384 rows, fewer where vectors are wide: memory does not depend on the
        number of rows.

        Raises:
            InputError: There is no such column; otherwise as `read`.
        """
        check_columns(self.name, columns, self.columns)
        return self._batches([*columns])

    def _batches(self, columns: list[str]) -> Iterator[PredictionBatch]:
        row_bytes = self.width * np.dtype(self.dtype).itemsize
        most = fitting_rows(row_bytes, _BATCH_BYTES, _BATCH_ROWS)
        vector = self.output.vector_column
        for first_row, batch in numbered(self.read_raw([vector, *columns], most)):
            missing = batch[vector].is_null().to_numpy(zero_copy_only=False)
            others = pa.Table.from_batches([batch]).select(columns)
            yield PredictionBatch(first_row, rows_of(batch[vector]), missing, others)

    def read_columns(self, columns: Sequence[str]) -> pa.Table:
        """Load columns without vectors: keys, labels; at least one.

        Raises:
            InputError: There is no such column; otherwise as `read`.
        """
        check_columns(self.name, columns, self.columns)
        return pa.Table.from_batches(self.read(columns, _COLUMN_ROWS), self.schema_of(columns))

    def schema_of(self, columns: Sequence[str]) -> pa.Schema:
        """Pick some columns of the schema, in the order wanted."""
        return pa.schema([self.schema.field(name) for name in columns])

    def locate(self, row: int) -> str:
        """Say where a row lies, such as ``data/a.parquet, row 7``: its number in the file."""
        return f"{self.name}, row {row}"

    def facts(self) -> SourceFacts:
        """What is known without reading rows."""
        return {
            "path": self.name,
            "kind": self.kind,
            "rows": self.rows,
            "width": self.width,
            "dtype": self.dtype,
            "key": list(self.keys),
            "column": self.column[0] if len(self.column) == 1 else list(self.column),
            "provenance": self.provenance,
        }


def provenance_of(
    source: VectorSource, identity: Identity | None, space_id: str, model: str | None
) -> Provenance:
    """Say what made the vectors of a run or a store; see `VectorSource.provenance`."""
    space = identity.space if identity else {}
    content = space.get("model")
    return {
        "space": space_id,
        "model": model,
        "model_sha256": content if isinstance(content, str) else None,
        "output": source.output.name,
        "norm": source.output.norm.label,
        "versions": identity.versions if identity else {},
        "made_of": dict(space),
    }


@dataclass(frozen=True)
class SpaceComparison:
    """Whether two vector spaces are the same (None: not known), and if not, how they differ."""

    same: bool | None
    words: str = ""


def compare_spaces(a: Provenance | None, b: Provenance | None) -> SpaceComparison:
    """Tell whether two sets lie in one space."""
    # Of runs, the raw predictions are compared, so that their norms make no difference. Of runs
    # over stored predictions the model is not known.
    one, other = a or {}, b or {}
    if not (one.get("space") and other.get("space")):
        return SpaceComparison(None)
    if not ("made_of" in one and "made_of" in other):  # lone parts tell no more than the space's id
        same = None if one["space"] == other["space"] else False
        parts = ["the vector space recorded in their files"]
    else:
        before, after = _raw_space(one), _raw_space(other)
        parts = [*differences.changes(before, after, _unasked(before, after))]
        is_known = before["model"] is not None and after["model"] is not None
        # What was left out or projected off is known of stored predictions, too.
        lost = [[*space["norms"].values()] for space in (before, after)]
        differs = before["model"] != after["model"] or lost[0] != lost[1]
        same = False if differs else (not parts if is_known else None)
    if same is not False:
        return SpaceComparison(same)
    return SpaceComparison(
        same,
        f"The two sets are in different vector spaces: {', '.join(parts)}. "
        f"A: {_describe(one)}. B: {_describe(other)}.",
    )


def _raw_space(provenance: Provenance) -> dict[str, Any]:
    """Return what the raw predictions of one output are made of."""
    made_of, output = dict[str, Any](provenance["made_of"]), provenance["output"]
    # A norm is undone; what was left out, or projected off, is not there any more.
    norm = made_of.get("norms", {}).get(output, {})
    lost = {name: norm[name] for name in ("truncate", "mean") if name in norm}
    return {**made_of, "output": output, "norms": {output: lost}}


def _unasked(*spaces: Mapping[str, Any]) -> set[str]:
    """Return what makes no difference to raw predictions of one output."""
    # Columns may be called otherwise, and the model be fed the same; not so in another order.
    names = [{name: sorted(c) for name, c in s.get("features", {}).items()} for s in spaces]
    return {"outputs"} | ({"features"} if names[0] != names[1] else set())


def _describe(provenance: Provenance) -> str:
    if "made_of" not in provenance:
        return f"space {provenance['space'][:_DIGITS]}, norm {provenance['norm']}"
    model, named = provenance["model"], "stored predictions"
    if model is not None:
        named = f"model `{model}` ({(provenance['model_sha256'] or '')[:_DIGITS]})"
    return f"{named}, output `{provenance['output']}`, norm {provenance['norm']}"


def check_spaces(a: VectorSource, b: VectorSource, *, mixed: bool) -> None:
    """Refuse two sets that are known to lie in different spaces, unless they may be ``mixed``."""
    found = compare_spaces(a.provenance, b.provenance)
    if found.same is False and not mixed:
        raise InputError(
            f"{found.words} Expected: one space. Received: {a.name} (A) and {b.name} (B). {MIX}"
        )


def check_columns(
    path: str, names: Sequence[str], stored: Sequence[str], argument: str = ""
) -> None:
    """Refuse names that are not among the stored columns."""
    for name in names:
        if name not in stored:
            named_by = f", which `{argument}` names" if argument else ""
            known = ", ".join(f"`{each}`" for each in stored)
            expected = f"Expected one of: {known}." if stored else "It has only vectors."
            raise InputError(
                f"{path}: has no column `{name}`{named_by}{near_matches(name, stored)}. {expected} "
                f"Received: `{name}`."
            )


def check_key(path: str, key: Sequence[str], schema: pa.Schema) -> None:
    """Refuse a key that is not there, or that cannot name a row."""
    check_columns(path, key, schema.names, "key")
    for name in key:
        kind = schema.field(name).type
        if pa.types.is_nested(kind) or pa.types.is_null(kind):
            raise InputError(
                f"{path}: `key` names the column `{name}`, which cannot be a key. Expected "
                f"numbers, strings or dates. Received: {kind}. Choose another column."
            )


def check_rank(path: str, column: str, shape: Sequence[int | None]) -> None:
    """Refuse rows that hold more than one vector."""
    if len(shape) > 1:
        raise InputError(
            f"{path}: `{column}` holds an array of shape {tuple(shape)} in each row. Expected one "
            "vector per row. Received: several. Store them flat, or choose another column with "
            "`column`."
        )


@dataclass(frozen=True, kw_only=True)
class FileVectors(VectorSource):
    """Vectors in data files, in a column that is stored or made of several scalar ones.

    Of these, the schema has one in their place, called as the first of them.
    """

    table: Table
    stored: tuple[str, ...]
    reader: FeatureReader

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.table.rows

    @property
    def column(self) -> tuple[str, ...]:
        """The stored columns."""
        return self.stored

    @cached_property
    def provenance(self) -> Provenance | None:
        """What the footer of a lone part of a run tells of these vectors."""
        written: Mapping[str, Any] = provenance_in(self.table.schema)
        try:
            outputs = {one["vector_column"]: one for one in written["outputs"]}
            made = outputs[self.column[0]]
            found = Provenance(space=written["space"], output=made["name"], norm=made["norm"])
        except (TypeError, KeyError):  # another program's metadata, or another column
            return None
        if found["norm"] != "none":
            warn(
                f"{self.name}: is a part of a finished run, and contains unit vectors "
                f"(norm {found['norm']}). Use the directory of the run to get its raw predictions."
            )
        return found if len(self.table.spaces) == 1 else None

    def read(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield columns of all rows, in batches of at most ``batch_rows``."""
        vector, schema = self.column[0], self.schema_of(columns)
        wanted = [name for name in columns if name != vector]
        stored = tuple(dict.fromkeys([*(self.column if vector in columns else ()), *wanted]))
        self.table.check(stored)
        for file in self.table.files:
            try:
                for batch in reading.read_rows(file, stored, 0, file.rows, batch_rows):
                    found = dict(zip(stored, batch.columns, strict=True))
                    if vector in columns:
                        found[vector] = self._vectors(batch)
                    yield pa.RecordBatch.from_arrays([found[n] for n in columns], schema=schema)
            except (Damaged, WorkFailed) as error:  # nothing was written that could be resumed
                raise InputError(error.message) from error

    def _vectors(self, batch: pa.RecordBatch) -> pa.Array:
        arrays, faults = self.reader.read(pa.Table.from_batches([batch]))
        return output_schema.fixed_size_list(arrays[VECTOR], faults != Reason.GOOD)

    def locate(self, row: int) -> str:
        """Say where a row lies, for messages."""
        file, place = reading.locate(self.table.files, row)
        return f"{file.path}, row {place}"


def open_files(
    path: str, column: tuple[str, ...], key: tuple[str, ...], *, mixed_spaces: bool = False
) -> FileVectors:
    """Open data files; see `batchnorm_tool.readers.vectors.open_predictions`."""
    table = open_table(Input(path=path, key=list(key) or None))
    if len(table.spaces) > 1 and not mixed_spaces:
        named = [f"space {space[:_DIGITS]} in {file}" for space, file in table.spaces.items()]
        raise InputError(
            f"{path}: its files are of {len(named)} vector spaces. Expected: one. "
            f"Received: {', '.join(named[:2])}. Select one with a glob. {MIX}"
        )
    with _naming(path):
        column = names_of(table.schema, column, key)
    spec = Input(path=path, key=list(key) or None, features=list(column) or None)
    check_columns(path, column, table.schema.names, "column")
    check_key(path, key, table.schema)
    table.check(key)
    matched, vectors = _vectors(table, spec, path)
    field = output_schema.flat_field(matched[0], vectors.dtype, (int(vectors.shape[0] or 0),))
    others = [table.schema.field(name) for name in table.columns if name not in matched]
    return FileVectors(
        path=path,
        name=path,
        kind="data",
        dtype=vectors.dtype,
        schema=pa.schema([*others, field]),
        keys=key,
        outputs=(_raw(field),),
        table=table,
        stored=matched,
        reader=FeatureReader({VECTOR: matched}, (vectors,), spec, check_nonfinite=False),
    )


def _raw(field: pa.Field) -> OutputSpec:
    way = Normalization(Norm("none"))
    return OutputSpec(field.name, (field.type.list_size,), -1, way, field.name, "")


def _vectors(table: Table, spec: Input, path: str) -> tuple[tuple[str, ...], Field]:
    """Return the columns of the vectors, and what they hold."""
    with _naming(path):
        columns = features.match_features(table.schema, (), spec)
        (stored,) = features.stored_fields(table.schema, columns)
        check_rank(path, columns[VECTOR][0], stored.shape)
        head = reading.head_with_lists(table, columns[VECTOR], _SAMPLE_ROWS)
        _check_holds_vectors(head, columns[VECTOR])
        (vectors,) = features.infer_fields(head, columns, (), spec)
    return columns[VECTOR], vectors


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Put the path before whatever is wrong with its columns."""
    try:
        yield
    except InputError as error:
        if error.message.startswith(path):
            raise
        raise InputError(f"{path}: {error.message}") from error
    except (Damaged, WorkFailed) as error:
        raise InputError(error.message) from error


def _check_holds_vectors(sample: pa.Table, columns: Sequence[str]) -> None:
    for name in columns:
        if sample.num_rows and reading.first_list(sample[name]) is None:
            raise InputError(
                f"The column `{name}` does not contain vectors. Expected lists of numbers. "
                "Received: only nulls and empty lists. Choose another column with `column`."
            )


@dataclass(frozen=True, kw_only=True)
class ArrayVectors(VectorSource):
    """Vectors of an array ``[n, d]``."""

    array: Anything

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.array)

    def read(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield all rows, in batches of at most ``batch_rows``; there is one column."""
        for start in range(0, len(self.array), batch_rows):
            vectors = np.ascontiguousarray(self.array[start : start + batch_rows], self.dtype)
            lists = output_schema.fixed_size_list(vectors)
            yield pa.RecordBatch.from_arrays([lists] * len(columns), columns)


def predictions_of_array(array: Anything) -> VectorSource:
    """Take an array ``[n, d]`` of real numbers for stored predictions; integers become float64."""
    vectors = array_of(array)
    if vectors.ndim != 2 or not vectors.shape[1]:
        raise InputError(
            "An array of predictions must have one row per vector. Expected the shape (rows, "
            f"width). Received: {vectors.shape}. Reshape it."
        )
    if vectors.dtype not in (np.float16, np.float32, np.float64):
        vectors = vectors.astype(np.float64 if vectors.dtype.kind in "iub" else np.float32)
    dtype = str(vectors.dtype.newbyteorder("="))
    field = output_schema.flat_field(_NAME, dtype, (vectors.shape[1],))
    return ArrayVectors(
        path=_NAME,
        name=_NAME,
        kind="data",
        dtype=dtype,
        schema=pa.schema([field]),
        keys=(),
        outputs=(_raw(field),),
        array=vectors,
    )
