from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from batchnorm_tool import ContractBroken, normalize
from batchnorm_tool.contract import Contract
from batchnorm_tool.errors import InputError
from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.norms.normalization import Normalization, unit_direction
from tests.contract.building import UNIT, contract_of
from tests.contract.encoders import ENCODERS, ROWS, Encoder, encode_with

pytestmark = pytest.mark.usefixtures("tensorflow")

HALF_MEAN = unit_direction(np.arange(1.0, 7.0))


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return ENCODERS[request.param]()


@pytest.fixture(scope="module")
def contract(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Contract:
    """That of a finished run, whose output is called as the last layer."""
    contract = Contract.load(encoder.run(tmp_path_factory.mktemp("run")))
    assert [(f.input, f.columns) for f in contract.features] == [*encoder.columns.items()]
    assert len(contract.canaries) == ROWS
    return contract


def made(encoder: Encoder, done: Normalization) -> Contract:
    built = contract_of(encoder.features, {"y": encoder.raw}, done, encoder.columns)
    return Contract.from_bytes(built.to_bytes())


def int8(encoder: Encoder) -> Normalization:
    scale = Normalization(Norm("l2")).apply(encoder.raw)[0]
    return Normalization(Norm("l2"), dtype="int8", scale=float(np.abs(scale).max()) / 127)


DONE: dict[str, Callable[[Encoder], Normalization]] = {
    "l2": lambda _: UNIT,
    "l1": lambda _: Normalization(Norm("l1")),
    "lp": lambda _: Normalization(Norm("lp", 3.0)),
    "none": lambda _: Normalization(Norm("none")),
    "truncate": lambda _: Normalization(Norm("l2"), truncate=6),
    "mean": lambda _: Normalization(Norm("l2"), 6, HALF_MEAN),
    "int8": int8,
    "int8 truncate": lambda encoder: Normalization(Norm("l2"), 6, None, "int8", 1 / 127),
    "binary": lambda _: Normalization(Norm("l2"), dtype="binary"),
}


@pytest.mark.parametrize("kind", DONE)
def test_the_same_agrees(encoder: Encoder, kind: str) -> None:
    contract = made(encoder, DONE[kind](encoder))
    report = contract.require(encode_with(encoder, contract))
    assert report.to_dict() == {
        "agrees": True,
        "cause": None,
        "rows": ROWS,
        "agreeing": ROWS,
        "largest_difference": pytest.approx(0, abs=1e-6),
        "message": "16 of 16 canary rows agree.",
        "output": None,
        "swapped": None,
    }


@pytest.mark.parametrize("kind", [kind for kind in DONE if kind != "none"])
def test_a_raw_model_is_not_normalized(encoder: Encoder, kind: str) -> None:
    contract = made(encoder, DONE[kind](encoder))
    report = contract.check(encode_with(encoder, contract, np.asarray))
    assert (report.cause, report.agreeing) == ("not_normalized", 0)
    assert "raw lengths" in report.message


AFTER: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray], str]] = {
    "norm forgotten": ("not_normalized", np.asarray, "Normalize it as the contract says (norm l2"),
    "another length": ("not_normalized", lambda x: normalize(x) * 7, "other lengths"),
    "l1 for l2": ("other_norm", lambda x: normalize(x, "l1"), "the norm `l1`"),
    "max for l2": ("other_norm", lambda x: normalize(x, "max"), "the norm `max`"),
    "lp for l2": ("other_norm", lambda x: normalize(x, "lp:3"), "the norm `lp:3`"),
    "float16": ("other_dtype", lambda x: normalize(x).astype(np.float16), "half precision"),
    "rounded to float16": (
        "other_dtype",
        lambda x: normalize(x).astype(np.float16).astype(np.float32),
        "half precision",
    ),
    "predicted in float16": ("other_dtype", lambda x: normalize(x.astype(np.float16)), "half"),
    "truncated": ("truncated", lambda x: normalize(x[:, :6]), "only the first 6 components"),
    "cut after the norm": ("truncated", lambda x: normalize(x)[:, :6], "where "),
    "unscaled int8": (
        "other_dtype",
        lambda x: np.rint(normalize(x) * 127).astype(np.int8),
        "holds integers (int8)",
    ),
    "int8 of each row": (
        "other_dtype",
        lambda x: np.rint(normalize(x, "max") * 127).astype(np.int64),
        "holds integers (int64)",
    ),
    "cut to int8": ("other_dtype", lambda x: normalize(x).astype(np.int8), "holds integers"),
    "rows reversed": (
        "row_order",
        lambda x: normalize(x)[::-1],
        "row 0 of `y` is the vector of row",
    ),
    "rows reversed and raw": ("row_order", lambda x: x[::-1], "order of the rows"),
    "some rows": (
        "other_preprocessing",
        lambda x: normalize(np.where(np.arange(ROWS)[:, None] % 2, x, x + 1)),
        "8 of 16 canary rows agree: 8 of `y` come from the same model",
    ),
    "some rows are NaN": (
        "other_preprocessing",
        lambda x: normalize(np.where(np.arange(ROWS)[:, None] > 2, x, np.nan)),
        "13 of 16 canary rows agree: 13 of `y` come from the same model, and some are NaN",
    ),
    "all NaN": ("other_model", lambda x: x * np.nan, "some are NaN or infinite"),
    "zeros": ("other_model", lambda x: x * 0, "Use the model that made the vectors"),
    "another width": ("other_model", lambda x: x[:, ::-1][:, :5], "vectors of `y` are not"),
    "bias": (
        "other_model",
        lambda x: normalize(x + 0.01),
        "Expected: `model.keras` with the content ",
    ),
    "negated": ("other_model", lambda x: -normalize(x), "other_model"),
}


