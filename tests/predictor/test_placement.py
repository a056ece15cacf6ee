"""Whether bits depend on a row's place in its batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from batchnorm_tool.errors import ModelError
from batchnorm_tool.predictor import IdentityPredictor, independent_batch_size
from batchnorm_tool.predictor.placement import is_place_independent

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
