"""Predictions in memory, read as stored ones are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batchnorm_tool.array_normalization import array_of
from batchnorm_tool.errors import InputError
from batchnorm_tool.predictions.contract import PredictionBatch, Predictions

if TYPE_CHECKING:
    from batchnorm_tool.norms import Anything

_NAME = "array"


def predictions_of_array(array: Anything) -> Predictions:
    """Take an array ``[n, d]`` of real numbers for stored predictions; integers become float64.

    Raises:
        InputError: It is no such array.
    """
    vectors = array_of(array)
    if vectors.ndim != 2 or not vectors.shape[1]:
        msg = (
            "An array of predictions has one row for each vector. Expected the shape (rows, width)."
            f" Received: {vectors.shape}. Reshape it."
        )
        raise InputError(msg)
    if vectors.dtype not in (np.float16, np.float32, np.float64):
        vectors = vectors.astype(np.float64 if vectors.dtype.kind in "iub" else np.float32)
    return Predictions(
        path=_NAME,
        kind="data",
        rows=len(vectors),
        width=vectors.shape[1],
        dtype=str(vectors.dtype.newbyteorder("=")),
        column=(_NAME,),
        key=(),
        columns=(),
        provenance=None,
        _stream=_ArrayStream(vectors),
    )


@dataclass(frozen=True)
class _ArrayStream:
    """Rows of an array ``[n, d]``."""

    array: Anything

    def batches(self, columns: Sequence[str], batch_rows: int) -> Iterator[PredictionBatch]:  # noqa: ARG002  (there are none)
        nothing = pa.table({})
        for start in range(0, len(self.array), batch_rows):
            vectors = np.ascontiguousarray(self.array[start : start + batch_rows])
            yield PredictionBatch(start, vectors, np.zeros(len(vectors), bool), nothing)

    def read_columns(self, columns: Sequence[str]) -> pa.Table:  # noqa: ARG002  (there are none)
        return pa.table({})

    def locate(self, row: int) -> tuple[str, int]:
        return _NAME, row
