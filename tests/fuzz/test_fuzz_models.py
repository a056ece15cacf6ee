"""Model files: the architecture as JSON, HDF5 with any attribute, a graph's protobuf bytes."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchnorm_tool.job import Engine, Model
from batchnorm_tool.models import describe_model
from batchnorm_tool.models.security import admit
from tests.fuzz.fuzzing import fuzzed, json_values, mutated, mutated_bytes, only_our_errors

WORDS = (
    *("module", "class_name", "registered_name", "config", "build_config", "compile_config"),
    *("layers", "name", "inbound_nodes", "args", "kwargs", "training", "output_layers", "shape"),
    *("function", "Lambda", "Dense", "Sequential", "Functional", "InputLayer", "__lambda__"),
    *("units", "activation", "vocabulary", "dtype", "DTypePolicy", "keras", "keras.layers", "os"),
    *("keras.src.layers.core.dense", "keras.src.engine", "keras.ops", "builtins", "batch_shape"),
)
DENSE = {
    "module": "keras.layers",
    "class_name": "Dense",
    "registered_name": None,
    "build_config": {"input_shape": [None, 2]},
    "config": {
        "name": "embedding",
        "dtype": {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}},
        "units": 2,
        "activation": {
            "module": "builtins",
            "class_name": "function",
            "config": "relu",
            "registered_name": "relu",
        },
        "kernel_initializer": {
            "module": "keras.initializers",
            "class_name": "Zeros",
            "config": {},
            "registered_name": None,
        },
    },
    "inbound_nodes": [
        {
            "args": [
                {
                    "class_name": "__keras_tensor__",
                    "config": {
                        "shape": [None, 2],
                        "dtype": "float32",
                        "keras_history": ["features", 0, 0],
                    },
                }
            ],
            "kwargs": {},
        }
    ],
}
CONFIG = {
    "module": "keras.src.models.functional",
    "class_name": "Functional",
    "registered_name": "Functional",
    "config": {
        "name": "encoder",
        "layers": [
            {
                "module": "keras.layers",
                "class_name": "InputLayer",
                "config": {"batch_shape": [None, 2], "dtype": "float32", "name": "features"},
                "registered_name": None,
                "name": "features",
                "inbound_nodes": [],
            },
            {**DENSE, "name": "embedding"},
        ],
        "input_layers": [["features", 0, 0]],
        "output_layers": [["embedding", 0, 0]],
    },
    "build_config": {"input_shape": None},
}


def dense_weights() -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        variables = file.create_group("layers/dense/vars")
        variables["0"], variables["1"] = np.ones((2, 2), "f4"), np.zeros(2, "f4")
    return buffer.getvalue()


WEIGHTS = dense_weights()


def archive(config: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as members:
        members.writestr("config.json", json.dumps(config))
        members.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        members.writestr("model.weights.h5", WEIGHTS)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model"


def load(path: Path) -> None:
    """Admit a model and load it, as a run does."""
    with only_our_errors():
        model = Model(path=str(path))
        with admit(model) as admitted:
            describe_model(model, admitted.path, Engine())


def examine(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with only_our_errors(), admit(Model(path=str(path))):
        pass


def test_the_unchanged_architecture_loads(place: Path, tensorflow: None) -> None:
    place.write_bytes(archive(CONFIG))
    model = Model(path=str(place))
    with admit(model) as admitted:
        inputs, outputs = describe_model(model, admitted.path, Engine())
    assert [(field.name, field.shape) for field in (*inputs, *outputs)] == [
        ("features", (2,)),
        ("embedding", (2,)),
    ]


@fuzzed(200)
@given(config=mutated(CONFIG, WORDS) | json_values(WORDS))
def test_any_architecture_is_examined(place: Path, config: Any) -> None:
    examine(place, archive(config))


@fuzzed(40)
@given(config=mutated(CONFIG, WORDS))
def test_any_architecture_that_is_admitted_loads_or_is_refused(
    place: Path, tensorflow: None, config: Any
) -> None:
    place.write_bytes(archive(config))
    load(place)


@fuzzed()
@given(content=mutated_bytes(archive(CONFIG)))
def test_any_archive_is_examined(place: Path, content: bytes) -> None:
    examine(place, content)


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
KINDS = ("u1", "<i4", ">f8", "f2", "?", "c8", "S3", "V4", "O", "ref", "enum", "pair", "empty")
NAMES = st.sampled_from(
    ["model_config", "keras_version", "backend", "training_config", "layer_names", "weight_names"]
) | st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1)


@st.composite
def hdf5_values(draw: st.DrawFn) -> Any:
    """What an attribute or a data set may hold: any dtype and a small shape."""
    kind = draw(st.sampled_from(KINDS))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
    special = {
        "O": h5py.string_dtype(draw(st.sampled_from(["utf-8", "ascii"]))),
        "ref": h5py.ref_dtype,
        "enum": h5py.enum_dtype({"a": 1, "b": 2}),
        "pair": np.dtype([("a", "f4"), ("b", "S2")]),
    }
    if kind == "empty":
        return h5py.Empty(draw(st.sampled_from(["f4", "S2"])))
    if kind == "ref":
        return np.full(shape, h5py.Reference(), dtype=h5py.ref_dtype)
    if kind == "O":
        return np.full(shape, "text", special[kind])
    return np.zeros(shape, special.get(kind, kind))


@st.composite
def hdf5_files(draw: st.DrawFn) -> bytes:
    """An HDF5 file that calls itself a model, with groups, data sets, links and attributes."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["model_config"] = json.dumps(draw(st.just(CONFIG) | mutated(CONFIG, WORDS)))
        groups = [file, file.create_group("model_weights")]
        for name in draw(st.lists(NAMES, max_size=6, unique=True)):
            group = draw(st.sampled_from(groups))
            if name in group:
                continue
            kind = draw(st.sampled_from(["group", "data", "attribute", "attribute", "link"]))
            if kind == "group":
                groups.append(group.create_group(name))
            elif kind == "data":
                group.create_dataset(name, data=draw(hdf5_values()))
            elif kind == "attribute":
                group.attrs[name] = draw(hdf5_values() | TEXTS)
            else:
                targets = [h5py.SoftLink("/"), h5py.ExternalLink("/etc/passwd", "/"), *groups]
                group[name] = draw(st.sampled_from(targets))
    return buffer.getvalue()


@fuzzed()
@given(content=hdf5_files())
def test_any_hdf5_file_is_examined(place: Path, content: bytes) -> None:
    examine(place, content)


@fuzzed()
@given(content=mutated_bytes(WEIGHTS))
def test_any_bytes_of_an_hdf5_file_are_examined(place: Path, content: bytes) -> None:
    examine(place, content)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory, tensorflow: None) -> bytes:
    """``saved_model.pb`` of a small model."""
    import keras

    folder = tmp_path_factory.mktemp("export")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.export(str(folder), verbose=False)
    return (folder / "saved_model.pb").read_bytes()


@fuzzed()
@given(data=st.data())
def test_any_bytes_of_a_graph_are_examined(
    tmp_path_factory: pytest.TempPathFactory, graph: bytes, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "graph"
    folder.mkdir(exist_ok=True)
    examine(folder / "saved_model.pb", data.draw(mutated_bytes(graph)))
