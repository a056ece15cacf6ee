"""SavedModels to try the gate on: honest exports of every kind, and hostile ones.

A hostile model would write a marker file, or read what is none of its business.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

WORDS = np.array([b"red", b"green", b"blue", b"mauve", b"red", b"cyan"], object)
ROWS = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
VOCABULARY = ["red", "green", "blue"]


class Export(NamedTuple):
    """A SavedModel, and what its first output is for some features."""

    name: str
    path: Path
    features: dict[str, np.ndarray]
    expected: np.ndarray


def benign(folder: Path) -> Iterator[Export]:
    """Honest exports, made one by one in a folder."""
    vocabulary = folder / "vocabulary.txt"
    vocabulary.write_text("\n".join(VOCABULARY))
    for name, (features, body) in _keras_models(str(vocabulary)).items():
        yield _keras_export(folder / name, features, body)
    for module, features in _modules(str(vocabulary)):
        name = type(module).__name__
        yield _module_export(folder / name, module, features)
    for make in (
        _of_variables,
        _of_references,
        _of_an_asset,
        _of_a_table,
        _of_a_loop,
        _of_examples,
    ):
        yield make(folder / make.__name__.strip("_"))


def _keras_models(vocabulary: str) -> dict[str, tuple[np.ndarray, Callable[[Any], Any]]]:
    import keras
    from keras import layers

    rng = np.random.default_rng(1)
    steps = rng.normal(size=(5, 6, 3)).astype("float32")
    images = rng.normal(size=(3, 8, 8, 2)).astype("float32")
    ids = rng.integers(0, 9, (4, 5)).astype("int64")
    texts = np.array([["red green"], ["blue blue red"], ["grey"]], object)
    scaling = layers.Normalization()
    scaling.adapt(ROWS)
    counting = layers.TextVectorization(output_sequence_length=4)
    counting.adapt(["red green blue", "green grey"])
    weighted = layers.TextVectorization(output_mode="tf_idf")
    weighted.adapt(["red green blue", "green grey"])
    looked_up = layers.StringLookup()
    looked_up.adapt(VOCABULARY)
    binned = layers.Discretization(num_bins=3)
    binned.adapt(ROWS)
    flat = layers.Flatten
    return {
        "dense": (ROWS, lambda x: layers.Dense(3)(layers.Dense(5, "relu")(x))),
        "normalization": (ROWS, lambda x: layers.Dense(3)(scaling(x))),
        "batch norm": (ROWS, lambda x: layers.BatchNormalization()(layers.Dense(3)(x))),
        "residual": (ROWS, lambda x: layers.LayerNormalization()(x + layers.Dense(4, "gelu")(x))),
        "convolution": (
            images,
            lambda x: layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(x)),
        ),
        "separable": (images, lambda x: flat()(layers.SeparableConv2D(2, 3)(x))),
        "resized": (images, lambda x: flat()(layers.Resizing(4, 4)(x))),
        "lstm": (steps, layers.LSTM(4)),
        "gru both ways": (steps, layers.Bidirectional(layers.GRU(3))),
        "attention": (
            steps,
            lambda x: layers.GlobalMaxPooling1D()(layers.MultiHeadAttention(2, 3)(x, x)),
        ),
        "embedding": (ids, lambda x: layers.GlobalAveragePooling1D()(layers.Embedding(9, 4)(x))),
        "string lookup": (
            WORDS[:, None],
            lambda x: flat()(layers.Embedding(5, 2)(layers.StringLookup(vocabulary=VOCABULARY)(x))),
        ),
        "vocabulary file": (
            WORDS[:, None],
            lambda x: flat()(layers.Embedding(5, 2)(layers.StringLookup(vocabulary=vocabulary)(x))),
        ),
        "adapted lookup": (WORDS[:, None], lambda x: flat()(layers.Embedding(5, 2)(looked_up(x)))),
        "text vectorization": (texts, lambda x: flat()(layers.Embedding(9, 2)(counting(x)))),
        "tf-idf": (texts, lambda x: layers.Dense(3)(weighted(x))),
        "integer lookup": (
            ids,
            lambda x: layers.CategoryEncoding(5)(layers.IntegerLookup(vocabulary=[1, 2, 3])(x)),
        ),
        "hashing": (WORDS[:, None], lambda x: flat()(layers.Embedding(7, 2)(layers.Hashing(7)(x)))),
        "discretization": (ROWS, lambda x: flat()(layers.Embedding(3, 2)(binned(x)))),
        "stack of cells": (steps, layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)])),
        "time distributed": (steps, lambda x: flat()(layers.TimeDistributed(layers.Dense(2))(x))),
        "half precision": (ROWS, layers.Dense(3, dtype="mixed_float16")),
        "unrolled": (steps, layers.SimpleRNN(3, unroll=True)),
        "keras operations": (ROWS, lambda x: keras.ops.softmax(keras.ops.sort(x) * 2.0)),
    }


def _keras_export(path: Path, features: np.ndarray, body: Callable[[Any], Any]) -> Export:
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    dtype = "string" if features.dtype == object else str(features.dtype)
    inputs = keras.Input(features.shape[1:], dtype=dtype, name="features")
    model = keras.Model(inputs, body(inputs))
    model.export(str(path), verbose=False)
    expected = model(tf.constant(features)).numpy()
    return Export(path.name, path, {"features": features}, expected)


def _modules(  # noqa: C901  (a list of small models)
    vocabulary: str,
) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    import tensorflow as tf

    def of(*shape: int | None, dtype: Any = tf.float32) -> Any:
        return tf.TensorSpec((None, *shape), dtype)

    lookup = tf.lookup

    class SeveralSignatures(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[of(4)])
        def serve(self, x: Any) -> Any:
            return {"output": x * 2}

        @tf.function(input_signature=[of(4)])
        def other(self, x: Any) -> Any:
            return {"output": x * 3}

    class TableOfAFile(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            whole, number = lookup.TextFileIndex.WHOLE_LINE, lookup.TextFileIndex.LINE_NUMBER
            source = lookup.TextFileInitializer(vocabulary, tf.string, whole, tf.int64, number)
            self.table = lookup.StaticHashTable(source, 3)
            self.vectors = tf.Variable(np.arange(12, dtype="float32").reshape(4, 3))

        @tf.function(input_signature=[of(dtype=tf.string)])
        def serve(self, x: Any) -> Any:
            return {"output": tf.gather(self.vectors, self.table.lookup(x))}

    class TableWithoutAName(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            pairs = lookup.KeyValueTensorInitializer(VOCABULARY, [1.0, 2.0, 3.0])
            self.table = lookup.StaticHashTable(pairs, 4.0, experimental_is_anonymous=True)
            self.kept = lookup.experimental.MutableHashTable(
                tf.string, tf.float32, 9.0, experimental_is_anonymous=True
            )
            self.kept.insert(["red"], [7.0])

        @tf.function(input_signature=[of(dtype=tf.string)])
        def serve(self, x: Any) -> Any:
            return {"output": tf.stack([self.table.lookup(x), self.kept.lookup(x)], 1)}

    class ControlFlow(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[of(4)])
        def serve(self, x: Any) -> Any:
            for _ in tf.range(tf.shape(x)[1]):
                x = tf.where(x > 0, x * 0.5, x + 1.0)
            squares = tf.map_fn(lambda row: tf.cond(row[0] > 0, lambda: row**2, lambda: row), x)
            return {"output": squares}

    class TextOperations(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[of(dtype=tf.string)])
        def serve(self, x: Any) -> Any:
            text = tf.strings.regex_replace(tf.strings.upper(x), "E", "ee")
            pieces = tf.strings.unicode_split(text, "UTF-8")
            hashed = tf.strings.to_hash_bucket_fast(text, 100)
            numbers = [pieces.row_lengths(), tf.cast(tf.strings.length(text), tf.int64), hashed]
            return {"output": tf.cast(tf.stack(numbers, 1), tf.float32)}

    class TrainedOnDataSets(tf.Module):  # type: ignore[misc]
        """Its functions for training read data sets, write summaries and files."""

        def __init__(self) -> None:
            self.weights = tf.Variable(np.ones((4, 2), "float32"))

        @tf.function(input_signature=[of(4)])
        def serve(self, x: Any) -> Any:
            return {"output": x @ self.weights}

        @tf.function(input_signature=[of(4)])
        def adapt(self, x: Any) -> Any:
            for batch in tf.data.Dataset.from_tensor_slices(x).batch(2):
                self.weights.assign_add(tf.reduce_sum(batch) * tf.ones((4, 2)))
            tf.print(x, output_stream="file:///tmp/batchnorm_tool_must_not_exist")
            tf.io.write_file("/tmp/batchnorm_tool_must_not_exist", "x")
            return tf.raw_ops.OptionalNone()

    yield SeveralSignatures(), {"x": ROWS}
    yield TableOfAFile(), {"x": WORDS}
    yield TableWithoutAName(), {"x": WORDS}
    yield ControlFlow(), {"x": ROWS}
    yield TextOperations(), {"x": WORDS}
    yield TrainedOnDataSets(), {"x": ROWS}


def _module_export(path: Path, module: Any, features: dict[str, np.ndarray]) -> Export:
    import tensorflow as tf

    if hasattr(module, "adapt"):
        module.adapt.get_concrete_function()
    signatures = {"serving_default": module.serve}
    if hasattr(module, "other"):
        signatures["other"] = module.other
    tf.saved_model.save(module, str(path), signatures=signatures)
    expected = module.serve(*map(tf.constant, features.values()))["output"].numpy()
    return Export(path.name, path, features, expected)


Body = Callable[[Any], tuple[Any, Any]]


def write_tf1(path: Path, features: dict[str, np.ndarray], body: Body) -> Export:
    """Export in the manner of TensorFlow 1: a graph, its collections, and a saver's nodes."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        ((name, value),) = features.items()
        dtype = tf.string if value.dtype == object else value.dtype
        tensor = v1.placeholder(dtype, (None, *value.shape[1:]), "input")
        output, init = body(tensor)
        session.run(v1.global_variables_initializer())
        session.run(v1.tables_initializer())
        v1.summary.histogram("output", output)
        expected = session.run(output, {tensor: value})
        builder = v1.saved_model.Builder(str(path))
        signature = v1.saved_model.predict_signature_def({name: tensor}, {"output": output})
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {"serving_default": signature},
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
            main_op=init,
        )
        builder.save()
    return Export(path.name, path, features, expected)


