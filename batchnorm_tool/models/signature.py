"""What a model takes and gives, as its file tells it before TensorFlow is imported.

A file that leaves a doubt tells nothing: what would work must not be refused for what stands here.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from batchnorm_tool.chunk import Field
from batchnorm_tool.display import did_you_mean
from batchnorm_tool.errors import JobError, ModelError
from batchnorm_tool.job import Model

T = TypeVar("T")
_DEFAULT_SIGNATURE = "serving_default"
_MODELS = ("Functional", "Model", "Sequential")
# By TensorFlow's numbers for them; what has none here is nothing that a model takes.
DTYPES = dict(
    enumerate(
        """
        - float32 float64 int32 uint8 int16 int8 string - int64 bool - - - bfloat16 - - uint16 -
        float16 - - uint32 uint64
        """.split()  # noqa: SIM905  (a column of quoted words says no more)
    )
)


@dataclass(frozen=True)
class Signature:
    """The inputs of a model, and the names of all outputs."""

    inputs: tuple[Field, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class ModelInterface:
    """What a model's file tells of all the ways to call it.

    Attributes:
        signatures: By name; ``None`` for one of which too little is known. That of a Keras model,
            which has no others, is called ``""``.
        layers: Names of a Keras model's layers; ``None`` where it is no Keras model.
    """

    signatures: Mapping[str, Signature | None]
    layers: tuple[str, ...] | None = None

    def chosen(self, model: Model) -> Signature | None:
        """Return what a job chooses; ``None`` where only loading the model tells.

        Raises:
            ModelError: There is no such layer or signature.
        """
        if self.layers is None:
            return choose_signature(model, self.signatures)
        if model.layer is not None:
            check_layer(model.layer, self.layers)
            return None
        return self.signatures.get("")


class OnnxInterface(ModelInterface):
    """What an ONNX file tells, under the name ``""``: there is one way to call it."""

    def chosen(self, model: Model) -> Signature | None:
        """Return all of it."""
        check_onnx_choice(model)
        return self.signatures[""]


def check_onnx_choice(model: Model) -> None:
    """Refuse to choose what an ONNX model does not have."""
    for name in ("layer", "signature"):
        if getattr(model, name) is not None:
            raise JobError(
                f"{model.path}: `model.{name}` does not work for an ONNX model, which has none. "
                "Choose with `model.outputs`."
            )


def choose_signature(model: Model, signatures: Mapping[str, T]) -> T:
    """Return the signature of a SavedModel that a job chooses."""
    if model.layer is not None:
        raise ModelError(
            f"{model.path}: `model.layer` works for .keras and .h5 files; a SavedModel has no "
            "layers. Choose with `model.signature` and `model.outputs`."
        )
    wanted = model.signature or _DEFAULT_SIGNATURE
    if wanted not in signatures:
        raise ModelError(
            f"{model.path}: has no signature `{wanted}`. Received: "
            f"{', '.join(sorted(signatures)) or 'none'}. Choose one with `model.signature`, or "
            "export the model with model.export()."
        )
    return signatures[wanted]


def check_layer(name: str, layers: Sequence[str]) -> None:
    """Refuse the name of a layer that a model does not have."""
    if name not in layers:
        raise ModelError(
            f"The model has no layer `{name}` (`model.layer`). Expected one of: "
            f"{', '.join(layers)}.{did_you_mean(name, layers)}"
        )


def keras_interface(config: Any) -> ModelInterface | None:
    """Return what the architecture of a Keras model tells, as Keras serialized it."""
    # Whatever is not as Keras 3 writes it fails somewhere here, and tells nothing.
    with contextlib.suppress(AttributeError, LookupError, TypeError, ValueError):
        if config["class_name"] in _MODELS:
            layers = [
                _name(layer)
                for layer in config["config"]["layers"]
                if _counts(layer, in_sequential=config["class_name"] == "Sequential")
            ]
            return ModelInterface({"": _signature(config)}, tuple(layers))
    return None


def _counts(layer: Any, *, in_sequential: bool) -> bool:
    """Tell whether Keras counts what is stored among a model's layers as one of them."""
    is_operation = str(layer.get("module")).startswith(("keras.ops", "keras.src.ops"))
    return not is_operation and not (in_sequential and layer["class_name"] == "InputLayer")


def _name(layer: Any) -> str:
    name = layer["config"]["name"]
    if not isinstance(name, str):
        raise TypeError(name)
    return name


def _signature(config: Any) -> Signature | None:
    with contextlib.suppress(AttributeError, LookupError, TypeError, ValueError):
        layers = config["config"]["layers"]
        if config["class_name"] == "Sequential":
            inputs, outputs = [_field(layers[0])], [_only_output(layers[-1])]
        else:
            by_name = {_name(layer): layer for layer in layers}
            named = _named(config["config"]["input_layers"])
            inputs = [_field(by_name[layer], name) for name, layer in named]
            outputs = [name for name, _ in _named(config["config"]["output_layers"])]
        names = [field.name for field in inputs]
        if len({*names}) == len(names) and len({*outputs}) == len(outputs):
            return Signature(tuple(inputs), tuple(outputs))
    return None


def _field(layer: Any, name: str | None = None) -> Field:
    config = layer["config"]
    shape = config.get("batch_shape") or config["batch_input_shape"]
    is_plain = all(size is None or isinstance(size, int) for size in shape)
    is_dense = not config.get("sparse") and not config.get("ragged")
    if layer["class_name"] != "InputLayer" or config["dtype"] not in DTYPES.values():
        raise ValueError("not an input of known dtype")
    if not (shape and is_plain and is_dense):
        raise ValueError("not an input of known shape")
    return Field(name or _name(layer), tuple(shape[1:]), config["dtype"])


def _only_output(layer: Any) -> str:
    """Return the name of the layer at the end of a Sequential, if it gives one thing."""
    if layer["class_name"] in _MODELS or '"return_state": true' in json.dumps(layer):
        raise ValueError("maybe several outputs")
    return _name(layer)


def _named(nest: Any) -> Iterator[tuple[str, str]]:
    """Yield name and layer of each ``[layer, node, tensor]`` in a nest, as loading names them."""
    if isinstance(nest, dict):
        yield from ((key, _leaf(value)) for key, value in nest.items())
    elif isinstance(nest[0], str):
        yield nest[0], _leaf(nest)
    else:
        yield from ((_leaf(value), _leaf(value)) for value in nest)


def _leaf(value: Any) -> str:
    layer, _, _ = value
    if not isinstance(layer, str):
        raise TypeError(layer)
    return layer
