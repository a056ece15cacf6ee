"""The columns of a result and their types, vectors and norms among them: any outputs, any rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, cast, get_args

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import Field
from batchnorm_tool.display import near_matches
from batchnorm_tool.errors import InputError, JobError, ModelError
from batchnorm_tool.formats import format_named
from batchnorm_tool.formats.arrow_columns import rows_of, vector_field
from batchnorm_tool.job import Input, Job
from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.norms.normalization import Normalization, Quantized
from batchnorm_tool.norms.output_spec import OutputSpec
from batchnorm_tool.storage.checked_json import LEFT_OUT_IF_NONE, Count, Record

ROW_COLUMN = "row"
ROW_FIELD = pa.field(ROW_COLUMN, pa.int64(), nullable=False)


@dataclass(frozen=True)
class Fitted(Record):
    """What an output's normalization takes from all rows, or from a file; see `Normalization`."""

    mean: Annotated[tuple[float, ...] | None, LEFT_OUT_IF_NONE] = None
    scale: Annotated[float | None, LEFT_OUT_IF_NONE] = None


@dataclass(frozen=True)
class StoredOutput(Record):
    """How one output is stored, as manifests and footers have it; see `Normalization`.

    Its shape is that of what is kept of a prediction. Footers tell no dtype of floats.
    """

    name: str
    shape: tuple[Count, ...]
    norm: str
    axis: int | str
    vector_column: str
    norm_column: str
    dtype: Annotated[str | None, LEFT_OUT_IF_NONE] = None
    truncate: Annotated[Count | None, LEFT_OUT_IF_NONE] = None
    mean: Annotated[tuple[float, ...] | None, LEFT_OUT_IF_NONE] = None
    scale: Annotated[float | None, LEFT_OUT_IF_NONE] = None

    @classmethod
    def of(cls, spec: OutputSpec, dtype: str | None = None) -> StoredOutput:
        """Return what is told of an output where it is stored; ``dtype`` is that of floats."""
        way, columns = spec.normalization, (spec.vector_column, spec.norm_column)
        found = cls(spec.name, spec.shape, spec.norm.label, spec.axis, *columns)
        return replace(
            found, dtype=way.dtype or dtype, truncate=way.truncate, mean=way.mean, scale=way.scale
        )

    @property
    def normalization(self) -> Normalization:
        """What was done to each vector."""
        dtype = cast("Quantized", self.dtype) if self.dtype in get_args(Quantized) else None
        return Normalization(Norm.parse(self.norm), self.truncate, self.mean, dtype, self.scale)

    @property
    def options(self) -> list[str]:
        """What became of a vector besides its norm, in words."""
        found = [f"the first {self.truncate} components"] if self.truncate else []
        found += ["mean direction projected off"] if self.mean else []
        return found + ([f"stored as {self.dtype}"] if self.dtype in get_args(Quantized) else [])


def output_specs(
    job: Job, outputs: Sequence[Field], fitted: Mapping[str, Fitted] | None = None
) -> tuple[OutputSpec, ...]:
    """Return the layout of each of the model's outputs, as the job asks for it.

    What is ``fitted`` may be missing where only the columns matter.
    """
    names = [output.name for output in outputs]
    for name in job.normalize.outputs:
        if name not in names:
            raise JobError(
                f"`normalize.outputs.{name}` is not an output of this run. Expected one "
                f"of: {', '.join(names)}. Received: {name}."
            )
    found = fitted or {}
    return tuple(
        _output_spec(job, output, found.get(output.name, Fitted()), alone=len(outputs) == 1)
        for output in outputs
    )


def _output_spec(job: Job, output: Field, fitted: Fitted, *, alone: bool) -> OutputSpec:
    norm, axis = job.normalize.for_output(output.name)
    options = job.normalize.options_for(output.name)
    way = Normalization(norm, options.truncate, fitted.mean, options.dtype, fitted.scale)
    shape = tuple(size or 0 for size in output.shape)
    if 0 in shape:  # and Arrow would divide by it
        raise ModelError(
            f"The output `{output.name}` has no values. Expected at least one per row. Received: "
            f"shape {shape}. Choose another one with `model.outputs`."
        )
    columns = job.output.columns
    spec = OutputSpec(
        name=output.name,
        predicted_shape=shape,
        axis=axis,
        normalization=way,
        vector_column=columns.vector if alone else output.name,
        norm_column=columns.norm if alone else f"{output.name}_norm",
        float_dtype=job.output.dtype,
    )
    _check_width(output.name, way, spec.predicted_width)
    return spec