def _of_variables(path: Path) -> Export:
    import tensorflow as tf

    def body(x: Any) -> tuple[Any, Any]:
        weights = tf.compat.v1.get_variable("w", (4, 3), use_resource=True)
        return x @ weights, None

    return write_tf1(path, {"x": ROWS}, body)


def _of_references(path: Path) -> Export:
    import tensorflow as tf

    def body(x: Any) -> tuple[Any, Any]:
        weights = tf.compat.v1.get_variable("w", (4, 3), use_resource=False)
        with tf.compat.v1.colocate_with(weights):
            scaled = tf.identity(weights) * 2.0
        return x @ scaled, None

    return write_tf1(path, {"x": ROWS}, body)


def _of_an_asset(path: Path) -> Export:
    import tensorflow as tf

    v1 = tf.compat.v1
    file = path.parent / "words of an asset.txt"
    file.write_text("\n".join(VOCABULARY))

    def body(x: Any) -> tuple[Any, Any]:
        name = tf.constant(str(file))
        v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, name)
        whole, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
        source = tf.lookup.TextFileInitializer(name, tf.string, whole, tf.int64, number)
        weights = v1.get_variable("w", (4, 3))
        found = tf.lookup.StaticHashTable(source, 3).lookup(x)
        return tf.gather(weights, found), v1.tables_initializer()

    return write_tf1(path, {"x": WORDS}, body)


