"""Loading of stored Keras models, with an explanation for every known way in which it fails."""

import contextlib
import importlib
import inspect
import logging
import math
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from batchnorm_tool.errors import BatchnormToolError, InputWarning, ModelError
from batchnorm_tool.job import Model
from batchnorm_tool.models import security
from batchnorm_tool.models.signature import check_layer

_UNCHECKED_WEIGHTS = 2**24  # 64 MiB of float32: no harm, whatever the file holds
KERAS_2 = (
    "It was written by Keras 2, and Keras 3 does not read it. A run first has tf_keras convert it: "
    "run again, once that is installed (`pip install 'batchnorm-tool[legacy]'`)."
)
_COLORS = re.compile(r"\x1b\[[\d;]*m")
# The first pattern that is found in Keras's message explains it.
_EXPLANATIONS = {
    r"Could not locate function": (
        "It needs a custom function, which `model.trust` cannot allow. Export the model where it "
        "was created, with model.export(): a SavedModel needs no Python code."
    ),
    r"Could not locate class|Unknown (layer|object|loss|metric)|is a custom class": (
        "It needs a custom class. Install the package that defines it, and list the class in "
        "`model.trust: {classes: [package.module.Class]}`."
    ),
    r"name '\w+' is not defined": (
        "Its own Python code (a Lambda layer, for instance) uses a name that is only defined in "
        "the program that saved it. Replace that layer with a Keras layer or a class of your own, "
        "and save the model again."
    ),
    r"bad marshal data|unknown opcode|code\(\) (argument|takes)": (
        "It contains Python code compiled by another version of Python. Use that version, or save "
        "the model again with this one."
    ),
    r"Keras 2\b|time_major|'groups'|batch_input_shape|keras\.src\.engine|'lr'"
    r"|pop expected at most 1 argument": KERAS_2,
    r"[Uu]nrecognized keyword arguments|unexpected keyword argument": (
        "It was written by another version of Keras, with settings unknown to this one. Install "
        "that version, or save the model again with this one."
    ),
    r"lambda|Lambda|safe_mode|unsafe": (
        "It contains Python code. If you trust its source, allow exactly this file with "
        "`model.trust: sha256:…` (`batchnorm-tool show` prints the hash)."
    ),
    r"too many positional arguments": (
        "An .h5 file cannot store operations such as `a + b`. Save the model as .keras where it "
        "was created."
    ),
    r"expected \d+ variables|variables to be loaded|was never built|weight count"
    r"|[Uu]nable to (synchronously )?open object|doesn't exist|axes don't match": (
        "Its weights do not fit its architecture, or some are missing. Save the whole model again "
        "with model.save()."
    ),
    r"signature not found|truncated file|bad magic|[Uu]nable to (synchronously )?open file": (
        "The file is damaged. Copy it again from its source."
    ),
}


class NeedsKeras2Error(ModelError):
    """Keras 3 does not load a file of Keras 2, tf_keras may; to whoever calls, a `ModelError`."""


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep to ourselves what Keras and TensorFlow warn of: a fault raises all the same."""
    # Filters of warnings are common to all threads, as is Keras while it loads.
    loggers = [logging.getLogger(name) for name in ("absl", "tensorflow")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=InputWarning)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def load_errors(model: Model, path: str) -> Iterator[None]:
    """Map whatever comes out of loading, a model's own code included, to an error of ours."""
    try:
        yield
    except (BatchnormToolError, MemoryError):
        raise
    except Exception as error:
        report = security.examine(path, model.path)
        otherwise = (
            "Check that it loads with keras.saving.load_model(path, compile=False), and save it "
            "again."
        )
        failure = describe_failure(error, otherwise, report.keras_version)
        kind = NeedsKeras2Error if report.is_of_keras_2 else ModelError
        raise kind(f"{model.path}: does not load. {failure}") from error


def load_stored(model: Model, path: str, keras: Any) -> Any:
    """Load the private copy of a ``.keras`` or ``.h5`` file, without its compile settings.

    ``keras`` is the package that does: Keras 3, or tf_keras.
    """
    # With its hash in the job, the gate let exactly this file past, Python code included.
    by_hash = isinstance(model.trust, str)
    objects = _custom_objects(model, path, keras)
    most = max(_UNCHECKED_WEIGHTS, 8 * Path(path).stat().st_size)
    with _limited_weights(keras.layers.Layer, model.path, most):
        return keras.saving.load_model(
            path, custom_objects=objects, compile=False, safe_mode=not by_hash
        )


def describe_failure(error: Exception, otherwise: str, keras_version: str = "unknown") -> str:
    """Return what a failure in Keras means, and its own words, in one line and without colors."""
    said = " ".join(_COLORS.sub("", " ".join(_causes(error))).split())
    text = f"{said} Keras 2" if keras_version.startswith(("1.", "2.")) else said
    meaning = next(
        (meaning for pattern, meaning in _EXPLANATIONS.items() if re.search(pattern, text)),
        otherwise,
    )
    # What went wrong stands at the beginning, and the cause of it at the end.
    quoted = said if len(said) <= 400 else f"{said[:120]} … {said[-280:]}"
    return f"{meaning} Keras says: {type(error).__name__}: {quoted}"