def _check_width(name: str, way: Normalization, width: int) -> None:
    """Refuse to keep more components than there are, and a mean of another width."""
    if way.truncate is not None and way.truncate > width:
        raise JobError(
            f"`normalize.truncate` is {way.truncate}, and a vector of the output `{name}` has "
            f"{width} components. Expected at most so many. Received: {way.truncate}."
        )
    kept = way.kept_width(width)
    if way.mean is not None and len(way.mean) != kept:
        raise JobError(
            f"`normalize.project_mean` names a file with {len(way.mean)} numbers. Expected as many "
            f"as are kept of a vector of the output `{name}`: {kept}. Received: {len(way.mean)}."
        )


def single_number_warnings(layouts: Sequence[OutputSpec]) -> Iterator[str]:
    """Say which outputs have vectors of one number: nothing but their signs is left of them."""
    for layout in layouts:
        if layout.width > 1 or layout.norm.name == "none":
            continue
        if layout.vectors > 1:
            yield (
                f"The last axis of `{layout.name}` has one component (shape {layout.shape}), so "
                f"that each of a row's {layout.vectors:,} numbers becomes 1 or -1. To make one "
                "vector per row, set `normalize.axis: all` (`--axis all`)."
            )
        else:
            yield (
                f"`{layout.name}` is one number per row, which becomes 1 or -1. To keep the "
                "numbers, set `normalize.norm: none` (`--norm none`)."
            )


def carried_schema(spec: Input, schema: pa.Schema, rows: int = 0) -> pa.Schema:
    """Return the key and passed-through columns, each once, in the order in which they are written.

    Of an input without ``rows``, a key may have no type.
    """
    keys = key_columns(spec)
    names = dict.fromkeys([*keys, *spec.passthrough])
    for name in names:
        if name not in schema.names:
            where = "input.key" if name in keys else "input.passthrough"
            raise InputError(
                f"`{where}` names the column `{name}`, which the input does not have"
                f"{near_matches(name, schema.names)}. Its columns are: {', '.join(schema.names)}."
            )
        kind = schema.field(name).type
        if name in keys and (pa.types.is_nested(kind) or (rows and pa.types.is_null(kind))):
            raise InputError(
                f"`input.key` names the column `{name}`, which cannot be a key. Expected numbers, "
                f"strings or dates. Received: {kind}. Put it in `input.passthrough` instead."
            )
    fields = [schema.field(name).remove_metadata() for name in names]
    return pa.schema(fields if keys else [ROW_FIELD, *fields])


def key_columns(spec: Input) -> tuple[str, ...]:
    """Return the columns that identify a row; none where the global row number does."""
    if spec.key is None:
        return ()
    return (spec.key,) if isinstance(spec.key, str) else tuple(spec.key)


def output_schema(carried: pa.Schema, layouts: Sequence[OutputSpec]) -> pa.Schema:
    """Return the schema of written rows: carried columns, a vector and a norm for each output."""
    fields = list(carried)
    for layout in layouts:
        fields += [stored_field(layout, layout.stored_shape), _norm_field(layout)]
    names = [field.name for field in fields]
    for name in names:
        if names.count(name) > 1:
            way = "Rename the result with `output.columns`, or remove the other one"
            several = "Remove one of the two from `model.outputs`, or the other one"
            raise JobError(
                "Two columns of the output would be named "
                f"`{name}`. {way if len(layouts) == 1 else several} from `input.passthrough`."
            )
    return pa.schema(fields)


def directories(
    names: Sequence[str], layouts: Sequence[OutputSpec], form: str
) -> dict[str, tuple[str, ...]]:
    """Return which columns the files in each directory hold; refuse outputs that can have none."""
    vectors = [output.vector_column for output in layouts]
    return format_named(form).directories(names, vectors, [one.norm_column for one in layouts])


def flat_field(name: str, dtype: str, shape: tuple[int, ...]) -> pa.Field:
    """Return a column of flat lists, their true shape in its metadata if it has several axes."""
    field = vector_field(name, pa.from_numpy_dtype(np.dtype(dtype)), shape or (1,))
    return field if len(shape) > 1 else field.remove_metadata()