def _of_a_table(path: Path) -> Export:
    import tensorflow as tf

    v1 = tf.compat.v1

    def body(x: Any) -> tuple[Any, Any]:
        pairs = tf.lookup.KeyValueTensorInitializer(VOCABULARY, [1.0, 2.0, 3.0])
        found = tf.lookup.StaticHashTable(pairs, -1.0).lookup(x)
        return tf.stack([found, found * 2], 1), v1.tables_initializer()

    return write_tf1(path, {"x": WORDS}, body)


def _of_a_loop(path: Path) -> Export:
    import tensorflow as tf

    v1 = tf.compat.v1

    def body(x: Any) -> tuple[Any, Any]:
        v1.disable_control_flow_v2()
        try:
            weights = v1.get_variable("w", (4, 4))
            state = v1.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, y @ weights), (0, x))[1]
            chosen = v1.cond(tf.shape(x)[1] > 3, lambda: state + 1, lambda: state)
        finally:
            v1.enable_control_flow_v2()
        return chosen, None

    return write_tf1(path, {"x": ROWS}, body)


def _of_examples(path: Path) -> Export:
    """As an Estimator exports: serialized examples in, parsed by the graph."""
    import tensorflow as tf

    def example(row: np.ndarray) -> bytes:
        values = tf.train.Feature(float_list=tf.train.FloatList(value=row))
        features = tf.train.Features(feature={"x": values})
        return bytes(tf.train.Example(features=features).SerializeToString())

    def body(x: Any) -> tuple[Any, Any]:
        parsed = tf.io.parse_example(x, {"x": tf.io.FixedLenFeature((4,), tf.float32)})
        weights = tf.compat.v1.get_variable("w", (4, 3))
        return tf.nn.softmax(parsed["x"] @ weights), None

    # Numbers of which the bytes are text: a table's column of text is what holds them here.
    rows = np.random.default_rng(2).choice([0.5, 2.0, 8.0, 32.0], (6, 4))
    return write_tf1(path, {"examples": np.array([*map(example, rows)], object)}, body)


