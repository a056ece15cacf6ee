"""Keras models as predictors: what ``model.predict`` runs, compiled once for one batch size."""

import inspect
import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from batchnorm_tool.chunk import Field
from batchnorm_tool.errors import ModelError
from batchnorm_tool.job import Model
from batchnorm_tool.models import backends
from batchnorm_tool.models.backends.loading import (
    check_stateless,
    describe_failure,
    inner_layer_model,
    load_stored,
)
from batchnorm_tool.models.batching import LoadedModel, OutputChoice, Step, filler
from batchnorm_tool.models.placement import repeated

# What a model makes of a float, and of nothing else, is what it wants; see `_uses`.
_MOST_TRACES = 81
_CAST_TO = ({"int32"}, {"int64"}, {"string"})


def load_keras_model(model: Model, path: str, choose: OutputChoice) -> LoadedModel:
    """Load a ``.keras`` or ``.h5`` file that the gate admitted."""
    import keras

    # Registers our layer: Keras does not import the module that a file names.
    from batchnorm_tool.models.backends import vector_normalization  # noqa: F401

    loaded = load_stored(model, path, keras)
    if model.layer is not None:
        loaded = inner_layer_model(loaded, model.layer, keras)
    return KerasModel.of(loaded, choose)


@dataclass(frozen=True)
class KerasModel(LoadedModel):
    """A ``keras.Model`` in memory.

    ``chosen`` are the places of the outputs among all that it has, and ``structure`` is the nest in
    which it wants its inputs.
    """

    model: Any
    chosen: tuple[int, ...]
    structure: Any

    @classmethod
    def of(cls, model: Any, choose: OutputChoice) -> Self:
        """Look at a model, and choose among its outputs."""
        if not hasattr(model, "_flatten_layers"):
            kind = type(model).__name__
            raise ModelError(
                f"Not a model in memory. Expected a built keras.Model. Received: {kind}."
            )
        check_stateless(model._flatten_layers(include_self=False))  # noqa: SLF001  no public way
        structure, inputs, own_batch_size = _inputs(model)
        if not getattr(model, "inputs", None):
            inputs = _with_true_dtypes(model, structure, inputs)
        found = _describe_outputs(model, structure, inputs, own_batch_size)
        names = _distinct([name for name, _ in found])
        chosen = tuple(choose(names))
        named = {id(tensor): name for name, tensor in _input_tensors(structure)}
        sizes = _embedding_sizes(model).items()
        return cls(
            inputs=inputs,
            outputs=tuple(backends.field_of(names[place], found[place][1]) for place in chosen),
            embedding_sizes={named[id(model.inputs[place])]: size for place, size in sizes},
            own_batch_size=own_batch_size,
            model=model,
            chosen=chosen,
            structure=structure,
        )

    def compile(self, batch_size: int) -> Step:
        """Return a step over batches of one size."""
        if overrides(self.model, "predict"):
            return self._step_through_predict(batch_size)
        concrete, parts = _trace(self.model, self.structure, self.inputs, batch_size, self.chosen)
        for field, place in zip(self.outputs, self.chosen, strict=True):
            backends.check_output(field.name, parts[place][1].shape, batch_size)
        return backends.graph_step(concrete, self.inputs, self.outputs)

    def export(self, directory: str) -> None:
        """Write what `compile` runs as a SavedModel, its inputs and outputs named by their places.

        Raises:
            ModelError: Its class defines ``predict`` itself, which is no graph.
        """
        import keras
        import tensorflow as tf

        if overrides(self.model, "predict"):
            raise ModelError("its class defines predict() itself, as Python code")
        size = self.own_batch_size
        concrete, _ = _trace(self.model, self.structure, self.inputs, size, self.chosen)

        def serve(*flat: Any) -> dict[str, Any]:
            return {backends.place_name("output", n): out for n, out in enumerate(concrete(*flat))}

        archive = keras.export.ExportArchive()
        archive.track(self.model)
        signature = [
            tf.TensorSpec((size, *field.shape), field.dtype, backends.place_name("input", place))
            for place, field in enumerate(self.inputs)
        ]
        archive.add_endpoint("serve", serve, input_signature=signature)
        archive.write_out(directory, verbose=False)

    def _step_through_predict(self, batch_size: int) -> Step:
        """Return a step by way of a ``predict`` that the model's class defines itself."""
        lock = threading.Lock()

        def step(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
            with lock, backends.run_errors():
                result = _call_predict(self.model, self.structure, self.inputs, arrays)
            found = [np.asarray(array) for _, array in named_parts(result)]
            for field, place in zip(self.outputs, self.chosen, strict=True):
                backends.check_output(field.name, found[place].shape, batch_size)
            return [found[place] for place in self.chosen]

        return step


def _inputs(model: Any) -> tuple[Any, tuple[Field, ...], int | None]:
    """Return the nest of the inputs, their fields in flat order, and any built-in batch size."""
    structure = _input_structure(model)
    named = _input_tensors(structure)
    if any(tensor.shape is None or tensor.sparse or tensor.ragged for _, tensor in named):
        raise ModelError(
            "The model takes sparse or ragged input, which is not supported. Use a model with "
            "dense inputs."
        )
    sizes = {tensor.shape[0] for _, tensor in named} - {None}
    return structure, tuple(backends.field_of(*each) for each in named), min(sizes, default=None)


def _input_tensors(structure: Any) -> list[tuple[str, Any]]:
    """Return the inputs in flat order, with their names."""
    import keras

    if isinstance(structure, dict):
        return list(structure.items())
    return [(_tensor_name(tensor), tensor) for tensor in keras.tree.flatten(structure)]


def _with_true_dtypes(model: Any, structure: Any, inputs: tuple[Field, ...]) -> tuple[Field, ...]:
    """Return the inputs of a model written as Python code, saved with their shapes alone."""
    # They are floats, unless the model cannot be traced with those (its `input_spec` may say so) or
    # first of all casts them to integers or strings, as an Embedding and a StringLookup do.
    refusal: ModelError | None = None
    # Three dtypes for each of four inputs make 81 traces.
    choices = itertools.product((inputs[0].dtype, "int64", "string"), repeat=len(inputs))
    for dtypes in itertools.islice(choices, _MOST_TRACES):
        fields = [replace(field, dtype=each) for field, each in zip(inputs, dtypes, strict=True)]
        try:
            concrete, _ = _trace(model, structure, fields, None)
        except ModelError as error:
            refusal = refusal or error
            continue
        used = [_uses(tensor) for tensor in concrete.inputs[: len(fields)]]
        return tuple(
            replace(field, dtype=min(kinds)) if kinds in _CAST_TO else field
            for field, kinds in zip(fields, used, strict=True)
        )
    raise refusal or ModelError("The model takes no inputs.")


def _uses(tensor: Any) -> set[str]:
    """Return the dtypes as which a tensor of a graph is used: what it is cast to, else its own."""
    found: set[str] = set()
    for operation in tensor.consumers():
        if operation.type not in ("Cast", "Identity"):
            found.add(tensor.dtype.name)
        elif not operation.outputs[0].dtype.is_floating:
            found.add(operation.outputs[0].dtype.name)
        else:
            found |= _uses(operation.outputs[0])
    return found


def _embedding_sizes(model: Any) -> dict[int, int]:
    """Return the places of the inputs that go straight into an Embedding layer, and its rows."""
    import keras

    tensors = getattr(model, "inputs", None) or []
    places = {id(tensor): place for place, tensor in enumerate(tensors)}
    found: dict[int, int] = {}
    for layer in model.layers if places else ():
        inner = _embedding_sizes(layer) if isinstance(layer, keras.Model) else {}
        if isinstance(layer, keras.layers.Embedding):
            inner = {0: layer.input_dim}
        for node in layer._inbound_nodes:  # noqa: SLF001  no public way
            taken = {places.get(id(node.input_tensors[at])): size for at, size in inner.items()}
            found |= {place: size for place, size in taken.items() if place is not None}
    return found


def _input_structure(model: Any) -> Any:
    import keras

    # A Sequential that is not built raises AttributeError here, which `getattr` takes for None.
    inputs = getattr(model, "inputs", None)
    if inputs:
        return inputs[0] if isinstance(model, keras.Sequential) else model.input
    shapes = dict(getattr(model, "_build_shapes_dict", None) or {})
    if len(shapes) == 1:
        shapes = next(iter(shapes.values()))
    if not shapes:
        raise ModelError(
            "The model is not built: its inputs are unknown. Call it once on a batch, and save it "
            "again."
        )
    return _tensors_of(shapes)


def _tensors_of(shapes: Any) -> Any:
    """Make placeholders for the shapes that a subclassed model was built with, in their nest."""
    import keras

    def placeholder(shape: Sequence[int | None], name: str) -> Any:
        return keras.KerasTensor((None, *shape[1:]), dtype=keras.config.floatx(), name=name)

    if isinstance(shapes, Mapping):
        named = {name.removesuffix("_shape"): shape for name, shape in shapes.items()}
        return {name: placeholder(shape, name) for name, shape in named.items()}
    if shapes and isinstance(shapes[0], list | tuple):
        return [placeholder(shape, f"input_{place}") for place, shape in enumerate(shapes)]
    return placeholder(shapes, "input")


def _tensor_name(tensor: Any) -> str:
    """Name the layer that makes a tensor: unlike the tensor's own name it survives saving."""
    history = getattr(tensor, "_keras_history", None)
    return str(history.operation.name if history is not None else tensor.name)


def _describe_outputs(
    model: Any, structure: Any, inputs: Sequence[Field], own_batch_size: int | None
) -> list[tuple[str, Any]]:
    """Return names of all outputs, each with something that has its shape and dtype."""
    import keras

    if overrides(model, "predict"):
        arrays = list(repeated(filler(inputs), own_batch_size or 2).values())
        result = _call_predict(model, structure, inputs, arrays)
        return [(name, np.asarray(part)) for name, part in named_parts(result)]
    if overrides(model, "predict_step") or not getattr(model, "outputs", None):
        return _trace(model, structure, inputs, own_batch_size)[1]
    is_alone = isinstance(model, keras.Sequential) and len(model.outputs) == 1
    return named_parts(model.outputs[0] if is_alone else model.output)


def named_parts(structure: Any) -> list[tuple[str, Any]]:
    """Return the parts of a model's result with their names, in the model's order.

    Names are the keys of a dictionary, else the names of the layers, else ``output``.
    """
    if isinstance(structure, Mapping):
        return [part for key, value in structure.items() for part in _keyed_parts(key, value)]
    if isinstance(structure, list | tuple) and len(structure) != 1:
        return [(_part_name(part, f"output_{i}"), part) for i, part in enumerate(structure)]
    part = structure[0] if isinstance(structure, list | tuple) else structure
    return [(_part_name(part, "output"), part)]


def _keyed_parts(key: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, list | tuple):
        return [(f"{key}_{place}", part) for place, part in enumerate(value)]
    return [(key, value)]


def _part_name(part: Any, otherwise: str) -> str:
    return _tensor_name(part) if hasattr(part, "_keras_history") else otherwise


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names, a number behind those that occur before."""
    distinct: list[str] = []
    for name in names:
        number = sum(name == other for other in names[: len(distinct)])
        distinct.append(f"{name}_{number}" if number else name)
    return distinct


def overrides(model: Any, method: str) -> bool:
    """Tell whether the model's class defines a method itself that Keras defines, too."""
    return not getattr(type(model), method).__module__.startswith("keras.")


def packed(structure: Any, flat: Sequence[Any], inputs: Sequence[Field]) -> Any:
    """Return flat values in the nest in which the model wants its inputs."""
    import keras

    if isinstance(structure, dict):
        return {field.name: value for field, value in zip(inputs, flat, strict=True)}
    return keras.tree.pack_sequence_as(structure, list(flat))


def _trace(
    model: Any,
    structure: Any,
    inputs: Sequence[Field],
    batch_size: int | None,
    chosen: Sequence[int] | None = None,
) -> tuple[Any, list[tuple[str, Any]]]:
    """Return ``model.predict_step`` as a graph for batches of a fixed shape, and all outputs."""
    import tensorflow as tf

    parts: list[tuple[str, Any]] = []
    signature = [
        tf.TensorSpec((batch_size, *field.shape), field.dtype, name=f"input_{place}")
        for place, field in enumerate(inputs)
    ]

    def predict_step(*flat: Any) -> list[Any]:
        parts[:] = named_parts(model.predict_step((packed(structure, flat, inputs),)))
        places = range(len(parts)) if chosen is None else chosen
        return [parts[place][1] for place in places]

    try:
        # Autograph stays off as in `model.predict`, and so does XLA: on a CPU it made a convolution
        # 13 times slower, and it changes the bits.
        graph = tf.function(predict_step, input_signature=signature, autograph=False)
        return graph.get_concrete_function(), parts
    except (*backends.TRACE_FAILURES, tf.errors.OpError) as error:
        raise ModelError(
            f"The model cannot be run on batches of {batch_size or 'any number of'} rows. "
            + describe_failure(error, "Check that model.predict() works for it.")
        ) from error


def _call_predict(
    model: Any, structure: Any, inputs: Sequence[Field], arrays: Sequence[np.ndarray]
) -> Any:
    """Return the model's own ``predict`` on one batch, told to be quiet if it listens to that."""
    wanted = inspect.signature(model.predict).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in wanted.values())
    extra = {"verbose": 0, "batch_size": len(arrays[0])}
    return model.predict(
        packed(structure, arrays, inputs),
        **{name: value for name, value in extra.items() if takes_all or name in wanted},
    )
