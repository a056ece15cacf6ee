"""The architecture of a stored Keras model, judged class by class before Keras builds it.

An allowlist: what is not known to be harmless is refused, by the class and the module that Keras
would look it up under. (Keras's own ``safe_mode`` is no boundary: it lets a Lambda layer pass that
names another loading class.)
"""

import builtins
import reprlib
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def allowed(name: str) -> frozenset[str]:
    """Return a list of names that a model file may hold, from ``allowlist.toml``."""
    return _words(_ALLOWLIST[name])


_ALLOWLIST = tomllib.loads(Path(__file__).with_name("allowlist.toml").read_text("utf-8"))
_KERAS_2_MODULES = ("keras.src.engine", "keras.engine", "tensorflow.python.keras", "tf_keras")
_DATA_CLASSES = _words(
    "TensorShape __bytes__ __ellipsis__ __keras_tensor__ __numpy__ __slice__ __tensor__ __tuple__"
)
_FILE_KEYS = _words("idf_weights vocabulary vocabulary_file")
# Each unit has at least one weight of one bit or more: none can exceed the bits in the file.
_WEIGHT_KEYS = _words(
    "filters head_dim input_dim key_dim num_heads num_query_heads output_dim units value_dim"
)
# Sizes of one layer of which each combination has a weight.
_WEIGHT_PRODUCTS = (
    *(("input_dim", "output_dim"), ("filters", "kernel_size"), ("depth_multiplier", "kernel_size")),
    *(("num_heads", "key_dim"), ("num_heads", "value_dim"), ("num_query_heads", "head_dim")),
)
_SHAPE_KEYS = _words("kernel_size newshape padding pool_size size strides")
_FREE_KEYS = _words("salt seed shared_object_id value")
LARGEST = 10**9
_WHERE_LENGTH = 200
_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxlevel = 80, 4, 2, 2
_UNCHECKED_UNITS = 2**20  # a model without stored weights (never built) may still have units
_UNSAFE_CLASSES = {
    "Lambda": "a Lambda layer, which runs Python code stored in the file",
    "__lambda__": "a Python lambda, which runs code stored in the file",
    "__typespec__": "a serialized type of TensorFlow",
    "TFSMLayer": "a TFSMLayer, which loads a SavedModel from another place",
    "TorchModuleWrapper": "a TorchModuleWrapper, which unpickles code",
    "FlaxLayer": "a FlaxLayer, which runs Python code stored in the file",
    "JaxLayer": "a JaxLayer, which runs Python code stored in the file",
}
_DROPOUT_CLASSES = _words(
    "AlphaDropout Dropout GaussianDropout GaussianNoise SpatialDropout1D SpatialDropout2D "
    "SpatialDropout3D"
)
_MODELS = _words("Functional Model Sequential")
_LAYERS = allowed("keras_layers")
# What stands in a file of Keras 2 for a call of a TensorFlow function; Keras 3 has no such layers.
_KERAS_2_CLASSES = _words(
    "ClassMethod InstanceMethod InstanceProperty SlicingOpLambda TFOpLambda TensorFlowOpLayer"
)
# Such a call names its function, and is harmless if that only computes.
_CALLS = _words("SlicingOpLambda TFOpLambda")
_CALLED = allowed("tensorflow_functions")
_CALL_MODULES = (None, "keras.layers.core.tf_op_layer", "keras.src.layers.core.tf_op_layer")
_POLICIES = _words(
    "AWQDTypePolicy DTypePolicy DTypePolicyMap FloatDTypePolicy GPTQDTypePolicy Int4DTypePolicy "
    "Policy QuantizedDTypePolicy QuantizedFloat8DTypePolicy"
)
_SMALL_OBJECTS = allowed("keras_initializers")
_OURS = _words("VectorNormalization")
_LEGACY_NAMES = _LAYERS | _MODELS | _POLICIES | _SMALL_OBJECTS
_MODULE_CLASSES = {
    "keras": _MODELS | _POLICIES | {"KerasTensor"},
    "keras.models": _MODELS,
    "keras.layers": _LAYERS,
    "keras.dtype_policies": _POLICIES,
    "keras.mixed_precision": _POLICIES,
    "keras.src.applications.convnext": _words("LayerScale StochasticDepth"),
    "keras.src.layers.preprocessing.feature_space": _words("TFDConcat TFDIdentity"),
    "keras.src.applications.inception_resnet_v2": _words("CustomScaleLayer"),
    "batchnorm_tool.layers": _OURS,
    "keras.random": _words("SeedGenerator"),
    "keras.src.random.seed_generator": _words("SeedGenerator"),
}
# Whatever these modules hold only computes.
_HARMLESS_MODULES = _words(
    "keras.activations keras.constraints keras.initializers keras.losses keras.metrics "
    "keras.optimizers keras.optimizers.schedules keras.quantizers keras.regularizers"
)
_OP_MODULES = _words(
    "keras.src.ops.core keras.src.ops.einops keras.src.ops.image keras.src.ops.linalg "
    "keras.src.ops.math keras.src.ops.nn keras.src.ops.numpy"
)
_FUNCTION_MODULES = _HARMLESS_MODULES | _words(
    "builtins keras.ops keras.ops.image keras.ops.linalg keras.ops.nn keras.ops.numpy"
)
# They look up a class or function by what they are given, wherever they stand.
_LOOKUPS = _words("deserialize get serialize")
# Nobody's own classes come from these.
_FOREIGN_PACKAGES = _words("h5py keras numpy tensorflow tf_keras")