Edit = Callable[[Any, str], None]


def cut(folder: Path, marker: Path) -> Iterator[tuple[str, Path]]:
    """Models with a writer of the marker in a place that no signature needs."""
    from tensorflow.core.protobuf import saved_model_pb2

    base = folder / "base"
    _save_body(base, lambda x: x * 2)
    for name, edit in CUT.items():
        saved = saved_model_pb2.SavedModel.FromString((base / "saved_model.pb").read_bytes())
        edit(saved.meta_graphs[0], str(marker))
        yield name, _copied(base, folder / name, saved.SerializeToString())


def hostile(folder: Path, marker: Path) -> Iterator[tuple[str, Path]]:
    """Models that would write the marker, or lead out of their directory, made in a folder."""
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    base = folder / "base"
    _save_body(base, lambda x: x * 2)
    content = (base / "saved_model.pb").read_bytes()
    for name, edit in EDITS.items():
        saved = saved_model_pb2.SavedModel.FromString(content)
        edit(saved.meta_graphs[0], str(marker))
        yield name, _copied(base, folder / name, saved.SerializeToString())
    for name, change in BYTES.items():
        saved = saved_model_pb2.SavedModel.FromString(content)
        yield name, _copied(base, folder / name, change(saved, str(marker)))
    for name, trick in TRICKS.items():
        path = _copied(base, folder / name, content)
        trick(path)
        yield name, path
    for name, body in _bodies(tf, str(marker)).items():
        yield name, _save_body(folder / name, body)


def _copied(base: Path, path: Path, content: bytes) -> Path:
    shutil.copytree(base, path)
    (path / "saved_model.pb").write_bytes(content)
    return path


def _save_body(path: Path, body: Callable[[Any], Any]) -> Path:
    import tensorflow as tf

    class Module(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            self.weights = tf.Variable(np.ones((4, 2), "float32"))

        @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32)])
        def serve(self, x: Any) -> Any:
            return {"output": body(x) @ self.weights}

    module = Module()
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.serve})
    return path