def _causes(error: BaseException) -> list[str]:
    """Return what an error says, and after it what it hides of the errors that led to it."""
    said = str(error)
    inner = error.__cause__ or error.__context__
    hidden = [] if inner is None else _causes(inner)[-1:]
    return [said, *(text for text in hidden if text not in said)]


@contextlib.contextmanager
def _limited_weights(kind: Any, shown: str, most: int) -> Iterator[None]:
    """Let layers make so many weights: sizes that are harmless alone may multiply to any memory."""
    made = 0
    add_weight = kind.add_weight
    signature = inspect.signature(add_weight)

    def counted(layer: Any, *args: Any, **options: Any) -> Any:
        nonlocal made
        shape = signature.bind(layer, *args, **options).arguments.get("shape") or ()
        made += math.prod(size or 1 for size in shape if isinstance(size, int))
        if made > most:
            raise ModelError(
                f"{shown}: the layer `{layer.name}` makes weights of the shape {tuple(shape)}, "
                "more than the file can hold. Use another file."
            )
        return add_weight(layer, *args, **options)

    kind.add_weight = counted
    try:
        yield
    finally:
        kind.add_weight = add_weight


def check_stateless(layers: Iterable[Any]) -> None:
    """Refuse a model that keeps state in one of its layers."""
    names = [layer.name for layer in layers if getattr(layer, "stateful", False) is True]
    if names:
        raise ModelError(
            f"The model keeps state from call to call: its layer `{names[0]}` has stateful=True. "
            "Expected predictions that depend on the row alone, and not on earlier rows. Rebuild "
            "it with stateful=False, set the same weights, and save that."
        )


def inner_layer_model(model: Any, name: str, keras: Any) -> Any:
    """Return the part of a model that leads to the output of one of its layers.

    Only the inputs that the layer needs remain: a tower of a two-tower model takes its own side.
    Of a layer that is called several times, the first call counts. ``keras`` is the package that
    loaded the model: Keras 3, or tf_keras.
    """
    import tensorflow as tf

    names = [layer.name for layer in getattr(model, "layers", ())]
    check_layer(name, names)
    if not getattr(model, "inputs", None):
        raise ModelError(
            f"The layer `{name}` cannot be extracted from a {type(model).__name__}, which is "
            "defined by Python code. Save that layer as a model of its own."
        )
    outputs = _first_call(model, model.get_layer(name))
    needed = _needed_inputs(model, tf.nest.flatten(outputs))
    try:
        return keras.Model(needed[0] if len(needed) == 1 else needed, outputs)
    except (LookupError, TypeError, ValueError) as error:
        raise ModelError(
            f"The output of the layer `{name}` (`model.layer`) cannot be computed from the "
            f"model's inputs ({error}). Choose another layer: {', '.join(names)}."
        ) from error


def _first_call(model: Any, layer: Any) -> Any:
    """Return what a layer returned at its first call; ``layer.output`` of a model is another."""
    # A nested model has an `output` inside of itself, which the outer inputs do not lead to.
    graph = getattr(model, "_functional", None) or model
    depths = graph._nodes_by_depth.values()  # noqa: SLF001  no public way
    own = {id(node) for nodes in depths for node in nodes}
    calls = [node for node in layer._inbound_nodes if id(node) in own]  # noqa: SLF001  no public way
    if not calls:
        return layer.output
    outputs = calls[0].output_tensors
    return outputs[0] if isinstance(outputs, list) and len(outputs) == 1 else outputs


def _needed_inputs(model: Any, outputs: list[Any]) -> list[Any]:
    """Return the model's inputs that these tensors are computed from, in the model's order."""
    seen: set[int] = set()
    waiting = list(outputs)
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if hasattr(tensor, "node"):  # of tf_keras
            waiting += tensor.node.keras_inputs
            continue
        history = tensor._keras_history  # noqa: SLF001  no public way
        node = history.operation._inbound_nodes[history.node_index]  # noqa: SLF001
        waiting += node.input_tensors
    return [tensor for tensor in model.inputs if id(tensor) in seen]


def _custom_objects(model: Model, path: str, keras: Any) -> dict[str, object]:
    """Return the classes that the job trusts, imported, by every name under which Keras may ask."""
    if model.trust is None or isinstance(model.trust, str):
        return {}
    objects: dict[str, object] = {}
    for name in model.trust.classes:
        found = _imported(name)
        objects[getattr(found, "__name__", name)] = found
        objects[keras.saving.get_registered_name(found)] = found
    for wanted in security.report_of(Path(path), model.path).classes:
        if wanted not in objects:
            raise ModelError(
                f"{model.path}: needs the class `{wanted}`, but the classes in "
                f"`model.trust.classes` are registered as {', '.join(objects)}. List the class "
                "that is registered under that name."
            )
    return objects


def _imported(name: str) -> Any:
    module, _, class_name = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), class_name)
    except (AttributeError, ImportError, ValueError) as error:
        raise ModelError(
            f"`model.trust.classes` lists {name}, which cannot be imported ({error}). Install the "
            "package that defines it, and write it as package.module.Class."
        ) from error
