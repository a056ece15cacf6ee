"""Conversion of a loaded model to an ONNX graph, by tf2onnx, with its proof.

Whatever was loaded becomes a session's graph first; functions are inlined, variables become
constants, and the contents of lookup tables are read from the session.
"""

import contextlib
import hashlib
import itertools
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from batchnorm_tool.errors import BatchnormToolError, ModelError
from batchnorm_tool.job import Model
from batchnorm_tool.models import placement, proof, security
from batchnorm_tool.models.backends import place_name, quoted
from batchnorm_tool.models.backends.keras import KerasModel
from batchnorm_tool.models.backends.normalized_model import NormalizedModel
from batchnorm_tool.models.backends.onnx_graph import converted_predictor, is_out_of_memory
from batchnorm_tool.models.backends.saved_model import SavedModel, graph_nodes, load_saved_model
from batchnorm_tool.models.batching import (
    BackendRecord,
    LoadedModel,
    ModelFacts,
    ModelPredictor,
    Predictor,
    Rows,
)

_OPSET = 18
# Older ones know no lookup from integers to integers.
_LOOKUP_OPSET = 2
_TABLES = ("HashTableV2", "MutableHashTableV2")
_BOOL = 9  # as ONNX numbers the types of tensors
_SPEED_SECONDS = 0.5
_LEAST_ROWS = 1024
_MOST_SAID = 300
# By the name of the operation that makes a table: its keys and values.
_Tables = Mapping[bytes, tuple[np.ndarray, np.ndarray]]


def convert(reference: ModelPredictor, rows: Rows) -> tuple[bytes, ModelFacts]:
    """Convert a model that TensorFlow has loaded, and prove it on rows of the user's input.

    Raises:
        ModelError: It does not convert, what it was converted to does not load, or it predicts
            otherwise. The message is the cause alone, to be put into a sentence.
    """
    with conversion_errors("it cannot be converted to ONNX"):
        content = to_onnx(_as_graph(reference.model))
    with conversion_errors("the converted model does not run"):
        return content, prove(reference, content, rows)


@contextlib.contextmanager
def conversion_errors(what: str) -> Iterator[None]:
    """Turn whatever tf2onnx, TensorFlow or onnxruntime raise into what is wrong with the model."""
    try:
        yield
    except (BatchnormToolError, MemoryError, OSError):
        raise
    except Exception as error:
        if is_out_of_memory(error):  # or of disk space, as TensorFlow says it
            raise MemoryError(quoted(error, _MOST_SAID)) from error
        raise ModelError(f"{what} ({type(error).__name__}: {quoted(error, _MOST_SAID)})") from error


def prove(reference: ModelPredictor, content: bytes, rows: Rows) -> ModelFacts:
    """Return what is known of a graph: the model's own, and its proof on rows of the user's.

    Raises:
        ModelError: The graph predicts otherwise than the reference.
    """
    own = reference.model.own_batch_size
    facts = ModelFacts(*reference.model.ends)
    graph = converted_predictor(content, facts, reference.threads)
    # Few rows, too, stand at many places in batches of many sizes.
    many = placement.repeated(rows, max(_LEAST_ROWS, len(rows[facts.inputs[0].name])))
    arrays = [many[field.name] for field in facts.inputs]
    record = BackendRecord(
        name="onnxruntime",
        graph_sha256=hashlib.sha256(content).hexdigest(),
        largest_difference=proof.largest_difference(reference, graph, rows),
        independent=own is None and proof.is_independent(graph.model.compile(1), arrays),
        batch_size=None,
    )
    return replace(facts, backend=record)


def measure(
    reference: ModelPredictor, content: bytes, facts: ModelFacts, rows: Rows
) -> tuple[ModelFacts, dict[str, float]]:
    """Add a proved graph's fastest batch size; returns how fast both back ends are, too."""
    with conversion_errors("the converted model does not run"):
        size, speed = _speed(converted_predictor(content, facts, reference.threads), rows)
        record = facts.backend and replace(facts.backend, batch_size=size)
        speeds = {"onnxruntime": speed, "tensorflow": _speed(reference, rows)[1]}
        return replace(facts, backend=record), speeds


def _speed(predictor: Predictor, rows: Rows) -> tuple[int, float]:
    """Return a model's fastest batch size, and rows per second of processor time with it."""
    size = placement.choose_batch_size(predictor, rows, placement.LARGEST)
    sized, batch = predictor.with_batch_size(size), placement.repeated(rows, size)
    calls, start = 0, time.process_time()
    while not calls or time.process_time() - start < _SPEED_SECONDS:
        sized.predict(batch)
        calls += 1
    return size, calls * size / max(time.process_time() - start, 1e-9)


