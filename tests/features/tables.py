"""Columns made of plain values, and what becomes of them on their way to a model."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import Field, Reason
from batchnorm_tool.features import FeatureReader
from batchnorm_tool.job import Input

GOOD, NULL, RAGGED, NONFINITE, UNFIT = (
    Reason.GOOD,
    Reason.NULL_FEATURE,
    Reason.RAGGED_FEATURE,
    Reason.NONFINITE_FEATURE,
    Reason.UNFIT_FEATURE,
)
NAN = math.nan


def spec(**keys: object) -> Input:
    return Input(path="table.parquet", **keys)


def read(
    column: pa.Array | pa.ChunkedArray | pa.Table, field: Field, **keys: object
) -> tuple[np.ndarray, list[int]]:
    """The array and faults for one column called ``x``."""
    table = column if isinstance(column, pa.Table) else pa.table({"x": column})
    columns = {field.name: tuple(table.column_names)}
    arrays, faults = FeatureReader(columns, [field], spec(**keys)).read(table)
    array = arrays[field.name]
    assert array.flags.c_contiguous
    assert faults.dtype == np.uint8
    assert array.shape[0] == len(faults) == table.num_rows
    return array, faults.tolist()


def fixed(rows: list[object], width: int, kind: pa.DataType | None = None) -> pa.Array:
    return pa.array(rows, pa.list_(kind or pa.float32(), width))


def vector(width: int | None, dtype: str = "float32") -> Field:
    return Field("x", (width,), dtype)
