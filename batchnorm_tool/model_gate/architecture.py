"""The architecture of a stored Keras model, judged class by class before Keras builds it.

An allowlist: what is not known to be harmless is refused, by the class and the module that Keras
would look it up under. (Keras's own ``safe_mode`` is no boundary: it lets a Lambda layer pass that
names another loading class.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from batchnorm_tool.model_gate.classes import (
    DROPOUT_CLASSES,
    FUNCTION_MODULES,
    HARMLESS_MODULES,
    LAYERS,
    LEGACY_NAMES,
    MODELS,
    MODULE_CLASSES,
    OP_MODULES,
    POLICIES,
    UNSAFE_CLASSES,
)

KERAS_2_MODULES = ("keras.src.engine", "keras.engine", "tensorflow.python.keras", "tf_keras")
_DATA_CLASSES = frozenset(
    {"__bytes__", "__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__", "__tensor__"}
)
_FILE_KEYS = frozenset({"idf_weights", "vocabulary", "vocabulary_file"})
# Each unit has at least one weight of one bit or more: none can exceed the bits in the file.
_WEIGHT_KEYS = frozenset(
    {"filters", "input_dim", "key_dim", "num_heads", "output_dim", "units", "value_dim"}
)
_SHAPE_KEYS = frozenset(
    {"batch_input_shape", "batch_shape", "input_shape", "newshape", "padding", "shape", "size"}
    | {"target_shape"}
)
_FREE_KEYS = frozenset({"salt", "seed", "shared_object_id", "value"})
_LARGEST = 10**9
_UNJUDGED_UNITS = 2**20  # a model without stored weights (never built) may still have units


@dataclass(frozen=True)
class Concern:
    """Something in an architecture.

    Attributes:
        what: What it is.
        where: Where in the architecture.
        refuse: Whether it is a danger, or only worth a warning.
        custom: The name of the custom class or function, if that is what it is.
    """

    what: str
    where: str
    refuse: bool = True
    custom: str | None = None


def judge_architecture(config: Any, weight_bytes: int) -> Iterator[Concern]:
    """Everything in an architecture that is dangerous or worth knowing.

    Args:
        config: What Keras serialized, without the compile settings (which are never loaded).
        weight_bytes: Size of the stored weights, which bounds the sizes that may be claimed.

    Example:
        >>> layer = {"module": "keras.layers", "class_name": "Lambda", "config": {}}
        >>> [concern.what for concern in judge_architecture(layer, 0)]
        ['a Lambda layer, which runs Python code that lies in the file']
    """
    bound = max(8 * weight_bytes, _UNJUDGED_UNITS)
    for where, item in _dictionaries(config):
        if "class_name" in item:
            yield from _judge_class(item, where)
        if _runs_dropout(item):
            yield Concern("dropout that is active at inference", where, refuse=False)
        for key, value in item.items():
            yield from _judge_value(str(key), value, where, bound)
    for name in _normalizing_outputs(config):
        yield Concern("an output that is normalized already", name, refuse=False)


def without_compile_settings(config: Any) -> Any:
    """A copy of the outermost architecture without its compile settings, which are never loaded."""
    if not isinstance(config, dict):
        return config
    return {key: value for key, value in config.items() if key != "compile_config"}


def canonical_architecture(config: Any) -> Any:
    """The architecture without what changes from one saving to the next.

    Compile settings and build records are dropped. Memory addresses, by which Keras marks layers
    that are used in several places, are numbered in the order of their first appearance; those of
    dtypes, initializers and the like are dropped: they do not survive loading and mean nothing.

    Example:
        >>> canonical_architecture({"shared_object_id": 1397, "compile_config": {}})
        {'shared_object_id': 0}
    """
    plain = copy.deepcopy(config)
    numbers: dict[str, int] = {}
    for _, item in _dictionaries(plain):
        item.pop("compile_config", None)
        item.pop("build_config", None)
        address = item.pop("shared_object_id", None)
        if address is not None and not _is_small_object(item):
            item["shared_object_id"] = numbers.setdefault(repr(address), len(numbers))
    return plain


def _is_small_object(item: dict[str, Any]) -> bool:
    return item.get("class_name") in POLICIES or item.get("module") in HARMLESS_MODULES


def keras_2_module(config: Any) -> str | None:
    """The first module in an architecture that only Keras 2 has."""
    for _, item in _dictionaries(config):
        module = item.get("module")
        if isinstance(module, str) and module.startswith(KERAS_2_MODULES):
            return module
    return None


def _dictionaries(config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dictionary in the architecture with the place where it is, outermost first."""
    waiting: list[tuple[str, Any]] = [("model", config)]
    while waiting:
        where, item = waiting.pop()
        if isinstance(item, dict):
            yield _named(where, item), item
            inner = [(f"{_named(where, item)}.{key}", value) for key, value in item.items()]
            waiting += reversed(inner)
        elif isinstance(item, list):
            waiting += [
                (where, value) for value in reversed(item) if isinstance(value, dict | list)
            ]


