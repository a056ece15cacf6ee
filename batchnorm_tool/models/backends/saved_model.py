"""SavedModel directories as predictors: one signature of the graph, run in a session of its own.

A session runs what any export has, of TensorFlow 1 or 2: a graph, its variables and its signatures.
The Python objects that TensorFlow 2 stores beside it (optimizers, functions for training) are
neither needed nor in the copy that the gate admitted.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from batchnorm_tool.chunk import Field
from batchnorm_tool.errors import ModelError
from batchnorm_tool.job import Model
from batchnorm_tool.models import backends
from batchnorm_tool.models.batching import BackendRecord, LoadedModel, OutputChoice, Step
from batchnorm_tool.models.signature import choose_signature

_INIT_OP = "__saved_model_init_op"
_LOOKUPS = frozenset({"Gather", "GatherV2", "ResourceGather"})


def load_saved_model(
    model: Model, path: str, choose: OutputChoice, record: BackendRecord | None = None
) -> LoadedModel:
    """Load a SavedModel directory that the gate admitted; ``record`` tells if it was converted."""
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    content = Path(path, "saved_model.pb").read_bytes()
    stored = saved_model_pb2.SavedModel.FromString(content).meta_graphs[0]
    named = {name: each for name, each in stored.signature_def.items() if name != _INIT_OP}
    signature = choose_signature(model, named)
    try:
        session = _session(stored)
        # Both come in another order in every process.
        inputs = _tensors(session, signature.inputs)
        outputs = _tensors(session, signature.outputs)
    except (*backends.LOAD_FAILURES, tf.errors.OpError) as error:
        raise ModelError(_explain(model.path, error)) from error
    taken = {name: backends.field_of(name, spec) for name, (_, spec) in inputs.items()}
    chosen = [[*outputs][place] for place in choose([*outputs])]
    given = {name: backends.field_of(name, outputs[name][1]) for name in chosen}
    return SavedModel(
        session=session,
        feeds=tuple(tensor for tensor, _ in inputs.values()),
        fetches=tuple(outputs[name][0] for name in chosen),
        inputs=tuple(taken.values()),
        outputs=tuple(given.values()),
        embedding_sizes=dict.fromkeys(_ids(taken.values()) if _looks_up(stored) else ()),
        own_batch_size=min({spec.shape[0] for _, spec in inputs.values()} - {None}, default=None),
        backend=record,
    )


@dataclass(frozen=True)
class SavedModel(LoadedModel):
    """A SavedModel in memory: the tensors of ``inputs`` and ``outputs`` in a session's graph."""

    session: Any
    feeds: tuple[Any, ...]
    fetches: tuple[Any, ...]

    def compile(self, batch_size: int) -> Step:
        """Return a step over batches of one size; the graph is compiled already."""
        import tensorflow as tf

        call = self._call
        dtypes = [tf.as_dtype(field.dtype).as_numpy_dtype for field in self.inputs]

        def step(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
            with backends.run_errors():
                found = call(*map(np.asarray, arrays, dtypes))
            for field, result in zip(self.outputs, found, strict=True):
                backends.check_output(field.name, result.shape, batch_size)
            return found

        return step

    @cached_property
    def _call(self) -> Callable[..., list[np.ndarray]]:
        call: Callable[..., list[np.ndarray]]
        call = self.session.make_callable([*self.fetches], [*self.feeds])
        return call


def _ids(inputs: Iterable[Field]) -> list[str]:
    return [field.name for field in inputs if field.dtype.startswith("int")]


def _looks_up(stored: Any) -> bool:
    """Tell whether any operation of a graph takes rows by their numbers, as an Embedding does."""
    return any(node.op in _LOOKUPS for node in graph_nodes(stored.graph_def))


def graph_nodes(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a graph and of its functions."""
    return chain(graph.node, *(function.node_def for function in graph.library.function))


def _session(stored: Any) -> Any:
    """Return a session with the stored graph, its variables restored and its tables initialized."""
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(
            stored.graph_def, name="", producer_op_list=stored.meta_info_def.stripped_op_list
        )
    # As the eager runtime is set up: devices and threads.
    session = tf.compat.v1.Session(graph=graph)
    # Variables come first: what initializes a table may read one.
    initialized = stored.signature_def[_INIT_OP].outputs[_INIT_OP].name
    for operation in (stored.saver_def.restore_op_name, initialized):
        if operation:
            session.run(operation)
    return session


def _tensors(session: Any, infos: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the tensors of one side of a signature, each with the shape that it was saved with."""
    import tensorflow as tf

    found = {}
    for name, info in sorted(infos.items()):
        if info.WhichOneof("encoding") != "name":
            raise ValueError(f"the signature's {name} is not a dense tensor")
        tensor = session.graph.as_graph_element(info.name, allow_operation=False)
        found[name] = tensor, tf.TensorSpec(tf.TensorShape(info.tensor_shape), tensor.dtype, name)
    return found


def _explain(path: str, error: Exception) -> str:
    said = backends.quoted(error)
    if "not registered" in said or "Op type" in said:
        meaning = (
            "It needs an operation that this TensorFlow does not have. Install the package that "
            "adds it."
        )
    elif "variables" in said or "checkpoint" in said:
        meaning = "Its variables are missing or damaged. Copy the whole directory again."
    else:
        meaning = "Check that TensorFlow Serving can load it, and export the model again."
    return f"{path}: does not load. {meaning} TensorFlow says: {type(error).__name__}: {said}"
