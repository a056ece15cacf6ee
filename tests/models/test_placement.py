"""What predictions depend on beside their rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from batchnorm_tool.chunk import Field
from batchnorm_tool.errors import ModelError, ModelFailed
from batchnorm_tool.models.batching import IdentityPredictor
from batchnorm_tool.models.placement import (
    _chosen,
    examine,
    independent_batch_size,
    is_place_independent,
)

Rows = Mapping[str, np.ndarray]
SAMPLE = {"x": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)}


@dataclass(frozen=True)
class Blocks(IdentityPredictor):
    """Rows behind the last full block of so many come out otherwise."""

    block: int = 16
    asked: list[int] = field(default_factory=list)
    own: int | None = None
    spoil: Callable[[np.ndarray], np.ndarray] = lambda rows: np.nextafter(rows, np.float32(9))

    def with_batch_size(self, batch_size: int) -> Blocks:
        if self.own not in (None, batch_size):
            msg = "it has a batch size of its own"
            raise ModelError(msg)
        self.asked.append(batch_size)
        return replace(self, batch_size=batch_size)

    def predict(self, features: Rows) -> dict[str, np.ndarray]:
        assert len(features["x"]) == self.batch_size
        found = features["x"].copy()
        whole = len(found) // self.block * self.block
        found[whole:] = self.spoil(found[whole:])
        return {"y": found}


@pytest.mark.parametrize(
    ("sizes", "expected", "asked"),
    [
        ((64, 48), 64, [64]),
        ((100, 96), 96, [100, 96]),
        ((None, 0, 96), 96, [96]),
        ((100, 90), None, [100, 90]),
        ((), None, []),
    ],
    ids=["the first", "the next", "sizes that are none", "none", "nothing to try"],
)
def test_the_first_size_without_rows_left_over_is_taken(
    sizes: tuple[int, ...], expected: int | None, asked: list[int]
) -> None:
    model = Blocks()
    assert independent_batch_size(model, SAMPLE, sizes) == expected
    assert model.asked == asked


def test_a_size_that_the_model_does_not_take_is_passed_over() -> None:
    assert independent_batch_size(Blocks(own=32), SAMPLE, (96, 32)) == 32
    assert independent_batch_size(Blocks(own=40), SAMPLE, (96, 40)) is None


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 48, 100])
def test_what_does_each_row_alone_is_independent(batch_size: int) -> None:
    sized = IdentityPredictor().with_batch_size(batch_size)
    assert is_place_independent(sized, SAMPLE, batch_size)


@pytest.mark.parametrize("place", [0, 1, 5, 33, 51, 99], ids=str)
def test_one_place_that_differs_is_found(place: int) -> None:
    @dataclass(frozen=True)
    class Placed(IdentityPredictor):
        def predict(self, features: Rows) -> dict[str, np.ndarray]:
            found = features["x"].copy()
            found[place] = np.nextafter(found[place], np.float32(9))
            return {"y": found}

    assert not is_place_independent(Placed(), SAMPLE, 100)


def test_each_of_several_outputs_counts() -> None:
    @dataclass(frozen=True)
    class Two(Blocks):
        def predict(self, features: Rows) -> dict[str, np.ndarray]:
            return {"a": features["x"], **super().predict(features)}

    assert not is_place_independent(Two(batch_size=100), SAMPLE, 100)
    assert is_place_independent(Two(batch_size=96), SAMPLE, 96)


def test_a_sample_of_one_row_tells_too() -> None:
    one = {"x": SAMPLE["x"][:1]}
    assert not is_place_independent(Blocks(batch_size=100), one, 100)


def test_negative_zero_is_another_bit_pattern() -> None:
    model = Blocks(batch_size=100, spoil=lambda rows: -rows)
    assert not is_place_independent(model, {"x": np.zeros((1, 3), np.float32)}, 100)


def test_nan_is_equal_to_itself() -> None:
    model = IdentityPredictor(batch_size=100)
    assert is_place_independent(model, {"x": np.full((1, 3), np.nan, np.float32)}, 100)


# ---- other rows and earlier calls


@dataclass(frozen=True)
class Model(IdentityPredictor):
    """Computes with a batch whatever it is told to."""

    compute: Callable[[np.ndarray], np.ndarray] = lambda rows: rows

    def predict(self, features: Rows) -> dict[str, np.ndarray]:
        assert len(features["x"]) == self.batch_size
        return {"y": self.compute(features["x"])}


def check(model: Model, array: np.ndarray, size: int = 32, *, accept: bool = False) -> None:
    model = replace(model, inputs=(Field("y", array.shape[1:], "float32"),))
    sized = model.with_batch_size(size)
    examine(model, sized, {"x": array}, batch_dependent=accept)


NUMBERS = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
INPUTS = {
    "distinct": NUMBERS,
    "constant": np.ones_like(NUMBERS),
    "zeros": np.zeros_like(NUMBERS),
    "one row": NUMBERS[:1],
    "one number": NUMBERS[:, :1],
    "whole": np.arange(40).reshape(40, 1),
}
MIXING: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda x: x + x.mean(0),
    "a little of the mean": lambda x: x + 0.03 * x.mean(0),
    "maximum": lambda x: x / np.maximum(np.abs(x).max(0), 1e-9),
    "softmax": lambda x: np.exp(x - x.max(0)) / np.exp(x - x.max(0)).sum(0),
    "neighbour": lambda x: x + np.roll(x, 1, 0),
    "sum so far": lambda x: x.cumsum(0),
    "order": lambda x: x + x.argsort(0),
    "place": lambda x: x + np.arange(len(x))[:, None],
    "size": lambda x: (x + 1) / len(x),
    "one of two columns": lambda x: np.concatenate([1e9 * x, x + x.mean(0)], 1),
}


@pytest.mark.parametrize("array", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("compute", MIXING.values(), ids=MIXING)
def test_a_model_that_mixes_rows_is_found_whatever_the_rows_are(
    compute: Callable[[np.ndarray], np.ndarray], array: np.ndarray
) -> None:
    with pytest.raises(ModelError, match="predictions for a row depend on the other rows"):
        check(Model(compute=compute), array)
    check(Model(compute=compute), array, accept=True)


def test_text_that_is_mixed_is_found() -> None:
    def lengths(words: np.ndarray) -> np.ndarray:
        found = np.array([[float(len(word))] for word in words])
        return found + found.max(0)

    with pytest.raises(ModelError, match="depend on the other rows"):
        check(Model(compute=lengths), np.array(["", "", ""], object))


ALONE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "itself": lambda x: x,
    "steep": lambda x: np.exp(50 * x.astype(float)),
    "not finite": lambda x: np.where(x > 0, np.inf, np.where(x < 0, np.nan, x)),
    "other kernels elsewhere": lambda x: x * (1 + np.arange(len(x))[:, None] * 1e-7),
    "a few tip over elsewhere": lambda x: x + 9 * (np.arange(len(x)) % 5 == 0)[:, None],
}


@pytest.mark.parametrize("array", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("compute", ALONE.values(), ids=ALONE)
def test_a_model_that_does_each_row_alone_is_no_false_alarm(
    compute: Callable[[np.ndarray], np.ndarray], array: np.ndarray
) -> None:
    with np.errstate(all="ignore"):
        check(Model(compute=compute), array)


def test_rounding_beside_longer_rows_is_no_false_alarm() -> None:
    longest = lambda x: x * (1 + np.abs(x).max() * 1e-6)  # noqa: E731
    check(Model(compute=longest), NUMBERS)


def test_neighbours_that_the_model_does_not_take_are_passed_over() -> None:
    def picky(ids: np.ndarray) -> np.ndarray:
        if (ids < 5).any() or (ids > 9).any():
            msg = "not an id"
            raise ModelFailed(msg)
        return ids + mixed * ids.mean(0)

    array = np.arange(5, 10).reshape(5, 1)
    for mixed in (0, 1):
        if mixed:
            with pytest.raises(ModelError, match="depend on the other rows"):
                check(Model(compute=picky), array)
        else:
            check(Model(compute=picky), array)


@pytest.mark.parametrize("accept", [False, True], ids=["refuse", "accept"])
@pytest.mark.parametrize("drift", [1e-4, 1.0])
def test_state_is_found_also_where_mixing_is_accepted(drift: float, *, accept: bool) -> None:
    calls: list[int] = []

    def counted(rows: np.ndarray) -> np.ndarray:
        calls.append(len(rows))
        return rows * (1 + drift * len(calls))

    with pytest.raises(
        ModelError, match="differ from call to call: it keeps state, or draws random numbers"
    ):
        check(Model(compute=counted), NUMBERS, accept=accept)


def test_state_that_follows_the_largest_row_is_found() -> None:
    largest = [0.0]

    def scaled(rows: np.ndarray) -> np.ndarray:
        largest[0] = max(largest[0], float(np.abs(rows).max()))
        return rows / largest[0]

    with pytest.raises(ModelError, match="keeps state"):
        check(Model(compute=scaled), NUMBERS)


@pytest.mark.parametrize(
    ("row_bytes", "expected"), [(65_536, 128), (1, 256), (2**30, 64)], ids=["some", "all", "none"]
)
def test_of_the_fastest_sizes_the_largest_that_the_caches_hold_is_chosen(
    row_bytes: int, expected: int
) -> None:
    speeds = {32: 50.0, 64: 100.0, 128: 99.0, 256: 98.0}
    assert _chosen(speeds, row_bytes) == expected