def _named(where: str, item: dict[str, Any]) -> str:
    inner = item.get("config")
    name = item.get("name") or (inner.get("name") if isinstance(inner, dict) else None)
    return f"{item['class_name']} `{name}`" if "class_name" in item and name else where


def _judge_class(item: dict[str, Any], where: str) -> Iterator[Concern]:
    name, module = item["class_name"], item.get("module")
    if name == "function":
        yield from _judge_function(item, where)
    elif name in UNSAFE_CLASSES:
        yield Concern(UNSAFE_CLASSES[name], where)
    elif name not in _DATA_CLASSES and not _is_harmless(item, name, module):
        registered = item.get("registered_name")
        named = registered if isinstance(registered, str) and ">" in registered else str(name)
        yield Concern(_custom_words("class", named, module), where, custom=named)


def _judge_function(item: dict[str, Any], where: str) -> Iterator[Concern]:
    name, module = item.get("config"), item.get("module")
    harmless = module in FUNCTION_MODULES and item.get("registered_name") in (None, name)
    if not harmless:
        yield Concern(_custom_words("function", str(name), module), where, custom=str(name))


def _custom_words(kind: str, name: str, module: object) -> str:
    return f"the custom {kind} `{name}`" + (f" of {module}" if module else "")


def _is_harmless(item: dict[str, Any], name: object, module: object) -> bool:
    """Whether Keras would look this class up among its own, and it is one that only computes."""
    if not isinstance(name, str) or item.get("registered_name") not in (None, name):
        return False
    if module is None:
        return "module" not in item and name in LEGACY_NAMES
    return isinstance(module, str) and _is_in_module(name, module)


def _is_in_module(name: str, module: str) -> bool:
    if module.startswith("keras.src.layers."):
        return name in LAYERS
    if module.startswith("keras.src.models."):
        return name in MODELS
    if module in OP_MODULES:
        return name[:1].isupper()
    return module in HARMLESS_MODULES or name in MODULE_CLASSES.get(module, frozenset())


def _judge_value(key: str, value: Any, where: str, bound: int) -> Iterator[Concern]:
    if key in _FILE_KEYS and isinstance(value, str):
        yield Concern(f"a `{key}` that is read from the path {value!r}", where)
    if isinstance(value, int) and not isinstance(value, bool):
        largest = bound if key in _WEIGHT_KEYS else _LARGEST
        if value > largest and key not in _FREE_KEYS:
            yield Concern(f"the absurd size `{key}` = {value}", where)
    if key in _SHAPE_KEYS and isinstance(value, list) and _cells(value) > _LARGEST:
        yield Concern(f"the absurd size `{key}` = {value}", where)


def _cells(shape: list[Any]) -> int:
    return math.prod(abs(length) for length in shape if isinstance(length, int) and length)


def _runs_dropout(item: dict[str, Any]) -> bool:
    """Whether the architecture calls a dropout layer with ``training=True``."""
    calls = item.get("inbound_nodes")
    if item.get("class_name") not in DROPOUT_CLASSES or not isinstance(calls, list):
        return False
    return any(inner.get("training") is True for _, inner in _dictionaries(calls))


def _normalizing_outputs(config: Any) -> Iterator[str]:
    """Names of the output layers that normalize."""
    inner = config.get("config") if isinstance(config, dict) else None
    layers = inner.get("layers") if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or not isinstance(layers, list) or not layers:
        return
    outputs = inner.get("output_layers")
    names = set(_names(outputs)) if outputs else {_layer_name(layers[-1])}
    for layer in layers:
        if isinstance(layer, dict) and _layer_name(layer) in names:
            if layer.get("class_name") in ("UnitNormalization", "Normalize"):
                yield str(_layer_name(layer))
            yield from _normalizing_outputs(layer)


def _names(outputs: Any) -> Iterator[str]:
    """The layer names in a nest of ``[name, node, tensor]``."""
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    if isinstance(outputs, list) and outputs and isinstance(outputs[0], str):
        yield outputs[0]
    elif isinstance(outputs, list):
        for output in outputs:
            yield from _names(output)


def _layer_name(layer: Any) -> object:
    inner = layer.get("config") if isinstance(layer, dict) else None
    return inner.get("name") if isinstance(inner, dict) else None
