"""What a check says of encoders that no cause fits, and of contracts of several outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from batchnorm_tool import InputError, Interrupted, normalize
from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.norms.normalization import Normalization
from tests.contract.building import UNIT, contract_of

RANDOM = np.random.default_rng(5)
X = RANDOM.normal(size=(16, 5)).astype(np.float32)
WEIGHTS = RANDOM.normal(size=(5, 12)).astype(np.float32)
ONE = contract_of({"x": X}, {"y": X @ WEIGHTS}, columns={"x": ("a", "b", "c", "d", "e")})
TWO = contract_of({"x": X}, {"y": X @ WEIGHTS, "z": X})


def two(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"y": normalize(x @ WEIGHTS), "z": normalize(x)}


def failing(x: np.ndarray) -> np.ndarray:
    raise RuntimeError("no connection")


@pytest.mark.parametrize(
    ("encode", "words"),
    [
        (failing, "RuntimeError: no connection. Expected: a function of `x` float32(16, 5)"),
        (lambda x: (x @ WEIGHTS)[:8], "has the shape (8, 12). Expected: (16, 12)"),
        (lambda x: x[0, 0], "has the shape (). Expected: (16, 12)"),
        (lambda x: [[1.0], [1.0, 2.0]], "The encoder fails on the canary rows: ValueError"),
        (lambda x: "vectors", "Norms need real numbers"),
        (lambda x: {"a": x, "b": x}, "mapping with the outputs ['y']. Received: ['a', 'b']"),
        (lambda x: None, "Norms need real numbers"),
    ],
    ids=["fails", "too few rows", "a number", "ragged", "text", "other names", "nothing"],
)
def test_what_is_no_result_is_refused(encode: Callable[[Any], Any], words: str) -> None:
    with pytest.raises(InputError) as raised:
        ONE.check(encode)
    assert words in str(raised.value)


def test_a_contract_without_canaries_cannot_be_checked() -> None:
    with pytest.raises(InputError, match="no canary rows"):
        replace(ONE, canaries=()).check(failing)


def test_each_of_several_outputs_must_agree() -> None:
    assert TWO.check(two).agrees
    report = TWO.check(lambda x: two(x) | {"z": x})
    assert (report.cause, report.output, report.agreeing) == ("not_normalized", "z", 0)
    report = TWO.check(lambda x: two(x) | {"z": normalize(np.vstack([x[:9], x[9:] + 1]))})
    assert (report.cause, report.output, report.agreeing) == ("other_preprocessing", "z", 9)


def test_an_encoder_gets_the_features_in_their_dtype() -> None:
    seen: list[np.ndarray] = []
    ids = np.arange(16)
    contract = contract_of({"x": X, "id": ids}, {"y": X})
    assert contract.check(lambda given: seen.append(given) or normalize(given["x"])).agrees
    (given,) = seen
    assert {name: (a.dtype, a.shape) for name, a in given.items()} == {
        "x": (np.dtype(np.float32), (16, 5)),
        "id": (np.dtype(np.int64), (16,)),
    }
    np.testing.assert_array_equal(given["id"], ids)


@pytest.mark.parametrize(
    ("axis", "norm", "truncate"),
    [(-1, "l2", None), (-1, "l1", 2), ("all", "max", None), ("all", "l2", 5)],
    ids=["each", "each truncated", "the whole row", "the whole row truncated"],
)
def test_rows_of_several_vectors(axis: object, norm: str, truncate: int | None) -> None:
    raw = RANDOM.normal(size=(16, 3, 4)).astype(np.float32)
    contract = contract_of({"x": X}, {"y": raw}, Normalization(Norm(norm), truncate), axis=axis)
    assert contract.check(lambda _: contract.apply(raw)).agrees
    assert contract.check(lambda _: raw).cause == "not_normalized"
    assert contract.check(lambda _: contract.apply(raw)[::-1]).cause == "row_order"
    mixed = np.where(np.arange(16)[:, None, None] < 4, raw, raw[:, ::-1])
    report = contract.check(lambda _: contract.apply(mixed))
    assert (report.cause, report.agreeing) == ("other_preprocessing", 4)


DONE = {
    "float32": (UNIT, "float32"),
    "float16": (UNIT, "float16"),
    "float64": (Normalization(Norm("none")), "float64"),
    "int8": (Normalization(Norm("l2"), dtype="int8", scale=0.9 / 127), "float32"),
    "binary": (Normalization(Norm("l1"), dtype="binary"), "float32"),
}


@pytest.mark.parametrize("kind", DONE)
def test_another_machine_agrees_and_another_model_does_not(kind: str) -> None:
    done, dtype = DONE[kind]
    raw = RANDOM.normal(size=(16, 64)).astype(np.float32)
    contract = contract_of({"x": X}, {"y": raw}, done, dtype=dtype)
    noise = 1e-6 * RANDOM.uniform(-1, 1, raw.shape) * np.abs(raw).max(axis=1, keepdims=True)
    report = contract.check(lambda _: contract.apply(raw + noise))
    assert report.agrees
    assert report.largest_difference is not None
    assert report.largest_difference < 0.02
    other = contract.check(lambda _: contract.apply(raw[:, ::-1]))
    assert (other.cause, other.agreeing) == ("other_model", 0)
    assert other.largest_difference is not None
    assert other.largest_difference > 0.5


def test_what_half_a_row_and_few_bits_show_names_no_cause() -> None:
    raw = RANDOM.normal(size=(16, 64)).astype(np.float32)
    contract = contract_of({"x": X}, {"y": raw}, dtype="float16")
    other = raw + np.eye(1, 64, dtype=np.float32) / 50
    assert contract.check(lambda _: contract.apply(other)).cause == "other_model"
    signs = contract_of({"x": X}, {"y": raw[:, :1]})
    for wrong in (raw[::-1, :1], raw[:, 1:2]):
        report = signs.check(lambda _, wrong=wrong: signs.apply(wrong))
        assert report.cause == "other_model"


@pytest.mark.parametrize(
    ("components", "steps", "agreeing"),
    [(1, 1, 16), (2, -1, 16), (3, 1, 0), (1, 2, 0)],
    ids=["one", "two", "three", "two steps"],
)
def test_few_components_of_int8_may_be_off_by_a_step(
    components: int, steps: int, agreeing: int
) -> None:
    raw = RANDOM.normal(size=(16, 64)).astype(np.float32)
    contract = contract_of({"x": X}, {"y": raw}, DONE["int8"][0])
    codes = contract.apply(raw).astype(np.int64)
    codes[:, :components] += steps
    assert contract.check(lambda _: codes).agreeing == agreeing


def test_integers_are_codes_where_their_vectors_are_right() -> None:
    for order, cause in ((1, "other_dtype"), (-1, "other_model")):
        weights = WEIGHTS[:, ::order]
        report = ONE.check(lambda x, w=weights: np.rint(5 * normalize(x @ w)).astype(np.int8))
        assert report.cause == cause


def test_a_model_that_normalizes_already_is_not_said_not_to() -> None:
    contract = contract_of({"x": X}, {"y": normalize(X)})
    report = contract.check(lambda x: normalize(x).astype(np.float16))
    assert report.cause == "other_dtype"


def test_of_packed_bits_a_beginning_is_truncated() -> None:
    raw = RANDOM.normal(size=(16, 64)).astype(np.float32)
    contract = contract_of({"x": X}, {"y": raw}, DONE["binary"][0])
    report = contract.check(lambda _: contract.apply(raw)[:, :5])
    assert report.cause == "truncated"
    assert "only the first 5 components, where 8 are stored" in report.message


@pytest.mark.parametrize("scale", [1e-30, 1e30], ids=["small", "large"])
def test_rows_near_the_ends_of_a_dtype(scale: float) -> None:
    raw = (X * scale).astype(np.float32)
    contract = contract_of({"x": X}, {"y": raw})
    assert contract.check(lambda _: normalize(raw)).agrees
    assert contract.check(lambda _: raw).cause == "not_normalized"
    assert contract.check(lambda _: raw * 0).cause == "other_model"


def test_a_zero_row_agrees_with_zeros_alone() -> None:
    raw = np.vstack([np.zeros((1, 5), np.float32), X[1:]])
    contract = contract_of({"x": X}, {"y": raw})
    assert contract.check(lambda _: normalize(raw)).agrees
    report = contract.check(
        lambda _: normalize(raw + np.eye(16, 5) * (np.arange(16) == 0)[:, None])
    )
    assert (report.cause, report.agreeing) == ("other_preprocessing", 15)


def test_of_counts_and_codes_each_is_named() -> None:
    counts = RANDOM.integers(0, 100, (16, 8))
    contract = contract_of({"x": X}, {"y": counts.astype(np.float32)})
    assert contract.check(lambda _: counts).cause == "not_normalized"
    assert contract.check(lambda _: np.rint(normalize(counts) * 127)).cause == "other_dtype"


def test_columns_of_one_list_are_swapped_by_place() -> None:
    contract = replace(ONE, features=(replace(ONE.features[0], columns=("list",)),))
    report = contract.check(lambda x: normalize(x[:, [0, 3, 2, 1, 4]] @ WEIGHTS))
    assert report.swapped == ("x[1]", "x[3]")


def test_the_search_for_swapped_features_ends() -> None:
    calls: list[int] = []
    for columns, most in ((("image",), 1), (tuple(f"c{i}" for i in range(100)), 2017)):
        x = RANDOM.normal(size=(16, 100)).astype(np.float32)
        contract = contract_of({"x": x}, {"y": X}, columns={"x": columns})
        calls.clear()
        report = contract.check(lambda x: calls.append(len(x)) or x[:, :5])
        assert (report.cause, len(calls)) == ("other_model", most)


def test_an_interruption_ends_the_search() -> None:
    def encode(x: np.ndarray) -> np.ndarray:
        if not np.array_equal(x, X):
            raise Interrupted("stopped")
        return x[:, ::-1]

    with pytest.raises(Interrupted):
        ONE.check(lambda x: encode(x) @ WEIGHTS)


def test_whole_inputs_that_are_swapped_are_named() -> None:
    other = RANDOM.normal(size=(16, 5)).astype(np.float32)
    contract = contract_of(
        {"title": X, "text": other},
        {"y": X @ WEIGHTS - other @ WEIGHTS},
        columns={"title": ("name",), "text": ("text_1", "text_2")},
    )
    report = contract.check(lambda given: normalize((given["text"] - given["title"]) @ WEIGHTS))
    assert report.swapped == ("name", "text")