@pytest.mark.parametrize("wrong", AFTER)
def test_a_wrong_after_predicting_is_named(
    encoder: Encoder, contract: Contract, wrong: str
) -> None:
    cause, after, words = AFTER[wrong]
    report = contract.check(encode_with(encoder, contract, after))
    assert (report.cause, report.output) == (cause, "y"), report.message
    assert not report.agrees
    assert words in report.message or words == cause
    with pytest.raises(ContractBroken) as raised:
        contract.require(encode_with(encoder, contract, after))
    assert raised.value.message == report.message
    assert raised.value.exit_code == 4


def test_other_weights_are_another_model(encoder: Encoder, contract: Contract) -> None:
    other = other_weights(encoder)
    assert contract.check(encode_with(other, contract)).cause == "other_model"


def test_another_bias_is_another_model(encoder: Encoder, contract: Contract) -> None:
    other = other_bias(encoder)
    assert contract.check(encode_with(other, contract)).cause == "other_model"


@pytest.mark.parametrize("after", [None, np.asarray], ids=["normalized", "raw"])
def test_swapped_features_are_named(encoder: Encoder, contract: Contract, after: Any) -> None:
    right = encode_with(encoder, contract, after)

    def encode(given: Any) -> np.ndarray:
        named = given if isinstance(given, dict) else {next(iter(encoder.features)): given}
        swapped = encoder.swapped(named)
        return right(swapped if len(swapped) > 1 else next(iter(swapped.values())))

    report = contract.check(encode)
    assert report.cause == "other_preprocessing", report.message
    assert report.swapped == encoder.swap
    assert f"`{encoder.swap[0]}` and `{encoder.swap[1]}` are swapped" in report.message


def other_weights(encoder: Encoder) -> Encoder:
    import keras

    model = keras.models.clone_model(encoder.model)
    rng = np.random.default_rng(9)
    model.set_weights(
        [
            mine if mine.dtype.kind in "OSU" else rng.normal(size=mine.shape)
            for mine in encoder.model.get_weights()
        ]
    )
    return Encoder(model, encoder.features, encoder.columns, encoder.swap)


def other_bias(encoder: Encoder) -> Encoder:
    import keras

    model = keras.models.clone_model(encoder.model)
    *weights, bias = encoder.model.get_weights()
    model.set_weights([*weights, bias + np.eye(1, len(bias))[0] * 0.05])
    return Encoder(model, encoder.features, encoder.columns, encoder.swap)


OTHER_DONE: dict[str, tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = {
    "int8 as floats": ("int8", "other_dtype", normalize),
    "int8 in other steps": (
        "int8",
        "other_dtype",
        lambda x: np.rint(normalize(x) * 100).astype(np.int8),
    ),
    "int8 by l1": ("int8", "other_norm", lambda x: normalize(x, "l1")),
    "binary as floats": ("binary", "other_dtype", normalize),
    "binary as signs": ("binary", "other_dtype", np.sign),
    "not truncated": ("truncate", "truncated", normalize),
    "truncated further": ("truncate", "truncated", lambda x: normalize(x[:, :4])),
    "int8 not truncated": ("int8 truncate", "truncated", normalize),
    "mean kept": ("mean", "not_normalized", lambda x: normalize(x[:, :6])),
    "l2 for none": ("none", "other_norm", normalize),
    "none doubled": ("none", "other_norm", lambda x: 2 * x),
    "none in float16": ("none", "other_dtype", lambda x: x.astype(np.float16)),
    "l2 for l1": ("l1", "other_norm", normalize),
    "binary of another model": ("binary", "other_model", lambda x: -normalize(x)),
    "int8 of another model": (
        "int8",
        "other_model",
        lambda x: np.rint(127 * normalize(x[:, ::-1])),
    ),
}


@pytest.mark.parametrize("wrong", OTHER_DONE)
def test_a_wrong_against_other_contracts(encoder: Encoder, wrong: str) -> None:
    kind, cause, after = OTHER_DONE[wrong]
    contract = made(encoder, DONE[kind](encoder))
    report = contract.check(encode_with(encoder, contract, after))
    assert report.cause == cause, report.message


def test_an_encoder_that_gives_no_vectors_is_told_so(contract: Contract) -> None:
    for answer in (None, "embedding"):
        with pytest.raises(InputError, match=r"The encoder's `.*` holds no vectors"):
            contract.check(lambda _, answer=answer: answer)


def test_most_of_rows_that_are_much_alike_tell_of_the_model() -> None:
    raw = np.random.default_rng(1).standard_normal((6, 9))[np.arange(16) % 6]
    contract = contract_of({"x": raw}, {"y": raw})
    report = contract.check(lambda x: normalize(np.where(np.arange(16)[:, None] < 14, x, -x)))
    assert (report.cause, report.agreeing) == ("other_preprocessing", 14)
    other = contract.check(lambda x: normalize(np.where(np.arange(16)[:, None] < 3, x, -x)))
    assert other.cause == "other_model"
    assert "the vectors of `y` are not those of its rows" in other.message


def test_a_wider_dtype_and_lists_agree(encoder: Encoder, contract: Contract) -> None:
    for after in (lambda x: normalize(x.astype(np.float64)), lambda x: normalize(x).tolist()):
        assert contract.check(encode_with(encoder, contract, after)).agrees