def _bodies(  # noqa: C901  (a list of small models)
    tf: Any, marker: str
) -> dict[str, Callable[[Any], Any]]:
    def write(x: Any) -> Any:
        with tf.control_dependencies([tf.io.write_file(marker, "x")]):
            return tf.identity(x)

    def python(x: Any) -> Any:
        Path(marker).write_text("x")
        return x

    def saved(x: Any) -> Any:
        tf.raw_ops.SaveV2(
            prefix=marker, tensor_names=["x"], shape_and_slices=[""], tensors=[tf.reduce_sum(x)]
        )
        return x

    def printed(x: Any) -> Any:
        tf.print("x", output_stream=f"file://{marker}")
        return x

    def of_dataset(x: Any) -> Any:
        for _ in tf.data.Dataset.range(1).map(lambda _: write(1)):
            x = x + 1.0
        return x

    def read(x: Any) -> Any:
        return x + tf.cast(tf.strings.length(tf.io.read_file("/etc/passwd")), tf.float32)

    def restored(x: Any) -> Any:
        prefix = tf.constant("/tmp/elsewhere")
        return (
            x
            + tf.raw_ops.RestoreV2(
                prefix=prefix, tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.float32]
            )[0]
        )

    def vocabulary(x: Any) -> Any:
        table = tf.raw_ops.HashTableV2(key_dtype=tf.int64, value_dtype=tf.string)
        tf.raw_ops.InitializeTableFromTextFileV2(
            table_handle=table, filename=tf.constant("/etc/passwd"), key_index=-1, value_index=-2
        )
        found = tf.raw_ops.LookupTableFindV2(
            table_handle=table, keys=tf.constant([0], tf.int64), default_value=""
        )
        return x + tf.cast(tf.strings.length(found), tf.float32)

    def cond(x: Any) -> Any:
        return tf.cond(tf.reduce_sum(x) > 1e9, lambda: write(x), lambda: x)

    def case(x: Any) -> Any:
        return tf.switch_case(tf.size(x), [lambda: x, lambda: write(x)])

    def loop(x: Any) -> Any:
        return tf.while_loop(lambda y: tf.reduce_sum(y) < 0, lambda y: (write(y),), (x,))[0]

    return {
        "write a file": write,
        "write a file in a branch": cond,
        "write a file in one of several branches": case,
        "write a file in a loop": loop,
        "write a file for each row": lambda x: tf.map_fn(write, x),
        "write a file for a data set": of_dataset,
        "run Python": lambda x: tf.ensure_shape(tf.py_function(python, [x], tf.float32), (None, 4)),
        "run NumPy": lambda x: tf.ensure_shape(
            tf.numpy_function(python, [x], tf.float32), (None, 4)
        ),
        "save a checkpoint": saved,
        "print to a file": printed,
        "read a file": read,
        "list files": lambda x: x + tf.cast(tf.size(tf.io.matching_files("/etc/*")), tf.float32),
        "restore another checkpoint": restored,
        "read a vocabulary from elsewhere": vocabulary,
    }


def _add(graph: Any, name: str, op: str, *inputs: str) -> str:
    graph.node.add(name=name, op=op, input=inputs)
    return name


def _text(graph: Any, name: str, text: str) -> str:
    node = graph.node.add(name=name, op="Const")
    node.attr["dtype"].type = 7
    node.attr["value"].tensor.dtype = 7
    node.attr["value"].tensor.tensor_shape.SetInParent()
    node.attr["value"].tensor.string_val.append(text.encode())
    return name


def _writer(graph: Any, marker: str) -> str:
    """A node of the main graph that writes the marker."""
    return _add(graph, "evil", "WriteFile", _text(graph, "file", marker), _text(graph, "text", "x"))


def _evil_function(meta: Any, marker: str, name: str = "evil_1") -> str:
    """A function like the signature's own that writes the marker first."""
    library = meta.graph_def.library
    function = library.function.add()
    function.CopyFrom(_served_function(meta))
    function.signature.name = name
    function.signature.is_stateful = True
    for what, text in (("file", marker), ("text", "x")):
        node = function.node_def.add(name=what, op="Const")
        node.attr["dtype"].type = 7
        node.attr["value"].tensor.dtype = 7
        node.attr["value"].tensor.tensor_shape.SetInParent()
        node.attr["value"].tensor.string_val.append(text.encode())
    function.node_def.add(name="evil", op="WriteFile", input=["file:output:0", "text:output:0"])
    function.signature.control_output.append("evil")
    function.control_ret["evil"] = "evil"
    return name


def _served_function(meta: Any) -> Any:
    name = _caller(meta).attr["f"].func.name
    return next(item for item in meta.graph_def.library.function if item.signature.name == name)


def _caller(meta: Any) -> Any:
    """The node that the signature runs."""
    signature = meta.signature_def["serving_default"]
    name = signature.outputs["output"].name.partition(":")[0]
    return _node(meta, name)


