"""What changed between two sets of predictions: two models, two dates."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from batchnorm_tool._version import __version__
from batchnorm_tool.commands.compare import sets
from batchnorm_tool.commands.compare.sets import Figures, Join, MeasuredSet, NeighbourSearch, Pairs
from batchnorm_tool.comparison import drift
from batchnorm_tool.comparison.norm_survey import describe
from batchnorm_tool.display import plural
from batchnorm_tool.errors import InputError, capture_warnings
from batchnorm_tool.norms.norm import L2, Float64s
from batchnorm_tool.norms.stats import finite_or_none
from batchnorm_tool.pipeline.output_schema import ROW_COLUMN
from batchnorm_tool.readers.source import VectorSource, check_spaces, compare_spaces
from batchnorm_tool.readers.vectors import checked_ks, checked_path, checked_whole, open_predictions

if TYPE_CHECKING:
    import pandas as pd

    from batchnorm_tool.comparison.drift import DifferenceDocument, DifferenceFigures

DEFAULT_K = (1, 5, 10)
# Keys of rows that only one set has.
_EXAMPLES = 5
# Rows, and dimensions, that changed most.
_WORST = 10


@dataclass(frozen=True)
class Compared:
    """The rows that were compared: their numbers in A, ascending, and L2 norms on both sides.

    Their cosines are NaN where a vector is zero.
    """

    join: Join
    rows: np.ndarray
    cosines: Float64s
    a_norms: Float64s
    b_norms: Float64s

    @classmethod
    def of(cls, join: Join, pairs: Pairs, a: MeasuredSet) -> Compared:
        """Pick the common rows that are finite on both sides."""
        common = join.common
        is_finite = a.finite[common] & np.isfinite(pairs.norms[join.partners[common]])
        rows = common[is_finite]
        b_norms = pairs.norms[join.partners[rows]]
        return cls(join, rows, pairs.cosines[rows], a.norms[rows], b_norms)

    @property
    def zero(self) -> np.ndarray:
        """``bool[n]``: the vector is zero on both sides."""
        return (self.a_norms == 0) & (self.b_norms == 0)

    def worst(self) -> list[drift.TurnedRow]:
        """Return the rows that turned most, as plain data; none that did not turn at all."""
        # No row changed more than one that is zero on one side: it comes before an opposite one.
        turned = np.where(np.isnan(self.cosines), -2.0, self.cosines)
        turned[self.zero] = 1
        order = np.argsort(turned, kind="stable")[:_WORST]
        chosen = order[turned[order] < 1]
        keys = sets.keys_to_json(self.join.a_keys, self.rows[chosen])
        figures = (each[chosen].tolist() for each in (self.cosines, self.a_norms, self.b_norms))
        return [
            {"key": key, "cosine": finite_or_none(cosine), "norm_a": a, "norm_b": b}
            for key, cosine, a, b in zip(keys, *figures, strict=True)
        ]

    def ratios(self) -> Float64s:
        """Return lengths in B over lengths in A, where that is not zero."""
        is_long = self.a_norms > 0
        with np.errstate(over="ignore"):
            return np.asarray(self.b_norms[is_long] / self.a_norms[is_long])


def compare_sets(
    a: VectorSource, b: VectorSource, search: NeighbourSearch
) -> tuple[DifferenceDocument, Compared]:
    """Hold two sets of vectors of equal width against each other."""
    join = sets.join_keys(a, b)
    vectors, b_set = sets.load(b)
    pairs = Pairs(join.partners, vectors, b_set.norms)
    sample = sets.draw(join, pairs, search)
    probe = sets.evenly_spread(a)
    a_set = sets.stream(a, pairs, sample, probe)
    compared = Compared.of(join, pairs, a_set)
    overlap, queries = sets.measure_overlap(sets.StreamedBase(a, probe), sample, pairs, search)
    spaces = compare_spaces(a.provenance, b.provenance)
    figures: DifferenceFigures = {
        "kind": "diff",
        "version": __version__,
        "a": sets.set_facts(a, a_set.survey),
        "b": sets.set_facts(b, b_set.survey),
        "same_space": spaces.same,
        **_rows(join, compared, pairs.identical),
        "cosine": describe(compared.cosines, most=1.0),
        "worst": compared.worst(),
        "norm_ratio": describe(compared.ratios()),
        **_drift(a_set, b_set),
        "overlap": overlap,
        "sample": queries,
        "k": list(search.ks),
        "seed": search.seed,
        "metric": str(sets.METRIC),
    }
    verdict = drift.verdict_of(figures, spaces.words)
    warnings = [*_joined_by_number(a, b), *_warnings(figures, compared)]
    return {**figures, "verdict": verdict, "warnings": warnings, "seconds": 0.0}, compared


def _rows(join: Join, compared: Compared, identical: int) -> drift.RowFigures:
    added, removed = join.added, join.removed
    return {
        "rows": {
            "a": join.a_keys.num_rows,
            "b": join.b_keys.num_rows,
            "common": len(join.common),
            "added": len(added),
            "removed": len(removed),
            "compared": len(compared.rows),
            "identical": identical,
            "zero": int(np.count_nonzero(compared.zero)),
        },
        "examples": {
            "added": sets.keys_to_json(join.b_keys, added[:_EXAMPLES]),
            "removed": sets.keys_to_json(join.a_keys, removed[:_EXAMPLES]),
        },
    }


def _drift(a: MeasuredSet, b: MeasuredSet) -> drift.DriftFigures:
    """Return how the two sets differ as distributions; nothing where one has no finite vector."""
    one, other = (side.survey.norms[L2.label].to_dict() for side in (a, b))
    lengths = [side.norms[side.finite] for side in (a, b)]
    if not all(map(len, lengths)):
        return {
            "norms": {"a": one, "b": other, "psi": None, "ks": None},
            "centroid": {"shift": None, "relative": None, "cosine": None},
            "dimensions": {"shift": [], "largest": []},
            "frechet": None,
        }
    psi = drift.population_stability_index(*lengths)
    distance = drift.kolmogorov_smirnov_distance(*lengths)
    centroid = drift.centroid_shift(a.gaussian, b.gaussian)
    shift = drift.dimension_shift(a.gaussian, b.gaussian)
    order = np.argsort(-np.abs(shift), kind="stable")[:_WORST]  # NaN last
    finite = order[np.isfinite(shift[order])]
    largest = [{"dimension": int(at), "shift": float(shift[at])} for at in finite]
    return {
        "norms": {"a": one, "b": other, "psi": psi, "ks": distance},
        "centroid": {name: finite_or_none(value) for name, value in centroid.items()},
        "dimensions": {"shift": [*map(finite_or_none, shift.tolist())], "largest": largest},
        "frechet": finite_or_none(drift.frechet_distance(a.gaussian, b.gaussian)),
    }


def _joined_by_number(a: VectorSource, b: VectorSource) -> Iterator[str]:
    """Tell of rows that have no key, where a column that both have may be one."""
    shared = [name for name in a.columns if name in b.columns]
    if shared and not (a.keys or b.keys):
        listed = ", ".join(f"`{name}`" for name in shared)
        yield f"Rows are joined by number. If one of {listed} identifies them, pass it as `key`."


def _warnings(document: DifferenceFigures, compared: Compared) -> Iterator[str]:
    rows = document["rows"]
    if lost := rows["common"] - rows["compared"]:
        yield (
            f"Not compared: {plural(lost, 'common row')} whose vector is missing or not finite on "
            "at least one side."
        )
    if directionless := int(np.count_nonzero(np.isnan(compared.cosines))):
        yield f"Without a cosine: {plural(directionless, 'compared row')} with a zero vector."
    sides = document["a"], document["b"]
    norms = [p["norm"] for side in sides if side["kind"] == "run" and (p := side["provenance"])]
    if len(set(norms)) > 1:
        yield (
            f"A was normalized by {norms[0]} and B by {norms[1]}; the comparison uses their raw "
            "predictions."
        )
    if document["same_space"] is False:
        yield (
            "Cosines between two vector spaces mean little: use the overlap of neighbours, which "
            "is computed within each set."
        )


@dataclass(frozen=True)
class Difference(Figures):
    """What changed between two sets of predictions, A and B."""

    _document: DifferenceDocument
    _compared: Compared

    def __repr__(self) -> str:
        rows = self._document["rows"]["common"]
        return f"Difference({self._document['verdict']['kind']}, {plural(rows, 'common row')})"

    def to_pandas(self) -> pd.DataFrame:
        """Return one row for each row that was compared, in the order of A.

        Its columns are those of A's key (``row`` without a key), then ``cosine`` (NaN where a
        vector is zero), ``norm_a`` and ``norm_b`` (L2).
        """
        compared = self._compared
        frame = compared.join.a_keys.take(compared.rows).to_pandas()
        return frame.assign(
            cosine=compared.cosines, norm_a=compared.a_norms, norm_b=compared.b_norms
        )

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write ``diff.json`` and ``diff.html`` into a directory, which is made if need be.

        Raises:
            OutputError: They cannot be written.
        """
        from batchnorm_tool.report.diff_page import diff_page

        self._save(directory, "diff", diff_page(self._document))


