"""``.onnx`` files as models of their own, from ``show`` to the manifest."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper

import batchnorm_tool
from batchnorm_tool.chunk import Field
from batchnorm_tool.errors import JobError, ModelError
from batchnorm_tool.job import Engine, Job, Model
from batchnorm_tool.models import describe_model, security
from batchnorm_tool.models.backends import onnx_graph

WEIGHTS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
ROWS = np.random.default_rng(1).normal(size=(300, 4)).astype(np.float32)


def value(name: str, shape: Any, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def save(
    path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: Any = WEIGHTS
) -> str:
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(weights, "w")])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=opsets), path)
    return str(path)


def dense(path: Path, rows: int | str = "n") -> str:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["linear"]),
        helper.make_node("Relu", ["linear"], ["embedding"]),
    ]
    outputs = [value("linear", [rows, 3]), value("embedding", [rows, 3])]
    return save(path, nodes, [value("x", [rows, 4])], outputs)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    pq.write_table(pa.table({"id": np.arange(300), "x": list(ROWS)}), tmp_path / "x.parquet")
    return str(tmp_path / "x.parquet")


def run(model: str, rows: str, tmp_path: Path, **options: Any) -> Any:
    job = {
        "input": {"path": rows, "key": "id"},
        "model": {"path": model, "outputs": ["linear"], **options},
        "output": {"path": str(tmp_path / "out")},
    }
    return batchnorm_tool.run(Job.model_validate(job))


def test_it_is_scored_like_any_other_model(tmp_path: Path, rows: str) -> None:
    model = dense(tmp_path / "m.onnx")
    shown = batchnorm_tool.show(model).to_dict()
    assert shown["format"] == "onnx"
    assert [(each["name"], each["shape"]) for each in shown["inputs"]] == [("x", [4])]
    assert [each["name"] for each in shown["outputs"]] == ["linear", "embedding"]
    run(model, rows, tmp_path)
    expected = ROWS.astype(np.float64) @ WEIGHTS
    lengths = np.linalg.norm(expected, axis=1)
    keys, vectors, norms = batchnorm_tool.read(str(tmp_path / "out")).to_numpy()
    assert keys.tolist() == list(range(300))
    np.testing.assert_allclose(norms, lengths, rtol=1e-6)
    np.testing.assert_allclose(vectors, expected / lengths[:, None], atol=1e-6)
    manifest = json.loads((tmp_path / "out/_manifest.json").read_text())
    content = shown["content"]
    assert manifest["identity"]["space"]["model"] == content
    version = onnx_version()
    assert manifest["backend"] == {
        "name": "onnxruntime",
        "version": version,
        "graph_sha256": content,
        "largest_difference": None,
    }
    bits = manifest["identity"]["bits"]
    assert bits["backend"]["version"] == version
    assert bits["versions"].keys().isdisjoint({"tensorflow", "keras"})
    assert batchnorm_tool.score(model, ROWS, outputs=["linear"]).vectors.tobytes() == (
        vectors.tobytes()
    )


def onnx_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def test_neither_tensorflow_nor_keras_is_imported(tmp_path: Path, rows: str) -> None:
    program = (
        "import sys, batchnorm_tool as b; b.show(sys.argv[1]); "
        "job = dict(input={'path': sys.argv[2]}, output={'path': sys.argv[3]}, "
        "model={'path': sys.argv[1], 'outputs': ['linear']}); b.run(b.Job.model_validate(job)); "
        "print({'tensorflow', 'keras', 'tf2onnx', 'onnx'} & {*sys.modules})"
    )
    command = [
        sys.executable,
        "-c",
        program,
        dense(tmp_path / "m.onnx"),
        rows,
        str(tmp_path / "out"),
    ]
    own = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    own.pop("ORT_DISABLE_TELEMETRY", None)
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=own)
    assert done.stdout.splitlines()[-1] == "set()"
    # Where onnxruntime keeps an id of the machine, and what it will tell its makers.
    assert not (tmp_path / "cache/Microsoft").exists()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="as TensorFlow on these processors")
def test_tiny_numbers_are_zeros_in_every_thread_and_nowhere_else(tmp_path: Path) -> None:
    model = Model(path=dense(tmp_path / "m.onnx"), outputs=["linear"])
    loaded = onnx_graph.load_onnx_file(model, model.path, Engine(threads=2), lambda _: [0]).model
    tiny = np.full((20_000, 4), 1e-42, np.float32)
    with ThreadPoolExecutor(1) as other:
        compute = loaded.compile(20_000)
        assert not compute([tiny])[0].any()
        assert not other.submit(compute, [tiny]).result()[0].any()
    assert (tiny * np.float32(1)).all()


def test_a_batch_size_in_the_graph_is_the_only_one(tmp_path: Path, rows: str) -> None:
    model = dense(tmp_path / "m.onnx", rows=7)
    with pytest.raises(ModelError, match="takes exactly 7 rows per call"):
        run(model, rows, tmp_path, batch_size=8)
    run(model, rows, tmp_path)
    manifest = json.loads((tmp_path / "out/_manifest.json").read_text())
    assert manifest["resolved"]["batch_size"] == 7
    assert manifest["rows"]["out"] == 300


def test_ids_and_texts_go_in_and_only_tensors_come_out(tmp_path: Path) -> None:
    table = {"token": pa.array(["a", "b", "?", "b"]), "id": pa.array([0, 1, 2, -1])}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["token"],
            ["number"],
            domain="ai.onnx.ml",
            keys_strings=["a", "b"],
            values_floats=[1.0, 2.0],
            default_float=9.0,
        ),
        helper.make_node("Gather", ["w", "item"], ["row"]),
        helper.make_node("Mul", ["row", "number"], ["vector"]),
        helper.make_node("SequenceConstruct", ["vector"], ["several"]),
    ]
    sequence = helper.make_tensor_sequence_value_info("several", TensorProto.FLOAT, None)
    model = save(
        tmp_path / "m.onnx",
        nodes,
        [value("token", ["n", 1], TensorProto.STRING), value("item", ["n"], TensorProto.INT64)],
        [value("vector", ["n", 3]), sequence],
    )
    assert [each["name"] for each in batchnorm_tool.show(model).to_dict()["outputs"]] == ["vector"]
    found = batchnorm_tool.score(
        model, {"token": np.array([["a"], ["b"], ["?"]]), "item": np.array([0, 1, 3])}, norm="none"
    )
    np.testing.assert_allclose(found.vectors, WEIGHTS[[0, 1, 3]] * [[1], [2], [9]], rtol=1e-6)
    with pytest.raises(ModelError, match=r"out of data bounds"):
        batchnorm_tool.score(model, {"token": np.array([["a"]]), "item": np.array([4])})


def test_what_the_file_tells_is_what_onnxruntime_tells(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["w", "id"], ["row"]),
        helper.make_node("Mul", ["row", "x"], ["y"]),
        helper.make_node("SequenceConstruct", ["y"], ["several"]),
    ]
    sequence = helper.make_tensor_sequence_value_info("several", TensorProto.FLOAT, None)
    given = [value("id", [5], TensorProto.INT64), value("w", [4, 3]), value("x", ["n", "k"])]
    model = save(tmp_path / "m.onnx", nodes, given, [value("y", ["n", 3]), sequence])
    interface = security.examine(model).interface
    assert interface is not None
    told = interface.chosen(Model(path=model))
    assert told is not None
    assert (told.inputs, told.outputs) == (
        (Field("id", (), "int64"), Field("x", (None,), "float32")),
        ("y",),
    )
    inputs, outputs = describe_model(Model(path=model), model, Engine())
    assert (told.inputs, told.outputs) == (inputs, tuple(field.name for field in outputs))
    untyped = save(tmp_path / "u.onnx", nodes, given, [helper.make_empty_tensor_value_info("y")])
    doubtful = security.examine(untyped).interface
    assert doubtful is not None
    assert doubtful.chosen(Model(path=untyped)) is None


@pytest.mark.parametrize(
    "options", [{"layer": "dense"}, {"signature": "serve"}, {"outputs": ["nothing"]}], ids=str
)
def test_what_it_does_not_have_is_told_before_it_is_loaded(
    tmp_path: Path, rows: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchnorm_tool.models._load", None)
    with pytest.raises((JobError, ModelError), match=r"does not work for|has no output `nothing`"):
        run(dense(tmp_path / "m.onnx"), rows, tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer": "dense"}, "`model.layer` does not work for an ONNX model"),
        ({"signature": "serve"}, "`model.signature` does not work for an ONNX model"),
        ({"outputs": ["nothing"]}, "has no output `nothing`. Expected one of: linear, embedding"),
        ({"backend": "onnxruntime"}, None),
        ({"backend": "auto"}, None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_a_job_may_ask_of_it(
    tmp_path: Path, rows: str, options: dict[str, Any], words: str | None
) -> None:
    model = dense(tmp_path / "m.onnx")
    if words is None:
        run(model, rows, tmp_path, **options)
        return
    with pytest.raises((JobError, ModelError), match=words):
        run(model, rows, tmp_path, **options)


def test_a_graph_that_onnxruntime_does_not_know_is_told(tmp_path: Path, rows: str) -> None:
    nodes = [helper.make_node("NoSuchOperation", ["x"], ["linear"])]
    model = save(tmp_path / "m.onnx", nodes, [value("x", ["n", 4])], [value("linear", ["n", 3])])
    with pytest.raises(ModelError, match=r"does not load.*onnxruntime says:.*NoSuchOperation"):
        run(model, rows, tmp_path)


def test_without_the_extra_the_command_that_installs_it_is_told(
    tmp_path: Path, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "find_spec", lambda name: None)
    with pytest.raises(JobError, match=r"pip install 'batchnorm-tool\[onnxruntime\]'"):
        run(dense(tmp_path / "m.onnx"), rows, tmp_path)


def test_a_model_too_large_for_few_rows_is_refused_without_a_place_in_the_library(
    tmp_path: Path, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "[ONNXRuntimeError] : 6 : /src/bfc_arena.cc:360 void* Failed to allocate memory for"
    raised = MemoryError(onnx_graph._cause(RuntimeError(f"{said} requested buffer of size 9")))

    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(onnx_graph.OnnxModel, "compile", lambda *_: fail)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where no batch size is kept
    for options, count in (({"batch_size": 100}, 8), ({}, 32)):
        expected = rf"for {count} rows \(Failed to allocate memory for requested buffer of size 9\)"
        with pytest.raises(ModelError, match=expected):
            run(dense(tmp_path / "m.onnx"), rows, tmp_path, **options)
