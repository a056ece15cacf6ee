"""Opening of stored predictions, and what is refused of whoever asks for them.

A run or a store holds unit vectors; here they come as the predictions that they were made of,
vector times norm.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from batchnorm_tool.display import near_matches
from batchnorm_tool.errors import InputError, JobError
from batchnorm_tool.formats import DATA_DIRECTORY
from batchnorm_tool.pipeline.manifest import MANIFEST_PATH
from batchnorm_tool.pipeline.output_schema import OutputSpec
from batchnorm_tool.pipeline.plan import PLAN_PATH
from batchnorm_tool.readers.files import open_files
from batchnorm_tool.readers.run import open_run
from batchnorm_tool.readers.source import VectorSource, check_key, check_rank
from batchnorm_tool.readers.store import open_snapshot
from batchnorm_tool.store.state import is_store

# A run has one of these: finished, under way, or damaged.
_MARKS = (MANIFEST_PATH, PLAN_PATH)


def open_predictions(
    path: str | os.PathLike[str],
    column: str | Sequence[str] | None = None,
    key: str | Sequence[str] | None = None,
) -> VectorSource:
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

    Example:
        >>> found = open_predictions("data_samples/digits_predictions.parquet", key="id")
        >>> found.rows, found.width, found.dtype, found.column, found.keys
        (1797, 32, 'float32', ('prediction',), ('id',))
    """
    name = os.fspath(path)
    columns, keys = checked_names("column", column), checked_names("key", key)
    if is_store(name) or _is_run(name):
        found = _chosen(open_snapshot(name) if is_store(name) else open_run(name), columns, keys)
    else:
        found = open_files(name, columns, keys)
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
        f"{path}: this run has several outputs. Expected `column` to be one "
        f"of: {', '.join(f'`{one.name}`' for one in layouts)}. "
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