@dataclass(frozen=True)
class Custom:
    """A class or function that is not Keras's own, as the file names it.

    ``module`` is ``None`` where the file does not say, and ``registered`` is the name under which
    Keras looks it up.
    """

    kind: Literal["class", "function"]
    name: str
    module: str | None
    registered: str

    def is_named_by(self, trusted: str) -> bool:
        """Tell whether ``package.module.Class`` is this one, as far as the file tells.

        Where it tells no module, the registered name is compared with the one that the imported
        class has, when the model is loaded.
        """
        if self.module is not None:
            return trusted == f"{self.module}.{self.name}"
        return trusted.rpartition(".")[2] == self.registered.rpartition(">")[2]


@dataclass(frozen=True)
class ModelFinding:
    """What the gate saw in a model file, and where in it.

    To ``"refuse"`` is a danger, to ``"warn"`` worth knowing; ``custom`` is the class or function of
    somebody's own, if that is what was found.
    """

    severity: Literal["refuse", "warn"]
    what: str
    where: str
    custom: Custom | None = None


def check_architecture(config: Any, weight_bytes: int) -> Iterator[ModelFinding]:
    """Yield everything in an architecture that is dangerous or worth knowing.

    ``config`` comes without compile settings (which are never loaded), and the size of the stored
    weights bounds the sizes that may be claimed.
    """
    # Every unit has a weight of one bit or more, so that no size exceeds the bits of the weights.
    # Larger ones would make Keras allocate what the file does not hold.
    bound = max(8 * weight_bytes, _UNCHECKED_UNITS)
    for where, item in _dictionaries(config):
        if "class_name" in item:
            yield from _check_class(item, where)
        if _runs_dropout(item):
            yield ModelFinding("warn", "dropout that is active at inference", where)
        for key, value in item.items():
            yield from _check_value(key, value, where, bound)
        yield from _check_products(item, where, bound)
    for name in _normalizing_outputs(config):
        yield ModelFinding("warn", "an output that is already normalized", name)


def without_compile_settings(config: Any) -> Any:
    """Copy the outermost architecture without its compile settings, which are never loaded."""
    if not isinstance(config, dict):
        return config
    return {key: value for key, value in config.items() if key != "compile_config"}


def canonical_architecture(config: Any) -> Any:
    """Strip the architecture, in place, of what changes from one saving to the next."""
    # Compile settings and build records are dropped. Memory addresses, by which Keras marks layers
    # that are used in several places, are numbered in the order of their first appearance; those of
    # dtypes, initializers and the like are dropped: they do not survive loading and mean nothing.
    numbers: dict[str, int] = {}
    for _, item in _dictionaries(config):
        item.pop("compile_config", None)
        item.pop("build_config", None)
        address = item.pop("shared_object_id", None)
        is_small = (
            _text(item, "class_name") in _POLICIES or _text(item, "module") in _HARMLESS_MODULES
        )
        if address is not None and not is_small:
            item["shared_object_id"] = numbers.setdefault(repr(address), len(numbers))
    return config


def name_of_keras_2(config: Any) -> str | None:
    """Return what an architecture names that Keras 2 has and Keras 3 has not, if anything."""
    for _, item in _dictionaries(config):
        name, module = _text(item, "class_name"), _text(item, "module")
        if module.startswith(_KERAS_2_MODULES) or name in _KERAS_2_CLASSES:
            return short(module or name)
    return None


def unloadable(config: Any) -> str | None:
    """Return why no Keras can load an architecture whoever trusts it, and what to do."""
    for _, item in _dictionaries(config):
        name = _text(item, "class_name")
        if name not in _KERAS_2_CLASSES and _is_bare_operation(item, name):
            return (
                f"contains a Keras operation, `{short(name)}`, which Keras cannot load from an "
                ".h5 file. Save the model as .keras where it was created."
            )
    return None