def _node(meta: Any, name: str) -> Any:
    return next(node for node in meta.graph_def.node if node.name == name)


def _before_the_signature(meta: Any, marker: str) -> None:
    _caller(meta).input.append(f"^{_writer(meta.graph_def, marker)}")


def _before_the_tables(meta: Any, marker: str) -> None:
    name = meta.signature_def["__saved_model_init_op"].outputs["__saved_model_init_op"].name
    _node(meta, name).input.append(f"^{_writer(meta.graph_def, marker)}")


def _as_the_tables(meta: Any, marker: str, key: str = "saved_model_main_op") -> None:
    del meta.signature_def["__saved_model_init_op"]
    del meta.collection_def["saved_model_main_op"]
    meta.collection_def[key].node_list.value.append(_writer(meta.graph_def, marker))


def _before_the_restoring(meta: Any, marker: str) -> None:
    _node(meta, meta.saver_def.restore_op_name).input.append(f"^{_writer(meta.graph_def, marker)}")


def _as_the_restoring(meta: Any, marker: str) -> None:
    meta.saver_def.restore_op_name = _writer(meta.graph_def, marker)


def _saving_as_the_restoring(meta: Any, marker: str) -> None:
    meta.saver_def.restore_op_name = meta.saver_def.save_tensor_name.partition(":")[0]


def _saving_before_the_signature(meta: Any, marker: str) -> None:
    saver = meta.saver_def.save_tensor_name.partition(":")[0]
    _node(meta, saver).input[0] = _text(meta.graph_def, "file", marker)
    _caller(meta).input.append(f"^{saver}")


def _restoring_from_elsewhere(meta: Any, marker: str) -> None:
    restoring = _node(meta, meta.saver_def.restore_op_name)
    restoring.input[0] = _text(meta.graph_def, "file", marker)


def _in_the_function(meta: Any, marker: str) -> None:
    _caller(meta).attr["f"].func.name = _evil_function(meta, marker)


def _in_an_attribute(meta: Any, marker: str) -> None:
    nested = _caller(meta).attr["f"].func.attr["T"].list.func.add()
    nested.attr["g"].func.name = _evil_function(meta, marker)


def _in_a_gradient(meta: Any, marker: str) -> None:
    gradient = meta.graph_def.library.gradient.add()
    gradient.function_name = _served_function(meta).signature.name
    gradient.gradient_func = _evil_function(meta, marker)


def _in_anothers_place(meta: Any, marker: str) -> None:
    name = _evil_function(meta, marker)
    for function in meta.graph_def.library.function:
        if function.signature.name in (name, _served_function(meta).signature.name):
            function.attr["api_implements"].s = b"same"


def _named_like_an_operation(meta: Any, marker: str) -> None:
    _served_function(meta).signature.name = "Identity"
    _caller(meta).attr["f"].func.name = "Identity"


def _left_to_the_caller(meta: Any, marker: str) -> None:
    node = _served_function(meta).node_def.add(name="evil", op="PartitionedCall")
    node.attr["f"].placeholder = "T"
    _caller(meta).attr["T"].func.name = "WriteFile"


def _asset_outside(meta: Any, marker: str) -> None:
    asset = meta.asset_file_def.add(filename="../../../etc/passwd")
    asset.tensor_info.name = f"{_text(meta.graph_def, 'file', 'x')}:0"


def _operation(name: str) -> Edit:
    """An edit that runs an operation before the signature."""

    def edit(meta: Any, marker: str) -> None:
        inputs = [_text(meta.graph_def, f"text{place}", marker) for place in range(2)]
        _caller(meta).input.append(f"^{_add(meta.graph_def, 'evil', name, *inputs)}")

    return edit


