from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from batchnorm_tool import Contract, InputError, JobError, ModelError, check
from batchnorm_tool.contract import ContractModel
from batchnorm_tool.models import security
from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.norms.normalization import Normalization
from tests.command_line import ENCODER, invoke
from tests.contract.building import UNIT, contract_of

NONE = Normalization(Norm("none"))


@pytest.fixture(scope="module")
def content() -> str:
    with security.examine_copy(ENCODER) as copied:
        return copied.report.content


@pytest.fixture(scope="module")
def contract(pixels: np.ndarray, raw: np.ndarray, content: str) -> Contract:
    return made(pixels, raw, content)


def made(
    pixels: np.ndarray,
    raw: np.ndarray,
    content: str,
    done: Normalization = UNIT,
    layer: str | None = None,
) -> Contract:
    model = ContractModel("digits_encoder.keras", content, layer)
    name = layer or "embedding"
    return contract_of({"pixels": pixels[:16]}, {name: raw[:16]}, done, model=model)


@pytest.fixture
def result(contract: Contract, tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "contract.json").write_bytes(contract.to_bytes())
    return tmp_path / "out"


@pytest.fixture(scope="module")
def baked(encoder: keras.Model) -> keras.Model:
    unit = keras.layers.UnitNormalization(name="unit")(encoder.outputs[0])
    return keras.Model(encoder.inputs, unit)


def test_a_raw_model_is_not_normalized(result: Path) -> None:
    done = invoke("check", ENCODER, "--against", result, "--json")
    document = json.loads(done.stdout)
    assert done.exit_code == document["exit_code"] == 4
    named = ("status", "error", "agrees", "cause", "rows", "agreeing", "output")
    assert {name: document[name] for name in named} == {
        "status": "failed",
        "error": "ContractBroken",
        "agrees": False,
        "cause": "not_normalized",
        "rows": 16,
        "agreeing": 0,
        "output": "embedding",
    }
    said = invoke("check", ENCODER, "--against", result, "--quiet")
    assert (said.exit_code, said.stdout) == (4, "")
    assert said.stderr == f"error: {document['message']}\n"


def test_a_model_with_the_norm_in_it_agrees(
    result: Path, baked: keras.Model, tmp_path: Path
) -> None:
    baked.save(tmp_path / "query.keras")
    done = invoke("check", tmp_path / "query.keras", "--against", result, "--json")
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert {name: document[name] for name in ("status", "agrees", "cause", "agreeing")} == {
        "status": "done",
        "agrees": True,
        "cause": None,
        "agreeing": 16,
    }
    said = invoke("check", tmp_path / "query.keras", "--against", result / "contract.json")
    assert said.stdout == "OK. 16 of 16 canary rows agree.\n"


def test_a_model_in_memory_is_checked(contract: Contract, baked: keras.Model) -> None:
    assert check(baked, contract).agrees
    with pytest.raises(JobError, match="`layer` and `backend` are for the path of a model"):
        check(baked, contract, layer="unit")


def test_without_a_norm_the_model_agrees(
    pixels: np.ndarray, raw: np.ndarray, content: str, encoder: keras.Model
) -> None:
    assert check(encoder, made(pixels, raw, content, NONE)).agrees


def test_the_layer_of_the_contract_is_taken_of_the_same_model(
    pixels: np.ndarray, content: str, encoder: keras.Model
) -> None:
    layer = encoder.layers[-2].name
    inner = keras.Model(encoder.inputs, encoder.get_layer(layer).output)
    contract = made(pixels, inner.predict(pixels[:16], verbose=0), content, NONE, layer)
    assert check(ENCODER, contract).agrees
    assert check(ENCODER, contract, layer=encoder.layers[-1].name).cause == "other_model"
    assert check(ENCODER, contract, outputs=["embedding"]).cause == "other_model"


def test_a_model_of_columns_in_another_order_is_named(
    contract: Contract, baked: keras.Model
) -> None:
    other = keras.models.clone_model(baked)
    first, *weights = baked.get_weights()
    first[[3, 20]] = first[[20, 3]]
    other.set_weights([first, *weights])
    report = check(other, contract)
    assert (report.cause, report.swapped) == ("other_preprocessing", ("pixels[3]", "pixels[20]"))


INPUTS = {
    "wider": ([((65,), "float32", "pixels")], "`pixels` float32(65,)"),
    "integers": ([((64,), "int32", "pixels")], "`pixels` int32(64,)"),
    "two": ([((64,), "float32", "a"), ((1,), "float32", "b")], "`a` float32(64,), `b`"),
}


@pytest.mark.parametrize("inputs", INPUTS)
def test_a_model_of_other_inputs_is_refused(contract: Contract, inputs: str) -> None:
    wanted, words = INPUTS[inputs]
    layers = [keras.Input(shape, dtype=dtype, name=name) for shape, dtype, name in wanted]
    summed = keras.ops.sum(keras.ops.cast(layers[0], "float32"), axis=-1, keepdims=True)
    with pytest.raises(ModelError) as raised:
        check(keras.Model(layers, summed), contract)
    assert f"Expected: `pixels` float32(64,). Received: {words}" in str(raised.value)


def test_a_lone_input_may_have_another_name(contract: Contract, baked: keras.Model) -> None:
    x = keras.Input((64,), name="query")
    assert check(keras.Model(x, baked(x)), contract).agrees


def test_a_contract_without_canaries_is_refused(
    pixels: np.ndarray, raw: np.ndarray, content: str, encoder: keras.Model
) -> None:
    with pytest.raises(InputError, match="no canary rows"):
        check(encoder, made(pixels, raw[:0], content))