def _as_graph(model: LoadedModel) -> SavedModel:
    """Return a model as a session's graph, its inputs and outputs in the same order."""
    if isinstance(model, SavedModel):
        return model
    if not isinstance(model, KerasModel):
        raise ModelError(f"a {type(model).__name__} has no graph")
    return exported_graph(model)


def exported_graph(model: KerasModel | NormalizedModel) -> SavedModel:
    """Return what a model exports as a session's graph."""
    with tempfile.TemporaryDirectory() as place:
        model.export(place)
        # What is examined privately finds its variables and assets where it lies.
        security.examine(place, private=True)
        loaded = load_saved_model(Model(path=place), place, lambda names: range(len(names)))
    assert isinstance(loaded, SavedModel)  # noqa: S101  (for the type checker)
    return loaded


def to_onnx(model: SavedModel, ends: Mapping[str, str] | None = None) -> bytes:
    """Return a session's graph in ONNX.

    Args:
        model: The graph.
        ends: Names of inputs and outputs, by their places; default: as `place_name` has those.
    """
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    import onnx
    import tensorflow as tf
    from onnx import defs, helper
    from tf2onnx import convert as tf2onnx
    from tf2onnx import tf_loader

    feeds, fetches = ([tensor.name for tensor in side] for side in (model.feeds, model.fetches))
    tables = _tables(model.session)
    frozen = _frozen(model, tables)
    with tf.Graph().as_default():
        tf.import_graph_def(frozen, name="")
        frozen = tf_loader.tf_optimize(feeds, fetches, frozen)
    names = {name: place_name("input", place) for place, name in enumerate(feeds)}
    names |= {name: place_name("output", place) for place, name in enumerate(fetches)}
    proto, _ = tf2onnx._convert_common(  # noqa: SLF001  (the public ones take no session)
        frozen,
        name="model",
        continue_on_error=False,
        opset=_OPSET,
        extra_opset=[helper.make_opsetid("ai.onnx.ml", _LOOKUP_OPSET)],
        input_names=feeds,
        output_names=fetches,
        tensors_to_rename=names,
        initialized_tables=tables,
        custom_op_handlers={
            "Erfc": (_erfc, []),
            "GatherV2": (_gather, []),
            "LookupTableFindV2": (partial(_look_up, tables), []),
        },
    )
    unknown = {node.op_type for node in proto.graph.node if not defs.has(node.op_type, node.domain)}
    if unknown:
        raise ModelError(f"ONNX has no operation for {', '.join(sorted(unknown))}")
    named = {name: name for name in names.values()} | dict(ends or {})
    _rename(proto.graph, named, itertools.count())
    content: bytes = proto.SerializeToString(deterministic=True)
    onnx.checker.check_model(content)
    return content


def _rename(graph: Any, names: dict[str, str], numbers: Iterator[int]) -> None:
    """Name values in their order, and sort constants by it: the same model has the same graph."""

    def renamed(name: str) -> str:
        if name and name not in names:
            names[name] = f"v{next(numbers)}"
        return names[name] if name else name

    for value in graph.input:
        value.name = renamed(value.name)
    for node in graph.node:
        node.name, node.doc_string = "", ""
        node.input[:] = map(renamed, node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, names, numbers)
        node.output[:] = map(renamed, node.output)
        attributes = sorted(node.attribute, key=lambda each: each.name)
        del node.attribute[:]
        node.attribute.extend(attributes)
    for value in graph.output:
        value.name = renamed(value.name)
    for length in _lengths(graph):
        length.dim_param = renamed(length.dim_param)
    del graph.value_info[:]
    for constant in graph.initializer:
        constant.name = renamed(constant.name)
    constants = sorted(graph.initializer, key=lambda each: (len(each.name), each.name))
    del graph.initializer[:]
    graph.initializer.extend(constants)
    graph.name = "model"


def _lengths(graph: Any) -> Iterator[Any]:
    """Yield the open lengths of a graph's inputs and outputs, which have names of their own."""
    for value in (*graph.input, *graph.output):
        yield from (each for each in value.type.tensor_type.shape.dim if each.dim_param)


def _tables(session: Any) -> dict[bytes, tuple[np.ndarray, np.ndarray]]:
    """Return the contents of all lookup tables of a graph, by the name that they get in it."""
    from tensorflow.python.ops import gen_lookup_ops

    found = {}
    with session.graph.as_default():
        for made in session.graph.get_operations():
            if made.type in _TABLES:
                dtypes = made.get_attr("key_dtype"), made.get_attr("value_dtype")
                content = gen_lookup_ops.lookup_table_export_v2(made.outputs[0], *dtypes)
                keys, values = session.run([*content])
                order = np.argsort(keys, kind="stable")  # a table gives them in any
                found[made.name.encode()] = keys[order], values[order]
    return found