EDITS: dict[str, Edit] = {
    "a writer before the signature": _before_the_signature,
    "a writer before the tables": _before_the_tables,
    "a writer as the initializer": _as_the_tables,
    "a writer as the older initializer": lambda meta, marker: _as_the_tables(
        meta, marker, "legacy_init_op"
    ),
    "a writer before the restoring": _before_the_restoring,
    "a writer as the restoring": _as_the_restoring,
    "the saving as the restoring": _saving_as_the_restoring,
    "the saving before the signature": _saving_before_the_signature,
    "a restoring from elsewhere": _restoring_from_elsewhere,
    "a writer in the function": _in_the_function,
    "a writer in an attribute": _in_an_attribute,
    "a function named like an operation": _named_like_an_operation,
    "a function left to the caller": _left_to_the_caller,
    "an asset outside": _asset_outside,
    **{
        f"the operation {name}": _operation(name)
        for name in (
            *("OfTheFuture", "Save", "SaveSlices", "CreateSummaryFileWriter", "DebugIdentity"),
            *("DecodeProtoV2", "ImmutableConst", "PyFunc", "EagerPyFunc", "RpcClient", "Abort"),
            *("TextLineReaderV2", "DumpMlir", "XlaCallModule", "MergeV2Checkpoints"),
        )
    },
}


def _for_training(meta: Any, marker: str) -> None:
    outputs = meta.signature_def["__saved_model_train_op"].outputs
    outputs["__saved_model_train_op"].name = _writer(meta.graph_def, marker)


# What only these would reach is left out of the copy.
CUT: dict[str, Edit] = {
    "a writer in a gradient": _in_a_gradient,
    "a writer in another's place": _in_anothers_place,
    "a writer beside the signature": lambda meta, marker: _writer(meta.graph_def, marker),
    "a writer in a function that nothing calls": _evil_function,
    "a writer for training": _for_training,
}


def _of_two_signatures(saved: Any, marker: str) -> bytes:
    """A function of two names, of which one parser joins the parts and another takes the last."""
    from tensorflow.core.framework import function_pb2

    meta = saved.meta_graphs[0]
    _before_the_signature(meta, marker)
    first, second = function_pb2.FunctionDef(), function_pb2.FunctionDef()
    first.signature.name, second.signature.name = "Write", "File"
    twice = first.SerializeToString() + second.SerializeToString()
    library = b"\x0a" + bytes([len(twice)]) + twice
    graph = b"\x12" + bytes([len(library)]) + library
    meta_graph = b"\x12" + bytes([len(graph)]) + graph
    return bytes(saved.SerializeToString()) + b"\x12" + bytes([len(meta_graph)]) + meta_graph


def _of_one_name(saved: Any, marker: str) -> bytes:
    meta = saved.meta_graphs[0]
    _evil_function(meta, marker, _served_function(meta).signature.name)
    functions = list(meta.graph_def.library.function)
    del meta.graph_def.library.function[:]
    meta.graph_def.library.function.extend(reversed(functions))
    return bytes(saved.SerializeToString())


def _of_two_graphs(saved: Any, marker: str) -> bytes:
    first = saved.SerializeToString()
    _before_the_signature(saved.meta_graphs[0], marker)
    return bytes(first + saved.SerializeToString())


def _of_one_graph_twice(saved: Any, marker: str) -> bytes:
    """The second half of a graph is merged into the first."""
    from tensorflow.core.protobuf import meta_graph_pb2

    more = meta_graph_pb2.MetaGraphDef()
    more.saver_def.restore_op_name = _writer(more.graph_def, marker)
    content = saved.meta_graphs[0].SerializeToString() + more.SerializeToString()
    length = bytes([len(content) & 127 | 128, len(content) >> 7 & 127 | 128, len(content) >> 14])
    return b"\x08\x01\x12" + length + content


BYTES: dict[str, Callable[[Any, str], bytes]] = {
    "a function of two signatures": _of_two_signatures,
    "two functions of one name": _of_one_name,
    "two graphs of one tag": _of_two_graphs,
    "a graph given twice": _of_one_graph_twice,
}


def _variables_outside(path: Path) -> None:
    shutil.move(path / "variables", path.parent / "variables of another")
    (path / "variables").symlink_to("../variables of another")


TRICKS: dict[str, Callable[[Path], None]] = {
    "a link to a folder outside": _variables_outside,
    "a link to a file outside": lambda path: (path / "secret").symlink_to("/etc/passwd"),
    "links in a circle": lambda path: (path / "again").symlink_to("."),
    "a pipe": lambda path: os.mkfifo(path / "pipe"),
}
