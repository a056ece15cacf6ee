"""Norms with options, and powers of norms, against plain NumPy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from batchnorm_tool.comparison.neighbours import ArrayBase, Queries
from batchnorm_tool.comparison.scores import Metric
from batchnorm_tool.comparison.variants import Variant, fit, variant_neighbours, variants_of
from batchnorm_tool.errors import InputError, JobError
from batchnorm_tool.norms.norm import Norm
from tests.comparison.searched import neighbours

ROWS, WIDTH = 120, 12


@dataclass(frozen=True)
class Blocks(ArrayBase):
    """Rows that come in blocks of a few."""

    def blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.array), 7):
            yield self.array[start : start + 7]


def draw(seed: int = 0) -> np.ndarray:
    """Rows of all lengths around a direction that they share."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0.3, 1, (ROWS, WIDTH)) * rng.lognormal(0, 0.5, (ROWS, 1))
    return x.astype(np.float32)


def lengths(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x, axis=1, keepdims=True)


def off_mean(x: np.ndarray) -> np.ndarray:
    total = (x / lengths(x)).sum(axis=0)
    mean = total / np.linalg.norm(total)
    return x - (x @ mean)[:, np.newaxis] * mean


def steps(stored: np.ndarray) -> np.ndarray:
    return np.rint(stored / (np.abs(stored).max() / 127))


# What is stored of all rows at once.
ORACLES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda x: x,
    "l2": lambda x: x / lengths(x),
    "power:0.5": lambda x: x / lengths(x) ** 0.5,
    "power:1": lambda x: x / lengths(x),
    "l2:5": lambda x: x[:, :5] / lengths(x[:, :5]),
    "none:5": lambda x: x[:, :5],
    "lp:3:5": lambda x: x[:, :5] / (np.abs(x[:, :5]) ** 3).sum(axis=1, keepdims=True) ** (1 / 3),
    "max+mean": lambda x: off_mean(x) / np.abs(off_mean(x)).max(axis=1, keepdims=True),
    "power:0.25:5+mean": lambda x: off_mean(x[:, :5]) / lengths(off_mean(x[:, :5])) ** 0.25,
    "l2+int8": lambda x: steps(x / lengths(x)),
    "none+int8": steps,
    "l2:5+mean+int8": lambda x: steps(off_mean(x[:, :5]) / lengths(off_mean(x[:, :5]))),
    "l2+binary": lambda x: np.where(x > 0, 1.0, -1.0),
    "l1+mean+binary": lambda x: np.where(off_mean(x) > 0, 1.0, -1.0),
}


def nearest_by_oracle(label: str, x: np.ndarray, metric: Metric, k: int) -> np.ndarray:
    """All rows sorted by their score, rounded to where ties are ties, then by their number."""
    stored = ORACLES[label](x.astype(np.float64))
    units = stored / np.where(lengths(stored) == 0, 1, lengths(stored))
    scores = {
        Metric.DOT: lambda: stored @ stored.T,
        Metric.COSINE: lambda: units @ units.T,
        Metric.EUCLIDEAN: lambda: -np.linalg.norm(stored[:, None] - stored[None], axis=2),
    }[metric]()
    scores = np.array([[float(f"{score:.10e}") for score in row] for row in scores])
    np.fill_diagonal(scores, -np.inf)
    return np.array([np.lexsort((np.arange(len(x)), -row))[:k] for row in scores])


def found_in(base: ArrayBase, labels: list[str], metric: Metric, k: int) -> dict[str, np.ndarray]:
    fitted = fit(base, [Variant.parse(label) for label in labels])
    queries = Queries.of(base.array, np.arange(len(base.array)))
    return variant_neighbours(queries, base, fitted, metric, k)


@pytest.mark.parametrize("metric", list(Metric), ids=str)
def test_neighbours_are_those_of_the_vectors_that_would_be_stored(metric: Metric) -> None:
    x = draw()
    found = found_in(Blocks(x), list(ORACLES), metric, 20)
    assert list(found) == list(ORACLES)
    for label, rows in found.items():
        assert np.array_equal(rows, nearest_by_oracle(label, x, metric, 20)), label