def diff(  # noqa: PLR0913  (each is a flag of the command)
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    column: str | Sequence[str] | None = None,
    key: str | Sequence[str] | None = None,
    k: Sequence[int] | None = None,
    sample: int | None = 1000,
    seed: int = 0,
    mixed_spaces: bool = False,
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
        mixed_spaces: Compare vectors of two spaces, such as those of two models, all the same.

    Returns:
        The difference: a verdict, and the figures behind it.

    Raises:
        InputError: An input cannot be read, vectors differ in space or width, a key is null or
            occurs twice, or no row is in both.
        JobError: ``k``, ``sample`` or ``seed`` is no such number.
        Damaged: The manifest or a file of a run is damaged.

    Example:
        >>> path = "data_samples/digits_predictions.parquet"
        >>> diff(path, path, key="id", sample=100).verdict
        'Identical vectors, bit for bit, in 1,797 common rows.'
    """
    started = time.perf_counter()
    size = sys.maxsize if sample is None else checked_whole("sample", sample)
    depths, seed = None if k is None else checked_ks(k), checked_whole("seed", seed)
    warnings: list[str] = []
    with capture_warnings(warnings.append):
        one, other = _open(a, b, column, key, mixed_spaces=mixed_spaces)
        fewest = min(one.rows, other.rows)
        if depths is None and not (depths := tuple(k for k in DEFAULT_K if k < fewest)):
            depths, size = DEFAULT_K[:1], 0
        search = NeighbourSearch(depths, size, seed)
        sets.check_depth(search, one, other)
        document, compared = compare_sets(one, other, search)
    document["warnings"] = [*dict.fromkeys(warnings), *document["warnings"]]
    document["seconds"] = time.perf_counter() - started
    return Difference(document, compared)


def _open(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    column: str | Sequence[str] | None,
    key: str | Sequence[str] | None,
    *,
    mixed_spaces: bool,
) -> tuple[VectorSource, VectorSource]:
    a, b = checked_path("a", a), checked_path("b", b)
    opened = partial(open_predictions, column=column, mixed_spaces=mixed_spaces)
    one, other = opened(a, key=key), opened(b, key=key)
    check_spaces(one, other, mixed=mixed_spaces)
    if one.width != other.width:
        raise InputError(
            "The vectors of the two sets differ in width. Expected: equal widths. "
            f"Received: {one.width} in {one.name} and {other.width} in {other.name}. Name other "
            "columns with `column`."
        )
    if not one.keys and _has(one, other.keys):
        one = opened(a, key=other.keys)
    elif not other.keys and _has(other, one.keys):
        other = opened(b, key=one.keys)
    # A run without a key stores row numbers, which go with those of data.
    keys = [side.keys or (ROW_COLUMN,) for side in (one, other)]
    if len({(len(key), key == (ROW_COLUMN,)) for key in keys}) > 1:
        said = " and ".join(
            f"{', '.join(f'`{name}`' for name in side.keys) or 'row numbers'} in {side.name}"
            for side in (one, other)
        )
        raise InputError(
            "The two sets have different keys. Expected: the same key in both. "
            f"Received: {said}. Set it with `key`."
        )
    return one, other


def _has(predictions: VectorSource, key: tuple[str, ...]) -> bool:
    return bool(key) and set(key) <= set(predictions.columns)