def stored_field(layout: OutputSpec, shape: tuple[int, ...]) -> pa.Field:
    """Return a column of vectors as they are stored."""
    return flat_field(layout.vector_column, str(layout.stored_dtype), shape)


def decoded_schema(schema: pa.Schema, layouts: Sequence[OutputSpec]) -> pa.Schema:
    """Return a schema with floats in the place of what was stored in fewer bits."""
    for layout in layouts:
        at = schema.get_field_index(layout.vector_column)
        if at >= 0 and layout.normalization.dtype:
            schema = schema.set(at, flat_field(layout.vector_column, "float32", layout.shape))
    return schema


def decoded(batch: pa.RecordBatch, layouts: Sequence[OutputSpec]) -> pa.RecordBatch:
    """Return rows with floats in the place of what was stored in fewer bits."""
    for layout in layouts:
        at = batch.schema.get_field_index(layout.vector_column)
        if at >= 0 and layout.normalization.dtype:
            floats = decoded_rows(batch.column(at), layout)
            nulls = batch.column(at).is_null().to_numpy(zero_copy_only=False)
            field = decoded_schema(batch.schema, [layout]).field(at)
            batch = batch.set_column(at, field, fixed_size_list(floats, nulls))
    return batch


def decoded_rows(stored: pa.Array, layout: OutputSpec) -> np.ndarray:
    """Return the vectors of a column as floats ``[n, vectors * width]``, nulls as NaN."""
    rows = rows_of(stored)
    if not layout.normalization.dtype:
        return rows
    vectors = rows.reshape(len(rows) * layout.vectors, layout.stored_width)
    decoded = layout.normalization.decode(vectors, layout.width)
    floats = np.asarray(decoded.reshape(len(rows), layout.vectors * layout.width))
    floats[stored.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return floats


def _norm_field(layout: OutputSpec) -> pa.Field:
    kind = pa.list_(pa.float64(), layout.vectors) if layout.norm_per_vector else pa.float64()
    return pa.field(layout.norm_column, kind)


def fixed_size_list(values: np.ndarray, nulls: np.ndarray | None = None) -> pa.Array:
    """Return rows ``[n, d]``, C-ordered, as a FixedSizeList array without a copy.

    A row is null where ``nulls``, ``bool[n]``, is true.
    """
    rows, size = values.shape
    flat = pa.array(values.reshape(rows * size))
    mask = None if nulls is None or not nulls.any() else pa.array(nulls)
    kind = pa.list_(flat.type, size)
    return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=mask)


@dataclass(frozen=True)
class Normalized:
    """One output of a chunk after normalization.

    Vectors are as stored, those of a row side by side; the norms before it ``float64[n, vectors]``.
    Rows that are ``clipped``, ``bool[n]``, have a component beyond the scale that was fitted;
    ``None`` where none has.
    """

    unit: np.ndarray
    norms: np.ndarray
    clipped: np.ndarray | None = None


def output_table(
    carried: pa.Table,
    layouts: Sequence[OutputSpec],
    results: Mapping[str, Normalized],
    nulls: np.ndarray,
) -> pa.Table:
    """Return the rows of a chunk as they are written.

    Vectors and norms are null where ``nulls``, ``bool[n]``, is true.
    """
    table = carried
    for layout in layouts:
        result = results[layout.name]
        vector = fixed_size_list(result.unit, nulls)
        table = table.append_column(layout.vector_column, vector)
        table = table.append_column(layout.norm_column, _norm_array(layout, result.norms, nulls))
    return table


def _norm_array(layout: OutputSpec, norms: np.ndarray, nulls: np.ndarray) -> pa.Array:
    if layout.norm_per_vector:
        return fixed_size_list(norms, nulls)
    return pa.array(norms[:, 0], mask=nulls if nulls.any() else None)


def raw_predictions(units: pa.Array, norms: pa.Array, output: OutputSpec) -> pa.Array:
    """Return vector times norm, as a column like that of the unit vectors; see `OutputSpec`."""
    stored = rows_of(units)
    rows = len(stored)
    lengths = rows_of(norms).reshape(rows, output.vectors, 1)
    wide = stored.reshape(rows, output.vectors, output.width).astype(np.float64)
    with np.errstate(all="ignore"):  # kept infinities, and what the stored dtype cannot hold
        restored = (wide * lengths).astype(stored.dtype).reshape(stored.shape)
    return fixed_size_list(restored, units.is_null().to_numpy(zero_copy_only=False))