def test_norms_without_options_are_found_as_before() -> None:
    base, norms = ArrayBase(draw()), [Norm.parse(name) for name in ("none", "l1", "max", "lp:3")]
    queries = Queries.of(base.array[:50], np.arange(50))
    fitted = fit(base, [Variant.parse(norm.label) for norm in norms])
    expected = neighbours(queries, base, norms, Metric.EUCLIDEAN, 9)
    found = variant_neighbours(queries, base, fitted, Metric.EUCLIDEAN, 9)
    assert all(np.array_equal(found[label], rows) for label, rows in expected.items())


def test_what_is_fitted_does_not_depend_on_blocks_nor_on_bad_rows() -> None:
    x = draw()
    # Bad in a component that is not kept, where it would decide.
    bad = np.concatenate([x[:3], 1e30 * np.ones((1, WIDTH), np.float32), x[3:]])
    bad[3, 7] = np.nan
    variants = variants_of(["l2:5+mean+int8", "max+mean", "none:5+int8"], WIDTH, "x")
    fitted = fit(ArrayBase(x), variants)
    assert fit(Blocks(x), variants) == fit(Blocks(bad), variants) == fitted
    largest = np.abs(x[:, :5]).max().astype(float)
    assert fitted[2].how.scale == pytest.approx(largest / 127, rel=1e-15)


@pytest.mark.parametrize("label", ["l2:5", "l2+mean", "l2+int8", "l2:5+binary", "power:0.5"])
def test_a_row_with_nan_is_no_neighbour(label: str) -> None:
    x = draw()[:60]
    x[4, WIDTH - 1], x[9] = np.nan, np.inf
    base = Blocks(x)
    fitted = fit(base, [Variant.parse(label)])
    asked = Queries.of(x[:3], np.arange(3))
    (rows,) = variant_neighbours(asked, base, fitted, Metric.DOT, 59).values()
    assert [sorted(row) for row in rows] == [
        [-1, -1, *(n for n in range(60) if n not in {4, 9, query})] for query in range(3)
    ]


@pytest.mark.parametrize(
    ("text", "label", "plain"),
    [
        ("cosine", "l2", "l2"),
        (" L2:256 + Mean + INT8", "l2:256+mean+int8", "l2"),
        ("none+int8+mean", "none+mean+int8", "none"),
        ("lp:2.5:8", "lp:2.5:8", "lp:2.5"),
        ("power:.50:8", "power:0.5:8", "power:0.5"),
        ("power:0.3333333333", "power:0.3333333333", "power:0.3333333333"),
    ],
)
def test_names_are_read_and_written_in_one_way(text: str, label: str, plain: str) -> None:
    found = Variant.parse(text)
    assert (found.label, found.plain) == (label, plain)
    assert Variant.parse(label) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("l2:0", "an integer of 1 or more, the number of components to keep. Received: '0'."),
        ("l2:-3", "an integer of 1 or more, the number of components to keep. Received: '-3'."),
        ("l2:", "an integer of 1 or more, the number of components to keep. Received: ''."),
        ("l2:2:3", "one number D of components to keep. Received: 'l2:2:3'."),
        ("l2:13", "at most 12 components, as x.npy has. Received: '13'."),
        ("power:2", "above 0 and at most 1. Received: '2'."),
        ("power:0", "above 0 and at most 1. Received: '0'."),
        ("power:nan", "above 0 and at most 1. Received: 'nan'."),
        ("power", "above 0 and at most 1. Received: ''."),
        ("l2+men", "one of mean, int8, binary after `+`. Received: 'men'. Did you mean `mean`?"),
        ("l2+", "one of mean, int8, binary after `+`. Received: ''."),
        (
            "l2+mean+mean",
            "`mean` once, and int8 or binary with a norm, not a power. Received: 'l2+mean+mean'.",
        ),
        (
            "l2+int8+binary",
            "`mean` once, and int8 or binary with a norm, not a power. Received: 'l2+int8+binary'.",
        ),
        ("power:0.5+int8", "int8 or binary with a norm, not a power. Received: 'power:0.5+int8'."),
    ],
    ids=str,
)
def test_other_names_are_refused(text: str, words: str) -> None:
    with pytest.raises(
        JobError, match=f"^`norms` cannot .* '{re.escape(text)}'.*{re.escape(words)}"
    ):
        variants_of(["l2", text], WIDTH, "x.npy")


def test_without_a_mean_direction_there_is_nothing_to_project_off() -> None:
    x = np.concatenate([draw(), -draw()])
    with pytest.raises(InputError, match=r"no mean direction.*Omit `\+mean`"):
        fit(ArrayBase(x), [Variant.parse("l2+mean")])
