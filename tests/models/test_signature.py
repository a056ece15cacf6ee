"""What a file tells of its model is what loading it tells, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest

from batchnorm_tool.job import Engine, Model
from batchnorm_tool.models import describe_model, security
from batchnorm_tool.models.security.archive import read_keras_archive
from batchnorm_tool.models.signature import keras_interface

pytestmark = pytest.mark.usefixtures("tensorflow")


def dense(units: int, name: str | None = None) -> Any:
    return keras.layers.Dense(units, name=name)


def in_dictionaries() -> Any:
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b", dtype="int32")
    both = keras.layers.Concatenate()([a, dense(2)(keras.layers.Rescaling(1.0)(b))])
    return keras.Model({"left": a, "right": b}, {"sum": dense(2)(both), "first": dense(1)(a)})


def in_lists() -> Any:
    a, b = keras.Input((None, 3)), keras.Input((4,), dtype="float64")
    pooled = keras.layers.GlobalAveragePooling1D(name="pooled")(a)
    return keras.Model([a, b], [pooled, dense(2, "p")(b), b])


def of_fixed_batches() -> Any:
    x = keras.Input(batch_shape=(8, 2, 2))
    return keras.Model(x, dense(2)(keras.layers.Flatten()(x)))


def built_late() -> Any:
    model = keras.Sequential([dense(3), dense(2, "last")])
    model.build((None, 4))
    return model


def nested_lists() -> Any:
    a, b, c = (keras.Input((2,)) for _ in range(3))
    return keras.Model([a, [b, c]], keras.layers.Add()([a, b, c]))


def inner_model() -> Any:
    x, y = keras.Input((4,)), keras.Input((4,))
    inner = keras.Model(x, [dense(2)(x), dense(3)(x)])
    return keras.Model(y, inner(y))


def states() -> Any:
    x = keras.Input((5, 3))
    return keras.Model(x, keras.layers.LSTM(4, return_state=True)(x))


TOLD: dict[Callable[[], Any], bool] = {
    **dict.fromkeys((in_dictionaries, in_lists, of_fixed_batches, built_late), True),
    **dict.fromkeys((nested_lists, inner_model, states), False),
}


@pytest.mark.parametrize(("make", "told"), TOLD.items(), ids=[make.__name__ for make in TOLD])
@pytest.mark.parametrize("suffix", ["keras", "h5", ""])
@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")
def test_a_signature_is_what_loading_tells_or_nothing(
    tmp_path: Path, make: Callable[[], Any], suffix: str, *, told: bool
) -> None:
    path = tmp_path / f"model.{suffix}"
    model = make()
    if suffix:
        model.save(path)
    else:
        model.export(path, verbose=False)
    with security.examine_copy(str(path)) as copied:
        inputs, outputs = describe_model(Model(path=str(path)), copied.path, Engine())
        interface = copied.report.interface
    assert interface is not None
    found = interface.chosen(Model(path=str(path)))
    if told or not suffix:
        assert found is not None
        assert found.inputs == inputs
        assert list(found.outputs) == [output.name for output in outputs]
    else:
        assert found is None
    if suffix:
        assert interface.layers == tuple(layer.name for layer in model.layers)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("config", "input_layers"), [["nobody", 0, 0]]),
        (("config", "input_layers"), 7),
        (("config", "output_layers"), []),
        (("config", "layers", 0, "config", "batch_shape"), "wide"),
        (("config", "layers", 0, "config", "dtype"), {"name": "float32"}),
        (("config", "layers", 0, "config", "sparse"), True),
        (("config", "layers", 0, "class_name"), "Dense"),
    ],
)
def test_an_architecture_in_doubt_tells_no_signature(
    samples: Path, place: tuple[Any, ...], value: object
) -> None:
    path = str(samples / "digits_two_inputs.keras")
    config = read_keras_archive(path, path).config
    known = keras_interface(config)
    assert known is not None
    assert known.signatures[""] is not None
    inner = config
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    doubtful = keras_interface(config)
    assert doubtful is not None
    assert doubtful.signatures[""] is None
    assert doubtful.layers == known.layers


@pytest.mark.parametrize("config", [None, [], {}, {"class_name": "Tower", "config": {}}, 3])
def test_what_keras_did_not_write_tells_nothing(config: object) -> None:
    assert keras_interface(config) is None
