"""What the gate says of ONNX models; each danger is what a real writer of such files can write."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from batchnorm_tool.errors import ModelError
from batchnorm_tool.job import Model
from batchnorm_tool.models.security import admit, examine, is_model
from batchnorm_tool.models.security.directory import model_kind

Build = Callable[[], onnx.ModelProto]


def weights(name: str = "w", shape: tuple[int, ...] = (4, 2)) -> TensorProto:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return numpy_helper.from_array(values, name)


def model_of(
    nodes: list[Any], initializers: list[Any] | None = None, **options: Any
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        initializers if initializers is not None else [weights()],
    )
    return helper.make_model(graph, **options)


def dense(**options: Any) -> onnx.ModelProto:
    return model_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")], **options)


def saved(tmp_path: Path, model: onnx.ModelProto | bytes) -> str:
    path = tmp_path / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return str(path)


def found(tmp_path: Path, model: onnx.ModelProto) -> list[tuple[str, str, str]]:
    report = examine(saved(tmp_path, model))
    return [(finding.severity, finding.what, finding.where) for finding in report.findings]


def sized(operation: str, size: TensorProto | None, **attributes: Any) -> onnx.ModelProto:
    """A model with an array that is as large as a constant says."""
    given = ["x"] * (operation != "ConstantOfShape") + ["size"]
    nodes = [helper.make_node(operation, given, ["y"], name="made")]
    if size is None:
        nodes.insert(0, helper.make_node("Constant", [], ["size"], **attributes))
    return model_of(nodes, [] if size is None else [size])


def inside_if(node: Any) -> onnx.ModelProto:
    """A model whose node stands in a graph of an ``If``, and that ``If`` in another one."""
    outputs = [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)]
    inner = helper.make_graph([node], "inner", [], outputs)
    middle = helper.make_graph(
        [helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=inner)],
        "middle",
        [],
        outputs,
    )
    outer = helper.make_node("If", ["c"], ["y"], then_branch=middle, else_branch=middle)
    return model_of([outer])


def external(tensor: TensorProto) -> TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def external_without_mark() -> TensorProto:
    tensor = external(weights())
    tensor.ClearField("data_location")
    return tensor


def sparse(values: TensorProto, dims: list[int]) -> Any:
    indices = numpy_helper.from_array(np.array([0], np.int64), "i")
    return helper.make_sparse_tensor(values, indices, dims)


def with_sparse(values: TensorProto, dims: list[int]) -> onnx.ModelProto:
    model = dense()
    model.graph.sparse_initializer.append(sparse(values, dims))
    return model


def with_function() -> onnx.ModelProto:
    model = model_of([helper.make_node("Mine", ["x"], ["y"], domain="mine")])
    node = helper.make_node("Relu", ["a"], ["b"])
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("mine", "Mine", ["a"], ["b"], [node], opsets))
    return model


def claiming(*dims: int) -> TensorProto:
    tensor = weights()
    tensor.dims[:] = dims
    return tensor


def constant(tensor: TensorProto) -> Any:
    return helper.make_node("Constant", [], ["o"], value=tensor, name="held")


EXTERNAL = "weights that are read from another file"
DANGERS: dict[str, tuple[Build, str, str]] = {
    "external": (lambda: model_of([], [external(weights())]), EXTERNAL, "the weights w"),
    "external, unmarked": (
        lambda: model_of([], [external_without_mark()]),
        EXTERNAL,
        "the weights w",
    ),
    "external in a constant": (
        lambda: model_of([constant(external(weights()))]),
        EXTERNAL,
        "the node held",
    ),
    "external in an inner graph": (
        lambda: inside_if(constant(external(weights()))),
        EXTERNAL,
        "the node held",
    ),
    "external in a sparse tensor": (
        lambda: with_sparse(external(weights("v", (1,))), [4]),
        EXTERNAL,
        "the weights v",
    ),
    "external in a list of tensors": (
        lambda: model_of([helper.make_node("Relu", ["x"], ["y"], more=[external(weights())])]),
        EXTERNAL,
        "the node y",
    ),
    "custom operation": (
        lambda: model_of([helper.make_node("Run", ["x"], ["y"], domain="com.mine")]),
        "the custom operation com.mine.Run",
        "the node y",
    ),
    "custom operation in an inner graph": (
        lambda: inside_if(helper.make_node("Run", ["x"], ["o"], domain="mine", name="deep")),
        "the custom operation mine.Run",
        "the node deep",
    ),
    "operation that loads a file": (
        lambda: model_of([helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")]),
        "the custom operation com.microsoft.EPContext",
        "the node y",
    ),
    "function": (with_function, "the nested function Mine", "the function library"),
    "huge weights": (
        lambda: model_of([], [claiming(2**40, 2**40)]),
        "the huge size [1099511627776, 1099511627776]",
        "the weights w",
    ),
    "huge array": (
        lambda: sized("ConstantOfShape", numpy_helper.from_array(np.array([10**12]), "size")),
        "the huge size [1000000000000]",
        "the node made",
    ),
    "huge range": (
        lambda: sized("Range", helper.make_tensor("size", TensorProto.INT64, [], [10**10])),
        "the huge size [10000000000]",
        "the node made",
    ),
    "huge repetition": (
        lambda: sized("Tile", numpy_helper.from_array(np.array([10**5] * 2, np.int32), "size")),
        "the huge size [100000, 100000]",
        "the node made",
    ),
    "huge expansion": (
        lambda: sized("Expand", None, value_ints=[10**5, 10**5]),
        "the huge size [0, 100000, 100000]",
        "the node made",
    ),
    "huge constant": (
        lambda: inside_if(constant(claiming(10**6, 10**6))),
        "the huge size [1000000, 1000000]",
        "the node held",
    ),
    "huge sparse tensor": (
        lambda: with_sparse(weights("v", (1,)), [10**6, 10**6]),
        "the huge size [1000000, 1000000]",
        "the weights v",
    ),
}


@pytest.mark.parametrize(("build", "what", "where"), DANGERS.values(), ids=DANGERS)
def test_what_may_do_more_than_compute_is_refused(
    tmp_path: Path, build: Build, what: str, where: str
) -> None:
    model = build()
    assert ("refuse", what, where) in found(tmp_path, model)
    with (
        pytest.raises(ModelError, match="refused by the safety gate"),
        admit(Model(path=saved(tmp_path, model))),
    ):
        pass


def test_a_huge_input_is_refused(tmp_path: Path) -> None:
    model = dense()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2**50
    assert found(tmp_path, model) == [
        ("refuse", "the huge size [0, 1125899906842624]", "the input x")
    ]


def test_what_only_computes_passes_and_random_operations_are_told(tmp_path: Path) -> None:
    assert found(tmp_path, dense()) == []
    gelu = helper.make_node("BiasGelu", ["h", "b"], ["y"], domain="com.microsoft")
    trees = helper.make_node("Scaler", ["x"], ["h"], domain="ai.onnx.ml", offset=[1.0] * 4)
    assert found(tmp_path, model_of([trees, gelu])) == []
    random = helper.make_node("RandomNormal", [], ["y"], shape=[1, 2], name="noise")
    assert found(tmp_path, model_of([random])) == [
        (
            "warn",
            "the random operation RandomNormal, which gives other numbers in every call",
            "the node noise",
        )
    ]


def test_a_model_that_claims_much_is_judged_at_once(tmp_path: Path) -> None:
    model = model_of([], [claiming(*[2**62] * 20_000)])
    path = saved(tmp_path, model)
    start = time.process_time()
    assert examine(path).dangers
    assert time.process_time() - start < 1


def twice(model: onnx.ModelProto) -> bytes:
    """The graph given twice: protobuf merges them, and other readers take one."""
    other = onnx.ModelProto()
    other.graph.name = "other"
    return model.SerializeToString() + other.SerializeToString()


def twice_in_an_attribute() -> bytes:
    """A tensor given twice in an attribute of a node, every length around it right."""

    def field(number: int, *contents: bytes) -> bytes:
        inner = b"".join(contents)
        assert len(inner) < 2**14
        length = [len(inner)] if len(inner) < 128 else [len(inner) & 127 | 128, len(inner) >> 7]
        return bytes([number << 3 | 2, *length]) + inner

    node, model = helper.make_node("Constant", [], ["y"]), model_of([])
    attribute = helper.make_attribute("value", weights()).SerializeToString()
    more = onnx.AttributeProto(t=weights("again")).SerializeToString()
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    with_node = field(1, node.SerializeToString(), field(5, attribute, more)) + graph
    return model.SerializeToString() + field(7, with_node)


def nested(levels: int) -> bytes:
    outputs = [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)]
    graph = helper.make_graph([], "inner", [], outputs)
    for _ in range(levels):
        node = helper.make_node("If", ["c"], ["o"], then_branch=graph)
        graph = helper.make_graph([node], "inner", [], outputs)
    return helper.make_model(graph).SerializeToString()


DAMAGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut short": (lambda: dense().SerializeToString()[:-9], "it is truncated"),
    "graph given twice": (lambda: twice(dense()), "duplicate or unknown fields"),
    "tensor given twice": (twice_in_an_attribute, "OnnxAttribute.* has duplicate or unknown"),
    "unknown field": (
        lambda: dense().SerializeToString() + b"\xba\x3e\x03abc",
        "duplicate or unknown fields",
    ),
    "another format as well": (
        lambda: dense(producer_name="ORTM", ir_version=8).SerializeToString(),
        "it can be read as a model of another format",
    ),
    "deep": (lambda: nested(20), "nests graphs more than 8 levels deep"),
}


@pytest.mark.parametrize(("content", "words"), DAMAGED.values(), ids=DAMAGED)
def test_what_two_readers_may_read_differently_is_refused(
    tmp_path: Path, content: Callable[[], bytes], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        examine(saved(tmp_path, content()))


def test_it_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(dense().SerializeToString())
    assert is_model(str(path))
    assert model_kind(str(path), "model") == "onnx"
    path.write_bytes(dense(producer_name="pytorch").SerializeToString())
    assert model_kind(str(path), "model") == "onnx"


def test_the_hash_is_of_what_it_computes(tmp_path: Path) -> None:
    def content(model: onnx.ModelProto) -> str:
        return examine(saved(tmp_path, model)).content

    opsets = [helper.make_opsetid("", 17)]
    base = content(dense(opset_imports=opsets))
    told = dense(opset_imports=opsets, producer_name="pytorch", doc_string="by hand")
    told.graph.node[0].doc_string = "File train.py, line 7"
    told.graph.initializer[0].doc_string = "trained"
    helper.set_model_props(told, {"date": "today"})
    assert content(told) == base
    assert content(dense(opset_imports=[helper.make_opsetid("", 18)])) != base
    weighted = dense(opset_imports=opsets)
    weighted.graph.initializer[0].raw_data = b"\1" + weighted.graph.initializer[0].raw_data[1:]
    assert content(weighted) != base
    other = dense(opset_imports=opsets)
    other.graph.output[0].name = "z"
    assert content(other) != base