def _is_bare_operation(item: dict[str, object], name: str) -> bool:
    """Tell whether it is a call of ``keras.ops`` in HDF5: without its module, and not trainable."""
    inner = item.get("config")
    is_bare = "inbound_nodes" in item and "module" not in item and name not in _LEGACY_NAMES
    return is_bare and isinstance(inner, dict) and "trainable" not in inner


def short(value: object) -> str:
    """Return a value from a file for a message: never long, and without control characters."""
    if not isinstance(value, str):
        return _SHORT.repr(value)
    is_plain = len(value) <= _SHORT.maxstring and value.isprintable()
    return value if is_plain else _SHORT.repr(value)[1:-1]


def _text(item: dict[str, object], key: str) -> str:
    """Return what stands under a key if it is text; in a hostile file it may be anything."""
    value = item.get(key)
    return value if isinstance(value, str) else ""


def _dictionaries(config: Any) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield every dictionary in the architecture with the place where it is, outermost first."""
    # A list, not recursion: the file decides how deep it is nested.
    waiting: list[tuple[str, Any]] = [("model", config)]
    while waiting:
        where, item = waiting.pop()
        if isinstance(item, dict):
            where = _named(where, item)
            yield where, item
            inner = [
                (f"{where}.{short(key)}"[-_WHERE_LENGTH:], value)
                for key, value in item.items()
                if isinstance(value, (dict, list))
            ]
            waiting += reversed(inner)
        elif isinstance(item, list):
            waiting += [
                (where, value) for value in reversed(item) if isinstance(value, (dict, list))
            ]


def _named(where: str, item: dict[str, object]) -> str:
    if "class_name" not in item:
        return where
    inner = item.get("config")
    name = item.get("name") or (inner.get("name") if isinstance(inner, dict) else None)
    return f"{short(item['class_name'])} `{short(name)}`" if name else where


def _check_class(item: dict[str, object], where: str) -> Iterator[ModelFinding]:
    name, module = item["class_name"], item.get("module")
    if not isinstance(name, str) or not isinstance(module, str | None):
        yield ModelFinding(
            "refuse", f"a class named by {short([name, module])}, where a string is expected", where
        )
    elif name == "function":
        yield from _check_function(item, where)
    elif name in _KERAS_2_CLASSES:
        yield from _check_call(name, item, where)
    elif name in _UNSAFE_CLASSES:
        yield ModelFinding("refuse", _UNSAFE_CLASSES[name], where)
    # Refused unless known: a list of what is dangerous would be out of date with the next Keras.
    elif name not in _DATA_CLASSES and not _is_harmless(item, name, module):
        yield _custom("class", name, item, where)


def _check_call(name: str, item: dict[str, object], where: str) -> Iterator[ModelFinding]:
    """Judge a call of a TensorFlow function in a file of Keras 2."""
    inner = item.get("config")
    called = _text(inner, "function") if isinstance(inner, dict) else ""
    module = _of_keras(item["module"]) if isinstance(item.get("module"), str) else None
    known = module in _CALL_MODULES and item.get("registered_name") in (None, name)
    if not (known and name in _CALLS and called in _CALLED):
        yield ModelFinding("refuse", f"a call of TensorFlow's `{short(called or name)}`", where)


def _of_keras(module: Any) -> str:
    """Return the name in Keras of a module of tf_keras, which has the same classes in it."""
    return str(module).removeprefix("tf_") if str(module).startswith("tf_keras.") else str(module)


def _check_function(item: dict[str, object], where: str) -> Iterator[ModelFinding]:
    name, module = item.get("config"), _of_keras(_text(item, "module"))
    if not isinstance(name, str):
        yield ModelFinding(
            "refuse", f"a function named by {short(name)}, where a string is expected", where
        )
    elif (
        module not in _FUNCTION_MODULES
        or item.get("registered_name") not in (None, name)
        or name in _LOOKUPS
        or (module == "builtins" and hasattr(builtins, name))
    ):
        yield _custom("function", name, item, where)


def _custom(
    kind: Literal["class", "function"], name: str, item: dict[str, object], where: str
) -> ModelFinding:
    """Report what is not known to be harmless; only somebody's own can be trusted by name."""
    given, registered = _text(item, "module"), _text(item, "registered_name")
    module = None if given in ("", "__main__") else given
    looked_up = registered if ">" in registered else name
    what = f"the custom {kind} `{short(looked_up)}`" + (f" of {short(module)}" if module else "")
    words = [name.rpartition(">")[2], *(module or "").split(".")]
    # Nothing of Python's, Keras's or TensorFlow's own is: those that are no layers run what they
    # are told to.
    is_own = words[1] not in sys.stdlib_module_names | _FOREIGN_PACKAGES
    if not is_own or not all(word.isidentifier() for word in words if word or module):
        return ModelFinding("refuse", what, where)
    return ModelFinding("refuse", what, where, custom=Custom(kind, words[0], module, looked_up))


