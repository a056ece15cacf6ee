"""Honest Keras models: every layer of Keras, small applications, and the shapes models come in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROWS = 6
VECTOR, SEQUENCE, IMAGE, VOLUME = (4,), (6, 3), (8, 8, 3), (6, 6, 6, 2)
_SEQUENCE_AND_IMAGE = {"1D": SEQUENCE, "2D": IMAGE, "3D": VOLUME}

# What is no layer that a stored model may hold, and why.
EXCLUDED = {
    "FlaxLayer": "runs code",
    "InputSpec": "no layer",
    "JaxLayer": "runs code",
    "Lambda": "runs code",
    "Layer": "a base class",
    "TFSMLayer": "loads another file",
    "TorchModuleWrapper": "runs code",
    "Wrapper": "a base class",
    "Equalization": "Keras itself cannot build a model with it",
    "InputLayer": "part of every model here",
    "CutMix": "mixes labels, in training",
    "MaxNumBoundingBoxes": "takes boxes",
    "MixUp": "mixes labels, in training",
}
# The settings and the input of each layer that cannot do without.
SETTINGS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "Activation": ({"activation": "gelu"}, VECTOR),
    "BatchNormalization": ({}, VECTOR),
    "CategoryEncoding": ({"num_tokens": 9}, VECTOR),
    "CenterCrop": ({"height": 4, "width": 4}, IMAGE),
    "Dense": ({"units": 3, "activation": "relu", "kernel_regularizer": "l2"}, VECTOR),
    "Discretization": ({"bin_boundaries": [-1.0, 0.0, 1.0]}, VECTOR),
    "EinsumDense": ({"equation": "abc,cd->abd", "output_shape": (None, 5)}, SEQUENCE),
    "Embedding": ({"input_dim": 9, "output_dim": 3}, VECTOR),
    "GroupNormalization": ({"groups": 3}, IMAGE),
    "HashedCrossing": ({"num_bins": 5}, ()),
    "Hashing": ({"num_bins": 5}, VECTOR),
    "Permute": ({"dims": (2, 1)}, SEQUENCE),
    "PReLU": ({}, VECTOR),
    "RepeatVector": ({"n": 3}, VECTOR),
    "Rescaling": ({"scale": 0.5, "offset": 1.0}, IMAGE),
    "Reshape": ({"target_shape": (3, 6)}, SEQUENCE),
    "Resizing": ({"height": 4, "width": 5}, IMAGE),
    "ReversibleEmbedding": ({"input_dim": 9, "output_dim": 3}, VECTOR),
    "Softmax": ({}, VECTOR),
    "STFTSpectrogram": ({"frame_length": 16, "frame_step": 8, "fft_length": 16}, (64, 1)),
    "MelSpectrogram": ({"fft_length": 64, "sequence_stride": 16, "num_mel_bins": 8}, (256,)),
}
_BY_PART: dict[str, dict[str, Any]] = {
    "Global": {},
    "Depthwise": {"kernel_size": 2},
    "Conv": {"filters": 2, "kernel_size": 2},
    "AdaptiveAverage": {"output_size": 2},
    "AdaptiveMax": {"output_size": 2},
    "AveragePooling": {"pool_size": 2},
    "AvgPool": {"pool_size": 2},
    "Dropout": {"rate": 0.3},
    "GaussianNoise": {"stddev": 0.3},
    "GRU": {"units": 3},
    "LSTM": {"units": 3},
    "SimpleRNN": {"units": 3},
    "RandomCrop": {"height": 4, "width": 4},
    "RandomHeight": {"factor": 0.2},
    "RandomWidth": {"factor": 0.2},
    "RandomBrightness": {"factor": 0.2},
    "RandomContrast": {"factor": 0.2},
    "RandomColorDegeneration": {"factor": 0.2},
    "RandomHue": {"factor": 0.2},
    "RandomSaturation": {"factor": 0.2},
    "RandomSharpness": {"factor": 0.2},
    "RandomRotation": {"factor": 0.2},
    "RandomZoom": {"height_factor": 0.2},
    "RandomTranslation": {"height_factor": 0.2, "width_factor": 0.2},
    "RandomPosterization": {"factor": 4},
}


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ROWS, *shape)).astype("float32")


def layer_models() -> Iterator[tuple[str, Callable[[], Any], str]]:
    """A name, what makes the model, and the kind of its inputs, for each layer of Keras."""
    import keras

    for name in sorted(vars(keras.layers)):
        layer = getattr(keras.layers, name)
        is_layer = isinstance(layer, type) and issubclass(layer, keras.layers.Layer)
        if is_layer and name not in EXCLUDED and name not in SPECIAL:
            yield name, lambda name=name: one_layer(name), "integers" if _counts(name) else ""
    for name, make in SPECIAL.items():
        yield name, make, ""


def _counts(name: str) -> bool:
    return "Embedding" in name or name in ("CategoryEncoding", "Hashing")


def one_layer(name: str) -> Any:
    """A model of one layer."""
    import keras

    settings, shape = SETTINGS.get(name) or _settings(name)
    kind = "int32" if _counts(name) else "float32"
    if name in MERGING:
        inputs = [keras.Input(VECTOR, name="left"), keras.Input(VECTOR, name="right")]
        return keras.Model(inputs, getattr(keras.layers, name)(**settings)(inputs))
    return keras.Sequential(
        [keras.Input(shape, dtype=kind, name="x"), getattr(keras.layers, name)(**settings)]
    )


MERGING = {"Add", "Average", "Concatenate", "Dot", "Maximum", "Minimum", "Multiply", "Subtract"}


def _settings(name: str) -> tuple[dict[str, Any], tuple[int, ...]]:
    settings = next((given for part, given in _BY_PART.items() if part in name), {})
    shape = next((shape for end, shape in _SEQUENCE_AND_IMAGE.items() if end in name), VECTOR)
    if name.startswith("ConvLSTM"):
        return {"filters": 2, "kernel_size": 2}, (3, *shape)
    if any(part in name for part in ("GRU", "LSTM", "SimpleRNN")):
        return settings, VECTOR if name.endswith("Cell") else SEQUENCE
    if name == "Dot":
        return {"axes": 1}, VECTOR
    if shape == VECTOR and _takes_images(name):
        shape = IMAGE
    return settings, shape


def _takes_images(name: str) -> bool:
    words = ("Random", "Contrast", "Equalization", "AugMix", "Solarization", "RandAugment")
    return any(word in name for word in words)


def attention(name: str, **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        import keras

        query, value = keras.Input((4, 6), name="query"), keras.Input((5, 6), name="value")
        layer = getattr(keras.layers, name)(**settings)
        called = layer([query, value]) if not settings else layer(query, value)
        return keras.Model([query, value], called)

    return make


def wrapped(name: str, shape: tuple[int, ...], *parts: Any, **settings: Any) -> Callable[[], Any]:
    """A layer around other layers, each given as (name, settings)."""

    def make() -> Any:
        import keras

        inner = [getattr(keras.layers, part)(**options) for part, options in parts]
        around: Any = inner if name in ("Pipeline", "StackedRNNCells") else inner[0]
        layer = getattr(keras.layers, name)(around, **settings)
        if name == "StackedRNNCells":
            layer = keras.layers.RNN(layer)
        return keras.Sequential([keras.Input(shape), layer])

    return make


def cell(name: str) -> Callable[[], Any]:
    return wrapped("RNN", SEQUENCE, (name, {"units": 3}))


def vocabulary(name: str, adapted: Any, **settings: Any) -> Callable[[], Any]:
    """A layer that has learned a vocabulary, with numbers of its words behind it."""

    def make() -> Any:
        import keras

        layer = getattr(keras.layers, name)(**settings)
        layer.adapt(np.array(adapted))
        text = np.asarray(adapted).dtype.kind == "U"
        words = keras.Input((1,), dtype="string" if text else "int64", name="words")
        numbered = keras.layers.Embedding(20, 3)(layer(words))
        return keras.Model(words, keras.layers.Flatten()(numbered))

    return make


def normalization() -> Any:
    import keras

    layer = keras.layers.Normalization()
    layer.adapt(numbers(*VECTOR))
    return keras.Sequential([keras.Input(VECTOR), layer])


def crossing() -> Any:
    import keras

    left, right = (keras.Input((1,), dtype="int32", name=name) for name in ("left", "right"))
    crossed = keras.layers.HashedCrossing(5, output_mode="one_hot")((left, right))
    return keras.Model([left, right], crossed)


WORDS = ["red", "green", "blue", "red"]
SPECIAL: dict[str, Callable[[], Any]] = {
    "AdditiveAttention": attention("AdditiveAttention"),
    "Attention": attention("Attention"),
    "Bidirectional": wrapped("Bidirectional", SEQUENCE, ("LSTM", {"units": 2})),
    "GRUCell": cell("GRUCell"),
    "GroupQueryAttention": attention(
        "GroupQueryAttention", head_dim=2, num_query_heads=4, num_key_value_heads=2
    ),
    "HashedCrossing": crossing,
    "IntegerLookup": vocabulary("IntegerLookup", [3, 5, 3]),
    "LSTMCell": cell("LSTMCell"),
    "MultiHeadAttention": attention("MultiHeadAttention", num_heads=2, key_dim=3),
    "Normalization": normalization,
    "Pipeline": wrapped("Pipeline", IMAGE, ("Rescaling", {"scale": 0.5}), ("RandomFlip", {})),
    "RNN": cell("SimpleRNNCell"),
    "SimpleRNNCell": cell("SimpleRNNCell"),
    "SpectralNormalization": wrapped("SpectralNormalization", VECTOR, ("Dense", {"units": 3})),
    "StackedRNNCells": wrapped(
        "StackedRNNCells", SEQUENCE, ("LSTMCell", {"units": 3}), ("GRUCell", {"units": 2})
    ),
    "StringLookup": vocabulary("StringLookup", WORDS),
    "TextVectorization": vocabulary(
        "TextVectorization", WORDS, output_mode="int", output_sequence_length=3
    ),
    "TimeDistributed": wrapped("TimeDistributed", SEQUENCE, ("Dense", {"units": 2})),
}


def shared_layers() -> Any:
    import keras

    left, right = keras.Input(VECTOR, name="left"), keras.Input(VECTOR, name="right")
    tower = keras.Sequential([keras.Input(VECTOR), keras.layers.Dense(3)], name="tower")
    return keras.Model([left, right], keras.layers.Subtract()([tower(left), tower(right)]))


def several_outputs() -> Any:
    import keras

    x = keras.Input(VECTOR)
    return keras.Model(x, {"a": keras.layers.Dense(2)(x), "b": keras.layers.Dense(3)(x)})


def operations() -> Any:
    import keras

    x = keras.Input(VECTOR)
    y = keras.ops.concatenate([x * 2 + 1, keras.ops.sqrt(keras.ops.abs(x)), x @ np.eye(4, 2)], 1)
    return keras.Model(x, keras.ops.where(y > 0, y, keras.ops.zeros_like(y))[:, 1:])


def mixed_precision() -> Any:
    import keras

    policy = keras.DTypePolicy("mixed_float16")
    return keras.Sequential([keras.Input(VECTOR), keras.layers.Dense(3, dtype=policy)])


def quantized() -> Any:
    import keras

    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8)])
    model.quantize("int8")
    return model


def compiled() -> Any:
    import keras

    model = keras.Sequential([keras.Input(VECTOR), keras.layers.Dense(2, name="embedding")])
    model.compile("adamw", keras.losses.Huber(), metrics=[keras.metrics.MeanSquaredError()])
    model.fit(numbers(*VECTOR), np.ones((ROWS, 2)), epochs=1, verbose=0)
    return model


def initialized() -> Any:
    import keras

    names = ("GlorotNormal", "HeUniform", "LecunNormal", "Orthogonal", "TruncatedNormal")
    limits = ("MaxNorm", "UnitNorm", "NonNeg", "MinMaxNorm", None)
    layers = [
        keras.layers.Dense(3, kernel_initializer=name, kernel_constraint=limit)
        for name, limit in zip(names, limits, strict=True)
    ]
    return keras.Sequential([keras.Input(VECTOR), *layers])


def activations() -> Any:
    import keras

    names = (
        "relu",
        "selu",
        "silu",
        "mish",
        "softplus",
        "hard_sigmoid",
        "log_softmax",
        "leaky_relu",
    )
    return keras.Sequential([keras.Input(VECTOR), *(keras.layers.Activation(n) for n in names)])


def application(name: str, size: int, **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        import keras

        build = getattr(keras.applications, name)
        return build(
            weights=None, include_top=False, input_shape=(size, size, 3), pooling="avg", **settings
        )

    return make


SHAPES: dict[str, Callable[[], Any]] = {
    "shared layers": shared_layers,
    "several outputs": several_outputs,
    "operations": operations,
    "mixed precision": mixed_precision,
    "quantized": quantized,
    "compiled and trained": compiled,
    "initializers and constraints": initialized,
    "activations": activations,
    "MobileNetV2": application("MobileNetV2", 32, alpha=0.35),
    "MobileNet": application("MobileNet", 32, alpha=0.25),
}


def benign() -> Iterator[tuple[str, Callable[[], Any], str]]:
    """Each honest model: its name, what makes it, and the format it is stored in."""
    for name, make, _ in layer_models():
        yield name, make, "keras"
    for name, make in SHAPES.items():
        if name != "MobileNetV2":
            yield name, make, "keras"
    for name in ("Dense", "Conv2D", "BatchNormalization", "Add"):
        yield f"{name} in HDF5", lambda name=name: one_layer(name), "h5"
    for name in ("LSTMCell", "Bidirectional", "MultiHeadAttention", "TimeDistributed"):
        yield f"{name} in HDF5", SPECIAL[name], "h5"
    for name in ("shared layers", "several outputs", "compiled and trained", "MobileNetV2"):
        yield f"{name} in HDF5", SHAPES[name], "h5"


def features_of(model: Any) -> dict[str, np.ndarray]:
    """Rows for a model, by the names of its inputs."""
    import keras

    rows = {}
    for place, tensor in enumerate(keras.tree.flatten(model.inputs)):
        shape, kind = tuple(size or 4 for size in tensor.shape[1:]), str(tensor.dtype)
        given = numbers(*shape, seed=place)
        if kind == "string":
            given = np.array(WORDS * ROWS, dtype=object)[: given.size].reshape(given.shape)
        elif kind.startswith("int"):
            given = (np.abs(given) * 3).astype(kind).clip(0, 8)
        rows[_name(tensor)] = given
    return rows


def _name(tensor: Any) -> str:
    return str(tensor._keras_history.operation.name)


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors as NumPy makes them."""
    wide = (vectors[:, None] if vectors.ndim == 1 else vectors).astype("float64")
    norms = np.linalg.norm(wide, axis=-1, keepdims=True)
    return np.divide(wide, norms, out=np.zeros_like(wide), where=norms != 0)


