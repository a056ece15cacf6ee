"""Stored predictions as a stream of raw vectors, from data files, a finished run or a store.

A run or a store holds unit vectors; here they come as the predictions that they were made of,
vector times norm.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from batchnorm_tool.jobs.stored_run import DATA_DIRECTORY, open_run
from batchnorm_tool.manifest import MANIFEST_PATH
from batchnorm_tool.plan import PLAN_PATH
from batchnorm_tool.predictions.checks import checked_names
from batchnorm_tool.predictions.contract import PredictionBatch, Predictions
from batchnorm_tool.predictions.data import open_data
from batchnorm_tool.predictions.run import predictions_of_run
from batchnorm_tool.predictions.store import predictions_of_store
from batchnorm_tool.store.snapshot import open_snapshot
from batchnorm_tool.store.state import is_store

__all__ = ["PredictionBatch", "Predictions", "open_predictions"]

# A run has one of these: finished, under way, or damaged.
_MARKS = (MANIFEST_PATH, PLAN_PATH)


def open_predictions(
    path: str | os.PathLike[str],
    column: str | Sequence[str] | None = None,
    key: str | Sequence[str] | None = None,
) -> Predictions:
    """Open stored predictions; no more rows are read than it takes to tell their width.

    Args:
        path: A Parquet, Arrow or NPY file, a directory or a glob of them, or the output directory
            of a finished run, or a store, whose raw predictions are restored (see
            `batchnorm_tool.read`).
        column: The column of the vectors, or several scalar columns that make one; default: the
            only column with lists of numbers. Of a run or a store: the name of an output; default:
            the only one.
        key: The column, or columns, that name a row; default: the own key of a run or a store; of
            data none, and rows go by their number.

    Returns:
        The predictions.

    Raises:
        InputError: Nothing that can be read lies there, a column is missing or holds no vectors, or
            it is not evident which one does.
        Damaged: The manifest of the run, or the state of the store, is damaged.

    Warns:
        InputWarning: The path is a part of a run, which holds unit vectors.

    Example:
        >>> found = open_predictions("data_samples/digits_predictions.parquet", key="id")
        >>> found.rows, found.width, found.dtype, found.column, found.key
        (1797, 32, 'float32', ('prediction',), ('id',))
    """
    name = os.fspath(path)
    columns, keys = checked_names("column", column), checked_names("key", key)
    if is_store(name):
        return predictions_of_store(open_snapshot(name), name, columns, keys)
    if _is_run(name):
        return predictions_of_run(open_run(name), name, columns, keys)
    return open_data(name, columns, keys)


def _is_run(path: str) -> bool:
    root = Path(path)
    above = [root.parent] if root.name == DATA_DIRECTORY else []
    # Not `Path.is_file`, which raises for a name that is too long.
    return any(os.path.isfile(at / name) for at in [root, *above] for name in _MARKS)  # noqa: PTH113
