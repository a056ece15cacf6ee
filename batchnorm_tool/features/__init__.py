"""From a table of stored columns to the arrays that a model takes, and what is wrong in which row.

The columns that belong to each input are found once (`match_features`); then every table is read
into arrays (`FeatureReader`). How the rows are cut into chunks changes neither arrays nor faults.
"""

import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import Field, Reason
from batchnorm_tool.display import plural
from batchnorm_tool.errors import BatchnormToolError, InputError, JobError
from batchnorm_tool.features.arrays import read_input
from batchnorm_tool.features.columns import input_bindings, stored_fields
from batchnorm_tool.features.matching import join_names, match_features, names_in
from batchnorm_tool.features.values import STRING, array_dtype, fits, is_float, nonfinite_rows
from batchnorm_tool.job import Input

__all__ = ["FeatureReader", "infer_fields", "load_transform", "match_features", "stored_fields"]


@dataclass(frozen=True)
class FeatureReader:
    """A reader of one table after another for the same model; threads may share it.

    Its ``columns`` are those that `match_features` found. Without ``inputs``, where predictions are
    stored already, the fields are those of `stored_fields`, and a NaN or an infinity never makes a
    bad row.

    Example:
        >>> from batchnorm_tool.job import Input
        >>> inputs = [Field("x", (2,), "float32")]
        >>> reader = FeatureReader({"x": ("x",)}, inputs, Input(path="x.parquet"))
        >>> arrays, faults = reader.read(pa.table({"x": [[1.0, 2.0], [3.0, None]]}))
        >>> arrays["x"].tolist(), faults.tolist()
        ([[1.0, 2.0], [0.0, 0.0]], [0, 1])
    """

    columns: Mapping[str, Sequence[str]]
    inputs: Sequence[Field]
    spec: Input
    check_nonfinite: bool = True

    def read(self, table: pa.Table) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the arrays that a model takes, and a fault for each of ``n`` rows.

        Arrays are ``[n, *shape]`` in the input's dtype (``object`` for strings), C-ordered,
        possibly read-only: a view of the column where that is one chunk of lists without nulls in
        that dtype. A size that the input leaves open is the most common one in the table. Faults
        are ``uint8[n]``, a `Reason` for each row: for each input ``RAGGED_FEATURE`` (or
        ``UNDECODABLE_IMAGE``), else ``NULL_FEATURE``, else ``NONFINITE_FEATURE`` (judged in the
        input's dtype: 1e39 is infinite in float32); of several bad inputs the first one's. Bad rows
        hold zeros, or ``""``. Warnings do not depend on how rows are cut into tables.
        """
        if self._transform is not None:
            return self._transform.apply(table.select(names_in(self.columns)), self.inputs)
        try:
            return self._read(table)
        except pa.ArrowMemoryError:
            raise
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise InputError(
                f"The feature columns {join_names(names_in(self.columns))} cannot be read as "
                "arrays. Expected numbers, strings or images. Received: "
                f"{str(error)[:200]}. Check them with `batchnorm-tool show`."
            ) from error

    @cached_property
    def _transform(self) -> "Transform | None":
        return None if self.spec.transform is None else load_transform(self.spec.transform)

    def _read(self, table: pa.Table) -> tuple[dict[str, np.ndarray], np.ndarray]:
        arrays = {}
        faults = np.zeros(table.num_rows, np.uint8)
        check_nonfinite = self.check_nonfinite and bool(self.inputs)
        for binding in input_bindings(table.schema, self.columns, self.inputs, self.spec):
            array, found = read_input(table, binding, check_nonfinite=check_nonfinite)
            arrays[binding.field.name] = array
            faults = np.where(faults == Reason.GOOD, found, faults)
        return arrays, faults


def infer_fields(
    table: pa.Table, columns: Mapping[str, Sequence[str]], inputs: Sequence[Field], spec: Input
) -> tuple[Field, ...]:
    """Return the inputs with the most common size of a sample in the place of every open one.

    Read every later table with these, and rows of another length are ragged wherever they lie.
    """
    fields = tuple(inputs) or stored_fields(table.schema, columns)
    arrays, _ = FeatureReader(columns, fields, spec).read(table)
    return tuple(replace(field, shape=arrays[field.name].shape[1:]) for field in fields)


@dataclass(frozen=True)
class Transform:
    """A function, called ``"module:function"``, that makes a model's inputs from a table.

    From several threads at once, it is called with a `pyarrow.Table` of ``n`` rows, and gives an
    array ``[n, *shape]`` for each model input by name. It must treat rows one by one: which rows
    share a table is not promised, nor that other modules which it calls stay the same.
    """

    name: str
    function: Callable[[pa.Table], Mapping[str, object]]
    source_sha256: str

    def apply(
        self, table: pa.Table, inputs: Sequence[Field]
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Call the function, and return the arrays and faults that `FeatureReader.read` promises.

        A row is bad, ``NONFINITE_FEATURE``, where any of its arrays has a NaN or infinity.
        """
        given = self._call(table)
        names = [field.name for field in inputs]
        if sorted(given, key=str) != sorted(names):
            received = join_names(list(given)) or "nothing"
            raise self._refusal("has wrong names", join_names(names), received)
        arrays = {field.name: self._checked(given[field.name], table, field) for field in inputs}
        faults = np.zeros(table.num_rows, np.uint8)
        for name, array in arrays.items():
            flat = array.reshape(len(array), -1) if array.size else array.reshape(len(array), 0)
            bad = None if array.dtype == object else nonfinite_rows(flat)
            if bad is not None:
                faults[bad] = Reason.NONFINITE_FEATURE
                arrays[name] = np.where(bad.reshape(-1, *[1] * (array.ndim - 1)), 0, array)
                arrays[name] = arrays[name].astype(array.dtype, copy=False)
        return arrays, faults

    def _call(self, table: pa.Table) -> Mapping[str, object]:
        try:
            given = self.function(table)
        except BatchnormToolError:
            raise
        except Exception as error:
            raise JobError(
                f"`input.transform` ({self.name}) failed on a table "
                f"of {plural(table.num_rows, 'row')} with the "
                f"columns {join_names(table.column_names)}. Expected an array for each model "
                f"input. Received: {type(error).__name__}: {error}. Fix the function."
            ) from error
        if not isinstance(given, Mapping):
            raise self._refusal("has the wrong type", "a dict of arrays", type(given).__name__)
        return given

    def _checked(self, value: Any, table: pa.Table, field: Field) -> np.ndarray:
        array = np.asarray(value)
        what = f"for `{field.name}` "
        expected = (table.num_rows, *field.shape)
        if not fits(array.shape, expected):
            raise self._refusal(f"{what}has the wrong shape", str(expected), str(array.shape))
        dtype = array_dtype(field)
        if field.dtype == STRING:
            texts = array.astype(dtype)
            for text in texts.flat:
                if not isinstance(text, str):
                    wrong = f"{what}contains values other than strings"
                    raise self._refusal(wrong, "str", repr(text))
            return texts
        if not (array.dtype == dtype or _is_safe(array.dtype, dtype)):
            raise self._refusal(f"{what}has the wrong dtype", field.dtype, str(array.dtype))
        with np.errstate(over="ignore", invalid="ignore"):
            return np.ascontiguousarray(array, dtype).reshape(array.shape)

    def _refusal(self, what: str, expected: str, received: str) -> JobError:
        return JobError(
            f"The result of `input.transform` ({self.name}) {what}. Expected {expected}. "
            f"Received: {received}. Fix the function."
        )


def load_transform(name: str) -> Transform:
    """Find a function by name."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise JobError(
            f"`input.transform` names `{name}`, whose module cannot be imported. Expected an "
            f"installed module, or one on PYTHONPATH. Received: {type(error).__name__}: {error}."
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise JobError(
            f"`input.transform` names `{name}`, but the module has no such function. Expected a "
            f"function of {module_name}. Received: `{attribute}`. Put its name after the colon."
        )
    return Transform(name, function, _source_hash(name, function, module_name))


def _source_hash(name: str, function: Any, module_name: str) -> str:
    """Hash the file that defines the function: its own module may only have imported it."""
    home = sys.modules.get(getattr(function, "__module__", None) or module_name)
    path = getattr(home, "__file__", None) or ""
    try:
        if not path.endswith(".py"):
            raise FileNotFoundError(path)
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise JobError(
            f"The source of `input.transform` ({name}) cannot be read, so that a change of it "
            f"would go unnoticed. Expected a function in a Python file. Received: {path or home}. "
            "Wrap it in a function of your own."
        ) from error


def _is_safe(have: np.dtype, want: np.dtype) -> bool:
    """Tell whether only rounding to a narrower float can change a value."""
    if is_float(want):
        return is_float(have) or have.kind in "iub"
    return np.can_cast(have, want, "safe")