def told(path: Path) -> tuple[list[str], list[tuple[int | None, ...]], list[str]] | None:
    """What the stored model says without being loaded: names and shapes in, and names out."""
    from batchnorm_tool.models.security import examine

    interface = examine(str(path)).interface
    found = interface and interface.signatures[""]
    if not found:
        return None
    names = [field.name for field in found.inputs]
    return names, [field.shape for field in found.inputs], list(found.outputs)


def difference(model: Any, path: Path) -> float:
    """The largest difference between what the stored model gives and ``predict`` with NumPy."""
    import keras

    from batchnorm_tool import score

    rows = features_of(model)
    flat = [rows[_name(tensor)] for tensor in model.inputs]
    flat = [
        keras.ops.convert_to_tensor(array.tolist()) if array.dtype == object else array
        for array in flat
    ]
    wanted = model.predict(flat if len(flat) > 1 else flat[0], batch_size=ROWS, verbose=0)
    model.save(path)
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    outputs = [*wanted] if isinstance(wanted, dict) else [_name(model.outputs[0])]
    assert told(path) == ([*rows], shapes, outputs)
    given = dict(wanted) if isinstance(wanted, dict) else {None: wanted}
    names = None if None in given else list(given)
    got = score(str(path), rows, outputs=names, batch_size=ROWS).results
    keras.backend.clear_session()
    return max(
        float(np.abs(normalized(array) - vectors.reshape(normalized(array).shape)).max())
        for array, (vectors, _) in zip(given.values(), got.values(), strict=True)
    )
