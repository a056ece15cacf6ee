"""Whether the bits of a prediction depend on the row's place in its batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from batchnorm_tool.errors import ModelError

if TYPE_CHECKING:
    from batchnorm_tool.predictor import Predictor


def independent_batch_size(
    predictor: Predictor, sample: Mapping[str, np.ndarray], sizes: Sequence[int]
) -> int | None:
    """The first of several batch sizes at which a row's bits do not depend on its place.

    Where a matrix product has rows left over behind its last full block, another kernel computes
    those, and may round otherwise. Blocks of float32 are 4 to 24 rows long on the CPUs of today, so
    that three quarters of a power of two, 48 times another power of two, leaves none over.

    Args:
        predictor: Any batch size.
        sample: At least one row of features; repeated to fill a batch.
        sizes: What to try; a size that the model does not take will not do.

    Returns:
        The size, or ``None`` where none will do. Found by trying on the sample, which is strong
        evidence and no proof.
    """
    for size in filter(None, sizes):
        try:
            sized = predictor.with_batch_size(size)
        except ModelError:  # the model has a batch size of its own
            continue
        if is_place_independent(sized, sample, size):
            return size
    return None


def is_place_independent(
    predictor: Predictor, sample: Mapping[str, np.ndarray], batch_size: int
) -> bool:
    """Whether rows get the same bits wherever they stand in a batch, as far as a sample tells.

    Args:
        predictor: Of this batch size.
        sample: At least one row of features; repeated to fill a batch.
        batch_size: Rows in one call.
    """
    batch = {
        name: np.resize(array, (batch_size, *array.shape[1:])) for name, array in sample.items()
    }
    expected = predictor.predict(batch)
    # Every row is moved into the first block, the last one, and two between.
    for shift in {1, 5, batch_size // 3, batch_size // 2 + 1}:
        moved = predictor.predict({name: np.roll(array, shift, 0) for name, array in batch.items()})
        for name, predictions in moved.items():
            if np.roll(predictions, -shift, 0).tobytes() != expected[name].tobytes():
                return False
    return True