def _frozen(model: SavedModel, tables: _Tables) -> Any:
    """Return what leads to a graph's outputs, functions inlined and variables as constants."""
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants
    from tensorflow.python.ops import gen_resource_variable_ops

    graph, ends = model.session.graph, [tensor.op.name for tensor in model.fetches]
    with graph.as_default():
        known = {operation.name for operation in graph.get_operations()}
        for operation in graph.get_operations():
            name = f"{operation.name}/Read/ReadVariableOp"  # by which the value is asked for
            if operation.type == "VarHandleOp" and name not in known:
                gen_resource_variable_ops.read_variable_op(
                    operation.outputs[0], operation.get_attr("dtype"), name=name
                )
    definition = tf.compat.v1.graph_util.extract_sub_graph(graph.as_graph_def(), ends)
    for node in definition.node:
        node.device = ""
        if node.name.encode() in tables:
            node.attr["shared_name"].s = node.name.encode()
    frozen = convert_to_constants.convert_variables_to_constants_from_session_graph(
        model.session, _inlined(definition, [*model.feeds, *model.fetches]), ends
    )
    for node in graph_nodes(frozen):
        node.attr.pop("_output_shapes", None)  # wrong where a variable was
    return frozen


def _inlined(definition: Any, ends: Sequence[Any]) -> Any:
    """Return a graph without calls of functions; loops stay such, which tf2onnx recognizes."""
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2
    from tensorflow.python.grappler import tf_optimizer

    for function in definition.library.function:
        function.attr.pop("api_implements", None)
    for node in graph_nodes(definition):
        node.attr.pop("_lower_using_switch_merge", None)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(definition, name="")
    meta = tf.compat.v1.train.export_meta_graph(graph_def=definition, graph=graph)
    kept = meta_graph_pb2.CollectionDef()
    kept.node_list.value.extend(tensor.name for tensor in ends)
    meta.collection_def["train_op"].CopyFrom(kept)
    config = config_pb2.ConfigProto()
    rewriting = config.graph_options.rewrite_options
    rewriting.min_graph_nodes = -1
    rewriting.optimizers.append("function")
    rewriting.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    return tf_optimizer.OptimizeGraph(config, meta)


def _erfc(graph: Any, node: Any, name: str, _: object) -> None:
    """Write 1 - erf(x), of which ONNX has the latter."""
    from tf2onnx import utils

    dtype = utils.map_onnx_to_numpy_type(graph.get_dtype(node.output[0]))
    one = graph.make_const(utils.make_name(name), np.array(1, dtype))
    node.type = "Erf"
    difference = graph.insert_new_node_on_output("Sub", node.output[0])
    graph.replace_inputs(difference, [one.output[0], node.output[0]])


def _gather(graph: Any, node: Any, name: str, _: object) -> None:
    """Write a selection of rows that fails at numbers below 0, which ONNX counts from the end."""
    from tf2onnx import utils
    from tf2onnx.onnx_opset.tensor import GatherV2

    given = node.input[1]
    if not node.inputs[1].is_const():
        dtype, shape = graph.get_dtype(given), graph.get_shape(given)
        numbers = utils.map_onnx_to_numpy_type(dtype)
        ends = [np.array(end, numbers) for end in (0, np.iinfo(numbers).max)]
        zero, beyond = (graph.make_const(utils.make_name(name), end).output[0] for end in ends)
        below = graph.make_node("Less", [given, zero], shapes=[shape], dtypes=[_BOOL]).output[0]
        taken = graph.make_node("Where", [below, beyond, given], shapes=[shape], dtypes=[dtype])
        graph.replace_input(node, given, taken.output[0], 1)
    GatherV2.version_12(graph, node)


def _look_up(tables: _Tables, graph: Any, node: Any, name: str, _: object) -> None:
    """Write a lookup from integers to integers, as which tf2onnx has none, or let it do others."""
    from tf2onnx.custom_opsets.onnx_ml import LookupTableFind

    table = node.inputs[0]
    while table.type == "Identity":
        table = table.inputs[0]
    keys, values = tables[table.get_attr_value("shared_name")]
    if {keys.dtype.kind, values.dtype.kind} != {"i"}:
        LookupTableFind.version_8(graph, node, tables)
        return
    attributes = {
        "keys_int64s": keys.astype(np.int64),
        "values_int64s": values.astype(np.int64),
        "default_int64": int(node.inputs[2].get_tensor_value()),
    }
    given, outputs = node.input[1], node.output
    shapes, dtypes = [graph.get_shape(given)], [graph.get_dtype(outputs[0])]
    graph.remove_node(name)
    graph.make_node(
        "LabelEncoder",
        domain="ai.onnx.ml",
        name=name,
        inputs=[given],
        outputs=outputs,
        attr=attributes,
        shapes=shapes,
        dtypes=dtypes,
    )
