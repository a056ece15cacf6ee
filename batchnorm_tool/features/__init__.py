"""From a table of stored columns to the arrays that a model takes, and what is wrong in which row.

The columns that belong to each input are found once (`match_features`); then every table is read
into arrays (`to_arrays`, `FeatureReader`). How the rows are cut into chunks changes neither arrays
nor faults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import Field, Reason
from batchnorm_tool.errors import InputError
from batchnorm_tool.features.arrays import read_feed
from batchnorm_tool.features.feed import feeds, stored_fields
from batchnorm_tool.features.matching import match_features
from batchnorm_tool.features.transform import Transform, load_transform

if TYPE_CHECKING:
    from batchnorm_tool.job import Input

__all__ = [
    "FeatureReader",
    "Transform",
    "infer_fields",
    "load_transform",
    "match_features",
    "stored_fields",
    "to_arrays",
]


@dataclass(frozen=True)
class FeatureReader:
    """Reads one table after another for the same model; threads may share it.

    Attributes:
        columns: Stored columns by model input, as `match_features` found them.
        inputs: The model's inputs; empty where predictions are stored already: then the fields are
            those of `stored_fields`, and values that are not finite are no fault of the input.
        spec: The job's ``input`` section.
        judge_nonfinite: Whether a NaN or an infinity makes a bad row; never so without ``inputs``.
    """

    columns: Mapping[str, Sequence[str]]
    inputs: Sequence[Field]
    spec: Input
    judge_nonfinite: bool = True

    def read(self, table: pa.Table) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The arrays and faults of a table: see `to_arrays`.

        What it warns of is said in words that do not depend on how rows are cut into tables.
        """
        if self._transform is not None:
            names = dict.fromkeys(name for names in self.columns.values() for name in names)
            return self._transform.apply(table.select(list(names)), self.inputs)
        try:
            return self._read(table)
        except pa.ArrowMemoryError:
            raise
        except (pa.ArrowException, UnicodeDecodeError) as error:
            named = ", ".join(f"`{name}`" for names in self.columns.values() for name in names)
            raise InputError(
                f"The feature columns {named} cannot be read as arrays. Expected numbers, strings "
                f"or images. Received: {str(error)[:200]}. Check them with `batchnorm-tool show`."
            ) from error

    @cached_property
    def _transform(self) -> Transform | None:
        return None if self.spec.transform is None else load_transform(self.spec.transform)

    def _read(self, table: pa.Table) -> tuple[dict[str, np.ndarray], np.ndarray]:
        arrays = {}
        faults = np.zeros(table.num_rows, np.uint8)
        for feed in feeds(table.schema, self.columns, self.inputs, self.spec):
            judge = feed.judge_nonfinite and self.judge_nonfinite
            judged = replace(feed, judge_nonfinite=judge)
            arrays[feed.field.name], found = read_feed(table, judged)
            faults = np.where(faults == Reason.GOOD, found, faults)
        return arrays, faults


def to_arrays(
    table: pa.Table,
    columns: Mapping[str, Sequence[str]],
    inputs: Sequence[Field],
    spec: Input,
    *,
    judge_nonfinite: bool = True,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The arrays that a model takes, and a fault for each row.

    Args:
        table: ``n`` rows with at least the columns named.
        columns: Stored columns by model input, as `match_features` found them.
        inputs: The model's inputs; empty where predictions are stored already: see `FeatureReader`.
        spec: The job's ``input`` section.
        judge_nonfinite: Whether a NaN or an infinity makes a bad row; never so without ``inputs``.

    Returns:
        An array ``[n, *shape]`` for each input in its dtype (``object`` for strings), C-ordered,
        possibly read-only: a view of the column where that is one chunk of lists without nulls in
        the input's own dtype. A size that the input leaves open is the most common one in the
        table. And ``uint8[n]``, a `Reason` for each row: for each input ``RAGGED_FEATURE`` (or
        ``UNDECODABLE_IMAGE``), else ``NULL_FEATURE``, else ``NONFINITE_FEATURE`` (judged in the
        input's dtype: 1e39 is infinite in float32); of several bad inputs the first one's. Bad rows
        hold zeros, or ``""``.

    Raises:
        InputError: A column does not fit its input.
        JobError: ``spec.transform`` failed, or ``spec.fill`` does not fit the input.

    Warns:
        InputWarning: A float input rounds a column's large integers.

    Example:
        >>> from batchnorm_tool.job import Input
        >>> table = pa.table({"x": [[1.0, 2.0], [3.0, None]]})
        >>> inputs = [Field("x", (2,), "float32")]
        >>> arrays, faults = to_arrays(table, {"x": ("x",)}, inputs, Input(path="x.parquet"))
        >>> arrays["x"].tolist(), faults.tolist()
        ([[1.0, 2.0], [0.0, 0.0]], [0, 1])
    """
    return FeatureReader(columns, inputs, spec, judge_nonfinite).read(table)


def infer_fields(
    table: pa.Table, columns: Mapping[str, Sequence[str]], inputs: Sequence[Field], spec: Input
) -> tuple[Field, ...]:
    """The inputs with every open size made known, from a sample of the rows.

    Read every later table with these, and rows of another length are ragged wherever they lie.

    Args:
        table: A sample of the input.
        columns: Stored columns by model input, as `match_features` found them.
        inputs: The model's inputs, or none: then those of `stored_fields`.
        spec: The job's ``input`` section.

    Returns:
        One field for each input, without ``None`` in its shape: the most common size instead.
    """
    fields = tuple(inputs) or stored_fields(table.schema, columns)
    arrays, _ = to_arrays(table, columns, fields, spec)
    return tuple(replace(field, shape=arrays[field.name].shape[1:]) for field in fields)
