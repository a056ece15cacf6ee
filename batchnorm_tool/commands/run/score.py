"""Score rows that are in memory already: the same arithmetic as a run, without files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np
import pyarrow as pa

from batchnorm_tool import models
from batchnorm_tool.chunk import Chunk, Field, Reason
from batchnorm_tool.commands.run.fit import given, read_means
from batchnorm_tool.display import plural
from batchnorm_tool.errors import BadRows, InputError, JobError, warn
from batchnorm_tool.features import FeatureReader, infer_fields, match_features
from batchnorm_tool.formats.arrow_columns import vector_field
from batchnorm_tool.job import Engine, Input, Job, Model, Normalize, Output
from batchnorm_tool.models import batching, conversion, placement, security
from batchnorm_tool.models.batching import Predictor
from batchnorm_tool.norms.output_spec import OutputSpec
from batchnorm_tool.norms.stats import VectorStats
from batchnorm_tool.pipeline import output_schema
from batchnorm_tool.pipeline.scored_chunk import (
    Scored,
    predict_rows,
    score_chunk,
    warn_of_negative_ids,
)

if TYPE_CHECKING:
    import pandas as pd


_NAMED_ROWS = 5
_BATCH_SIZE = 1024
# Of these, a few are predicted to see what the model does with rows.
_SAMPLE_ROWS = 256
BackendName = Literal["tensorflow", "onnxruntime", "auto"]


@dataclass(frozen=True)
class Result:
    """Unit vectors, their norms and statistics, for one output of a model or several.

    Attributes:
        keys: The key of each row ``[n]``; the row number where no key was named.
        results: For each output's name, unit vectors ``[n, *shape]`` and norms (float64 ``[n]``,
            or ``[n, v]`` where a row has several vectors).
        statistics: For each output's name, the statistics of its raw predictions.
    """

    keys: np.ndarray
    results: Mapping[str, tuple[np.ndarray, np.ndarray]]
    statistics: Mapping[str, VectorStats]

    def __repr__(self) -> str:
        return f"Result({plural(len(self.keys), 'row')} of {', '.join(self.results)})"

    @property
    def vectors(self) -> np.ndarray:
        """Unit vectors of the only output."""
        return self._only()[0]

    @property
    def norms(self) -> np.ndarray:
        """Norms of the only output, float64."""
        return self._only()[1]

    def to_pandas(self) -> pd.DataFrame:
        """Return one row for each row: key, and for each output its vector and norm."""
        import pandas as pd

        columns: dict[str, object] = {"key": self.keys}
        for name, (vectors, norms) in self.results.items():
            alone = len(self.results) == 1
            columns["vector" if alone else name] = list(vectors)
            columns["norm" if alone else f"{name}_norm"] = list(norms)
        return pd.DataFrame(columns)

    def _only(self) -> tuple[np.ndarray, np.ndarray]:
        if len(self.results) != 1:
            raise JobError(
                f"The model has several outputs: {', '.join(self.results)}. Choose one from "
                "`results`."
            )
        return next(iter(self.results.values()))


def score(  # noqa: PLR0913  (each is a key of the job file)
    model: Any,
    data: Any,
    norm: str = "l2",
    *,
    p: float | None = None,
    features: str | list[str] | dict[str, str | list[str]] | None = None,
    key: str | None = None,
    outputs: list[str] | None = None,
    batch_size: int | None = None,
    dtype: Literal["float32", "float16", "float64"] = "float32",
    truncate: int | None = None,
    project_mean: str | None = None,
    bad: Literal["raise", "nan"] = "raise",
    backend: BackendName = "tensorflow",
) -> Result:
    """Score rows in memory with a model and normalize its predictions.

    Args:
        model: A ``keras.Model``, or the path of one (which passes the safety gate first).
        data: An array ``[n, ...]`` for the model's only input, a mapping of arrays for several, a
            DataFrame (pandas, Polars or any other with the Arrow C interface), or an Arrow table.
        norm: ``none``, ``l1``, ``l2``, ``max``, ``lp`` with ``p``, or ``lp:3``.
        p: The order of ``lp``.
        features: For tables: the columns that feed the model, as in a job file.
        key: For tables: the column that names a row.
        outputs: Names of the model's outputs to take; default: the only one.
        batch_size: Rows in one call of the model; default: 1024, or what is built into the model.
        dtype: Dtype of the unit vectors: float16, float32 or float64.
        truncate: Keep only so many of the first components.
        project_mean: Path of an .npy file with a direction that is projected off.
        bad: What happens to rows with a null, ragged or non-finite feature, or a prediction that is
            not finite: ``"raise"``, or ``"nan"`` (vectors and norms become NaN). A zero vector is
            no bad row: it stays zero, and its norm is 0.
        backend: What computes the model of a path, as ``model.backend`` of a job file does.

    Returns:
        Vectors, norms and statistics, rows in the order of ``data``.

    Raises:
        BadRows: A row is bad, and ``bad`` is ``"raise"``.
        InputError: The data does not fit the model.
        ModelError: The model was refused, or does not load.
        JobError: An argument is wrong.

    Example:
        >>> import keras  # doctest: +SKIP
        >>> result = score(keras.Sequential([...]), array, norm="l2")  # doctest: +SKIP
        >>> result.vectors.shape, result.norms.dtype  # doctest: +SKIP
        ((1000, 64), dtype('float64'))
    """
    if data is None or isinstance(data, str | os.PathLike):
        raise InputError(f"`score` takes rows in memory. Received: {data!r}. Use `run` for files.")
    if bad not in ("raise", "nan"):
        raise JobError(f"`bad` must be `raise` or `nan`. Received: {bad!r}.")
    if isinstance(project_mean, str) and project_mean == "fit":  # an array is refused below
        raise JobError(
            "`project_mean` cannot be `fit` in `score`, which has only some of all rows. Pass the "
            "path of an .npy file, or use `run` with `normalize.project_mean: fit`."
        )
    spec = Input(path="unread", features=features, key=key)
    # A job names an output, and nothing is written to this one.
    output = Output(path="unwritten", dtype=dtype)
    normalize = Normalize(norm=norm, p=p, truncate=truncate, project_mean=project_mean)
    job, means = Job(input=spec, normalize=normalize, output=output), read_means(normalize)
    loaded = _loaded(model, outputs, backend, _ProofRows(data, spec))
    chunk, columns = _chunk(data, loaded.inputs, spec)
    warn_of_negative_ids(chunk, loaded, columns)
    sized = loaded.with_batch_size(batch_size or loaded.batch_size or _BATCH_SIZE)
    fields = _checked_outputs(loaded, sized, chunk, bad)
    fitted = given(normalize, fields, means)
    layouts = output_schema.output_specs(job, fields, fitted)
    predicted = predict_rows(sized, layouts, chunk.features)
    scored = score_chunk(chunk, predicted, layouts)
    _check_policies(scored, bad)
    return Result(
        keys=chunk.carried.column(0).to_numpy(),
        results={shape.name: _shaped(scored, shape) for shape in layouts},
        statistics=scored.statistics,
    )


def _loaded(
    model: Any, outputs: list[str] | None, backend: BackendName, rows: _ProofRows
) -> Predictor:
    """Return the model without a batch size, unless one is built into it."""
    if isinstance(model, str | os.PathLike):
        wanted = Model(path=os.fspath(model), outputs=outputs, backend=backend)
        with security.admit(wanted) as admitted:
            return load_admitted(wanted, admitted, rows, rows.count)
    if backend == "onnxruntime":
        raise JobError(
            "`backend` is onnxruntime, which computes what a model's file was converted to. "
            f"Expected the path of a model. Received: a {type(model).__name__}. Save it, or set "
            "`backend` to tensorflow."
        )
    return models.wrap_model(model, outputs)


def load_admitted(
    wanted: Model, admitted: security.ModelCopy, sample: conversion.Sample, rows: int
) -> Predictor:
    """Load a model that the gate let pass, converted first where that is asked for.

    Args:
        wanted: What of it is wanted, and the back end.
        admitted: Its private copy.
        sample: Rows to compare back ends on; picklable.
        rows: How many there are; 0 where that is not known.
    """
    report, engine = admitted.report, Engine()
    request = conversion.ConversionRequest(wanted, report.content, engine, sample, rows=rows)
    if report.kind != "onnx":
        conversion.ensure_converted(request)
        for warning in conversion.fallback_warnings(request):
            warn(warning)
    load = partial(models.load_predictor, wanted, admitted.path, engine, report)
    return conversion.load_or_convert(load, request)


@dataclass(frozen=True)
class _ProofRows:
    """Features of the first good rows, to compare back ends on; another process gets no others."""

    data: Any
    spec: Input

    @property
    def count(self) -> int:
        """How many rows there are; 0 where that is not known yet."""
        data = next(iter(self.data.values()), ()) if isinstance(self.data, Mapping) else self.data
        with contextlib.suppress(TypeError):
            return len(data)
        return 0

    def __reduce__(self) -> tuple[Any, ...]:
        return _ProofRows, (_head(self.data), self.spec)

    def __call__(self, inputs: Sequence[Field]) -> dict[str, np.ndarray]:
        chunk, _ = _chunk(_head(self.data), inputs, self.spec)
        good = np.flatnonzero(chunk.faults == Reason.GOOD)
        features = {name: array[good] for name, array in chunk.features.items()}
        return features if len(good) else batching.filler(inputs)


def _head(data: Any) -> Any:
    """Return the first rows of whatever holds rows."""
    most = conversion.PROOF_ROWS
    try:
        if isinstance(data, Mapping):
            return {name: np.asarray(array)[:most] for name, array in data.items()}
        return data.slice(0, most) if isinstance(data, pa.Table) else data[:most]
    except (TypeError, KeyError, IndexError, ValueError):  # what it is, `_table` says
        return data


def _chunk(
    data: Any, wanted: Sequence[Field], spec: Input
) -> tuple[Chunk, Mapping[str, Sequence[str]]]:
    """Return rows as the model takes them, judged as those of a file are, and who feeds what."""
    table, named = _table(data, wanted)
    spec = spec if named is None else spec.model_copy(update={"features": named})
    carried = output_schema.carried_schema(spec, table.schema, table.num_rows)
    columns = match_features(table.schema, tuple(wanted), spec, lambda _: table)
    inputs = infer_fields(table, columns, tuple(wanted), spec)
    reader = FeatureReader(columns, inputs, spec)
    arrays, faults = reader.read(table)
    numbers = pa.array(np.arange(table.num_rows))
    keys = [numbers if spec.key is None else table[name] for name in carried.names]
    return Chunk(0, pa.table(keys, schema=carried), arrays, faults), columns


def _table(data: Any, inputs: Sequence[Field]) -> tuple[pa.Table, dict[str, str] | None]:
    """Return the rows as a table; for arrays also which column feeds which input."""
    try:
        if isinstance(data, pa.Table):
            return data, None
        if type(data).__module__.startswith("pandas."):
            return pa.Table.from_pandas(data, preserve_index=False), None
        if hasattr(data, "__arrow_c_stream__"):
            return pa.table(data), None
        arrays = data if isinstance(data, Mapping) else {_only_input(inputs): data}
        table = _table_of_arrays({name: np.asarray(array) for name, array in arrays.items()})
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(
            "The data cannot be read as rows of numbers or strings. Expected an array, a mapping "
            f"of arrays, a DataFrame or an Arrow table. Received: {type(data).__name__} ({error})."
        ) from error
    return table, {name: name for name in table.column_names}


def _only_input(inputs: Sequence[Field]) -> str:
    if len(inputs) != 1:
        names = ", ".join(f"`{field.name}`" for field in inputs)
        raise InputError(
            f"The model has several inputs: {names}. Expected a mapping with an array for each. "
            "Received: one array."
        )
    return inputs[0].name


def _table_of_arrays(arrays: Mapping[str, np.ndarray]) -> pa.Table:
    """Return arrays ``[n, ...]`` as columns, numbers without a copy where they are in C order."""
    rows = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(rows.values())) != 1:
        counted = ", ".join(f"`{name}` {count}" for name, count in rows.items()) or "no array"
        raise InputError(f"The arrays must have equal numbers of rows. Received: {counted}.")
    fields = [_array_field(name, array) for name, array in arrays.items()]
    columns = [_column(array, field) for array, field in zip(arrays.values(), fields, strict=True)]
    return pa.table(columns, schema=pa.schema(fields))


def _array_field(name: str, array: np.ndarray) -> pa.Field:
    if array.dtype.kind in "OUS":
        return vector_field(name, pa.string(), array.shape[1:])
    stored = np.dtype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array.dtype
    return vector_field(name, pa.from_numpy_dtype(stored.newbyteorder("=")), array.shape[1:])


def _column(array: np.ndarray, field: pa.Field) -> pa.Array:
    kind = field.type.value_type if array.ndim > 1 else field.type
    flat = np.ascontiguousarray(array).reshape(-1)
    if pa.types.is_string(kind):
        items = pa.array(flat.tolist(), kind)
    else:
        items = pa.array(flat.astype(kind.to_pandas_dtype(), copy=False))
    return pa.FixedSizeListArray.from_arrays(items, type=field.type) if array.ndim > 1 else items


def _checked_outputs(
    model: Predictor, sized: Predictor, chunk: Chunk, bad: str
) -> tuple[Field, ...]:
    """Return the model's outputs, once it is known to run, and on each row alone."""
    filler = batching.filler(model.inputs)
    good = np.flatnonzero(chunk.faults == Reason.GOOD)[:_SAMPLE_ROWS]
    taken = good if len(good) else np.arange(min(1, chunk.rows))
    sample = {name: array[taken] for name, array in chunk.features.items()}
    return models.on_good_rows(
        model,
        sample if len(taken) else filler,
        partial(placement.examine, model, sized, batch_dependent=False),
        None if bad == "raise" else filler,
    )


def _check_policies(scored: Scored, bad: str) -> None:
    """Raise for bad rows, or make their vectors and norms NaN; zero vectors stay as they are."""
    rows = np.flatnonzero((scored.faults != Reason.GOOD) & (scored.faults != Reason.ZERO_VECTOR))
    if not len(rows):
        return
    if bad == "raise":
        named = ", ".join(f"{row} ({scored.reason(int(row))})" for row in rows[:_NAMED_ROWS])
        raise BadRows(
            f"{len(rows):,} bad of {plural(scored.chunk.rows, 'row')}, the first of "
            f"them: {named}. Fix them, or pass `bad='nan'` to make their vectors NaN."
        )
    for result in scored.results.values():
        result.unit[rows] = np.nan
        result.norms[rows] = np.nan


def _shaped(scored: Scored, output: OutputSpec) -> tuple[np.ndarray, np.ndarray]:
    result = scored.results[output.name]
    vectors = result.unit.reshape(scored.chunk.rows, *output.shape)
    return vectors, result.norms if output.norm_per_vector else result.norms[:, 0]
