"""What changed between two sets of predictions: two models, two nights."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from batchnorm_tool.errors import InputError
from batchnorm_tool.input_warnings import collected
from batchnorm_tool.jobs.difference_figures import Compared, compare_sets
from batchnorm_tool.jobs.neighbour_overlap import Search, check_depth
from batchnorm_tool.jobs.saving import save_report
from batchnorm_tool.layout import ROW_COLUMN
from batchnorm_tool.predictions import Predictions, open_predictions
from batchnorm_tool.predictions.checks import checked_ks, checked_path, checked_whole

if TYPE_CHECKING:
    import pandas as pd


DEFAULT_K = (1, 5, 10)


@dataclass(frozen=True)
class Difference:
    """What changed between two sets of predictions, A and B."""

    _document: Mapping[str, Any] = field(repr=False)
    _compared: Compared = field(repr=False)

    def __repr__(self) -> str:
        rows = self._document["rows"]
        return f"Difference({self._document['verdict']['kind']}, {rows['common']:,} common rows)"

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        return str(self._document["verdict"]["words"])

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain data, fit for JSON."""
        return dict(self._document)

    def to_pandas(self) -> pd.DataFrame:
        """One row for each row that was compared, in the order of A.

        Its columns are those of A's key (``row`` without a key), then ``cosine`` (NaN where a
        vector is zero), ``norm_a`` and ``norm_b`` (L2).
        """
        compared = self._compared
        frame = compared.join.a_keys.take(compared.rows).to_pandas()
        figures = {
            "cosine": compared.cosines,
            "norm_a": compared.a_norms,
            "norm_b": compared.b_norms,
        }
        return frame.assign(**figures)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write ``diff.json`` and ``diff.html`` into a directory, which is made if need be.

        Raises:
            OutputError: They cannot be written.
        """
        from batchnorm_tool.report.diff_page import diff_page

        text = json.dumps(self._document, indent=2, allow_nan=False, ensure_ascii=False)
        page = diff_page(self._document)
        save_report(directory, {"diff.json": f"{text}\n", "diff.html": page})


def diff(  # noqa: PLR0913  (each is a flag of the command)
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    column: str | Sequence[str] | None = None,
    key: str | Sequence[str] | None = None,
    k: Sequence[int] | None = None,
    sample: int | None = 1000,
    seed: int = 0,
) -> Difference:
    """Tell what changed between two sets of predictions, their rows joined by key.

    Rows with NaN, infinity or no vector on one side are not compared, and counted. The vectors of
    ``b`` are held in memory in their own dtype; ``a`` is streamed.

    Args:
        a: What was before: a Parquet, Arrow or NPY file, a directory or a glob of them, or the
            output directory of a finished run, whose raw predictions are restored.
        b: What is now.
        column: The column of the vectors in both, or several scalar ones; of a run its output.
            Default: the only one that there is.
        key: The column, or columns, that name a row in both; default: a run's own key. Where only
            one of the two has a key, the other is looked through for columns of that name. Rows
            without a key go by their number.
        k: Numbers of neighbours whose overlap is measured; default: those of 1, 5 and 10 that both
            sets have.
        sample: Rows whose neighbours are looked for, within each set; 0 for none, ``None`` for
            all.
        seed: Of the sample, and of the intervals.

    Returns:
        The difference: a verdict, and the figures behind it.

    Raises:
        InputError: An input cannot be read, vectors differ in width, a key is null or occurs twice,
            or no row is in both.
        JobError: ``k``, ``sample`` or ``seed`` is no such number.
        Damaged: The manifest or a file of a run is damaged.

    Example:
        >>> path = "data_samples/digits_predictions.parquet"
        >>> diff(path, path, key="id", sample=100).verdict
        'The same vectors, bit for bit, in all 1,797 common rows.'
    """
    started = time.perf_counter()
    size = sys.maxsize if sample is None else checked_whole("sample", sample)
    asked, seed = None if k is None else checked_ks(k), checked_whole("seed", seed)
    warnings: list[str] = []
    with collected(warnings.append):
        one, other = _open(a, b, column, key)
        search = _search(asked, size, seed, min(one.rows, other.rows))
        check_depth(search, one, other)
        document, compared = compare_sets(one, other, search)
    document["warnings"] = [*dict.fromkeys(warnings), *document["warnings"]]
    document["seconds"] = time.perf_counter() - started
    return Difference(document, compared)


def _search(ks: tuple[int, ...] | None, sample: int, seed: int, rows: int) -> Search:
    """What is looked for in sets of so many rows, at least."""
    if ks is not None:
        return Search(ks, sample, seed)
    fitting = tuple(k for k in DEFAULT_K if k < rows)
    return Search(fitting or DEFAULT_K[:1], sample if fitting else 0, seed)


# The two sets


def _open(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    column: str | Sequence[str] | None,
    key: str | Sequence[str] | None,
) -> tuple[Predictions, Predictions]:
    a, b = checked_path("a", a), checked_path("b", b)
    one, other = open_predictions(a, column, key), open_predictions(b, column, key)
    if one.width != other.width:
        msg = (
            f"The vectors of the two sets differ in width. Expected: the same. Received: "
            f"{one.width} in {one.path} and {other.width} in {other.path}. Name other columns with "
            "`column`."
        )
        raise InputError(msg)
    if not one.key and _has(one, other.key):
        one = open_predictions(a, column, other.key)
    elif not other.key and _has(other, one.key):
        other = open_predictions(b, column, one.key)
    _check_keys(one, other)
    return one, other


def _has(predictions: Predictions, key: tuple[str, ...]) -> bool:
    return bool(key) and set(key) <= set(predictions.columns)


def _check_keys(one: Predictions, other: Predictions) -> None:
    # A run without a key stores row numbers, which go with those of data.
    keys = [side.key or (ROW_COLUMN,) for side in (one, other)]
    is_number = [key == (ROW_COLUMN,) for key in keys]
    if len(keys[0]) == len(keys[1]) and (all(is_number) or not any(is_number)):
        return
    said = " and ".join(
        f"{', '.join(f'`{name}`' for name in side.key) or 'row numbers'} in {side.path}"
        for side in (one, other)
    )
    msg = (
        f"The rows of the two sets are named in different ways. Expected: the same key in both. "
        f"Received: {said}. Name the key with `key`."
    )
    raise InputError(msg)
