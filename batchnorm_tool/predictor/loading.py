"""Loading of stored Keras models, with an explanation for every known way in which it fails."""

from __future__ import annotations

import importlib
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from batchnorm_tool.errors import ModelError

if TYPE_CHECKING:
    from batchnorm_tool.job import Model

# What Keras raises for files that it cannot load; there is no common base.
LOAD_FAILURES = (
    *(ArithmeticError, AttributeError, EOFError, ImportError, LookupError, NotImplementedError),
    *(OSError, RuntimeError, TypeError, ValueError),
)
_KERAS_2 = (
    "It was written by Keras 2 with settings that Keras 3 does not have. Load it with the package "
    "tf_keras, and export it as a SavedModel."
)
# The first pattern that is found in Keras's message explains it.
_EXPLANATIONS = {
    r"Could not locate (class|function)|Unknown (layer|object|loss|metric)|is a custom class": (
        "It needs a custom class. Install the package that defines it, and name the class in "
        "`model.trust: {classes: [package.module.Class]}`."
    ),
    r"time_major|'groups'|batch_input_shape|keras\.src\.engine": _KERAS_2,
    r"[Uu]nrecognized keyword arguments|unexpected keyword argument": (
        "Another version of Keras wrote it, with settings that this one does not know. Install "
        "that version, or save the model again with this one."
    ),
    r"lambda|Lambda|safe_mode|unsafe": (
        "It holds Python code. If you know where it comes from, let exactly this file pass with "
        "`model.trust: sha256:…` (`batchnorm-tool show` prints the hash)."
    ),
    r"expected \d+ variables|variables to be loaded|was never built|weight count"
    r"|[Uu]nable to (synchronously )?open object|doesn't exist|axes don't match": (
        "Its weights do not fit its architecture, or some are missing. Save the whole model again "
        "with model.save()."
    ),
    r"signature not found|truncated file|bad magic|[Uu]nable to (synchronously )?open file": (
        "The file is damaged. Copy it again from where it comes from."
    ),
}


def load_stored(model: Model, path: str) -> Any:
    """Load a ``.keras`` or ``.h5`` file without its compile settings.

    Args:
        model: ``trust`` tells which classes to import; with the file's hash in it, the gate let
            exactly this file past, Python code included.
        path: The private copy that the gate admitted.

    Raises:
        ModelError: It does not load.
    """
    import keras

    by_hash = isinstance(model.trust, str)
    try:
        return keras.saving.load_model(
            path, custom_objects=_custom_objects(model), compile=False, safe_mode=not by_hash
        )
    except LOAD_FAILURES as error:
        raise ModelError(explain(model.path, error)) from error


def explain(path: str, error: Exception) -> str:
    """What a failure to load a model means, and what to do.

    Example:
        >>> explain("m.h5", TypeError("got 'time_major'")).startswith("m.h5: does not load.")
        True
    """
    said = " ".join(str(error).split())
    meaning = next(
        (meaning for pattern, meaning in _EXPLANATIONS.items() if re.search(pattern, said)),
        "Check that it loads with keras.saving.load_model(path, compile=False), and save it again.",
    )
    return f"{path}: does not load. {meaning} Keras says: {type(error).__name__}: {said[:400]}"


def inner_layer_model(model: Any, name: str) -> Any:
    """The part of a model that leads to the output of one of its layers.

    Only the inputs that the layer needs remain: a tower of a two-tower model takes its own side.
    Of a layer that is called several times, the first call counts.

    Args:
        model: A functional or sequential ``keras.Model``.
        name: Of a layer of it.

    Raises:
        ModelError: There is no such layer, or its output is not reachable.
    """
    import keras

    names = [layer.name for layer in getattr(model, "layers", ())]
    if name not in names:
        near = get_close_matches(name, names, 1)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        raise ModelError(
            f"The model has no layer `{name}` (`model.layer`). Received: {', '.join(names)}.{hint}"
        )
    if not getattr(model, "inputs", None):
        raise ModelError(
            f"The layer `{name}` cannot be taken out of a {type(model).__name__}, which is written "
            "as Python code. Save that layer as a model of its own."
        )
    outputs = _first_call(model, model.get_layer(name))
    needed = _needed_inputs(model, keras.tree.flatten(outputs))
    try:
        return keras.Model(needed[0] if len(needed) == 1 else needed, outputs)
    except (LookupError, TypeError, ValueError) as error:
        raise ModelError(
            f"The output of the layer `{name}` (`model.layer`) does not follow from the model's "
            f"inputs ({error}). Name another layer: {', '.join(names)}."
        ) from error


def _first_call(model: Any, layer: Any) -> Any:
    """What a layer returned where the model first calls it; ``layer.output`` of a model is another.

    A nested model has an ``output`` inside of itself, which the outer inputs do not lead to.
    """
    graph = getattr(model, "_functional", None) or model
    own = {id(node) for node in graph._nodes}  # noqa: SLF001  no public way
    calls = [node for node in layer._inbound_nodes if id(node) in own]  # noqa: SLF001  no public way
    if not calls:
        return layer.output
    outputs = calls[0].output_tensors
    return outputs[0] if len(outputs) == 1 else list(outputs)


def _needed_inputs(model: Any, outputs: list[Any]) -> list[Any]:
    """The model's inputs that these tensors are computed from, in the model's order."""
    seen: set[int] = set()
    waiting = list(outputs)
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        history = tensor._keras_history  # noqa: SLF001  no public way
        node = history.operation._inbound_nodes[history.node_index]  # noqa: SLF001
        waiting += node.input_tensors
    return [tensor for tensor in model.inputs if id(tensor) in seen]


def _custom_objects(model: Model) -> dict[str, Any]:
    """The classes that the job trusts, imported, by every name under which Keras may ask."""
    import keras

    if model.trust is None or isinstance(model.trust, str):
        return {}
    objects: dict[str, Any] = {}
    for name in model.trust.classes:
        found = _imported(name)
        objects[found.__name__] = found
        objects[keras.saving.get_registered_name(found)] = found
    return objects


def _imported(name: str) -> Any:
    module, _, class_name = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), class_name)
    except (AttributeError, ImportError, ValueError) as error:
        raise ModelError(
            f"`model.trust.classes` names {name}, which cannot be imported ({error}). Install the "
            "package that defines it, and write it as package.module.Class."
        ) from error