def _is_harmless(item: dict[str, object], name: str, module: str | None) -> bool:
    """Tell whether Keras would look this class up among its own, and it only computes."""
    is_ours = module == "batchnorm_tool.layers"
    registered = (f"batchnorm_tool>{name}",) if is_ours else (None, name)
    if item.get("registered_name") not in registered or name in _LOOKUPS:
        return False
    if module is None:
        return "module" not in item and name in _LEGACY_NAMES
    return _is_in_module(name, _of_keras(module))


def _is_in_module(name: str, module: str) -> bool:
    if name in _MODULE_CLASSES.get(module, frozenset()):
        return True
    if module.startswith("keras.src.layers."):
        return name in _LAYERS
    if module.startswith(("keras.src.models.", "keras.src.engine.", "keras.engine.")):
        return name in _MODELS
    if module in _OP_MODULES:
        return name[:1].isupper()
    return module in _HARMLESS_MODULES


def _check_value(key: str, value: Any, where: str, bound: int) -> Iterator[ModelFinding]:
    if isinstance(value, str):
        if key in _FILE_KEYS:
            yield ModelFinding(
                "refuse", f"a `{key}` that is read from the path {short([value])[1:-1]}", where
            )
    elif isinstance(value, int):
        largest = bound if key in _WEIGHT_KEYS else LARGEST
        if value > largest and key not in _FREE_KEYS:
            yield ModelFinding("refuse", f"the huge size `{short(key)}` = {short(value)}", where)
    elif isinstance(value, list) and (key in _SHAPE_KEYS or key.endswith("shape")):
        shapes = [value, *(inner for inner in value if isinstance(inner, list))]
        if any(exceeds(LARGEST, shape) for shape in shapes):
            yield ModelFinding("refuse", f"the huge size `{short(key)}` = {short(value)}", where)


def _check_products(item: dict[str, object], where: str, bound: int) -> Iterator[ModelFinding]:
    """Find sizes of a layer that are small enough alone, and not together."""
    if _WEIGHT_KEYS.isdisjoint(item):
        return
    recurrent = [("units", "units")] if "recurrent_initializer" in item else []
    for keys in (*_WEIGHT_PRODUCTS, *recurrent):
        sizes = [item.get(key) for key in keys]
        flat = [size for one in sizes for size in (one if isinstance(one, list) else [one])]
        if None not in sizes and exceeds(bound, flat):
            words = " and ".join(f"`{key}` = {short(item[key])}" for key in dict.fromkeys(keys))
            yield ModelFinding("refuse", f"the huge size of {words}", where)


def exceeds(bound: int, sizes: Iterable[object]) -> bool:
    """Tell whether a product is above a bound; it is multiplied no further than that."""
    product = 1
    for size in sizes:
        if isinstance(size, int) and size:
            product *= abs(size)
            if product > bound:
                return True
    return False


def _runs_dropout(item: dict[str, object]) -> bool:
    """Tell whether the architecture calls a dropout layer with ``training=True``."""
    calls = item.get("inbound_nodes")
    if _text(item, "class_name") not in _DROPOUT_CLASSES or not isinstance(calls, list):
        return False
    return any(
        isinstance(options, dict) and options.get("training") is True
        for options in _call_options(calls)
    )


def _call_options(calls: list[Any]) -> Iterator[object]:
    """Yield the keyword arguments of calls: of Keras 3, or last in the lists of Keras 2."""
    for call in calls:
        if isinstance(call, dict):
            yield call.get("kwargs")
        elif isinstance(call, list):
            yield from (
                tensor[-1] for tensor in [call, *call] if isinstance(tensor, list) and tensor
            )


def _normalizing_outputs(config: Any) -> Iterator[str]:
    """Yield names of the output layers that normalize."""
    inner = config.get("config") if isinstance(config, dict) else None
    layers = inner.get("layers") if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or not isinstance(layers, list) or not layers:
        return
    outputs = inner.get("output_layers")
    names = set(_names(outputs)) if outputs else {_layer_name(layers[-1])}
    for layer in layers:
        if isinstance(layer, dict) and _layer_name(layer) in names:
            if layer.get("class_name") in ("UnitNormalization", "Normalize", *_OURS):
                yield short(_layer_name(layer))
            yield from _normalizing_outputs(layer)


def _names(outputs: Any) -> Iterator[str]:
    """Yield the layer names in a nest of ``[name, node, tensor]``."""
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    if isinstance(outputs, list) and outputs and isinstance(outputs[0], str):
        yield outputs[0]
    elif isinstance(outputs, list):
        for output in outputs:
            yield from _names(output)


def _layer_name(layer: Any) -> str:
    inner = layer.get("config") if isinstance(layer, dict) else None
    return _text(inner, "name") if isinstance(inner, dict) else ""
