"""The graph of a SavedModel: what is examined is what TensorFlow gets, whatever the bytes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchnorm_tool.models.security import saved_model_proto
from batchnorm_tool.models.security.graph_allowlist import (
    _OPERATION_NAME,
    ALLOWED_OPS,
    ANONYMOUS_TABLES,
    CHECKPOINT_OPS,
    FILE_OPS,
    ExaminedGraph,
)

pytestmark = pytest.mark.usefixtures("tensorflow")

TAGS = 1, b"\x22\x05serve"  # MetaInfoDef.tags
# A level of a message: the number of the field that leads on, and what stands beside it.
Level = tuple[int, bytes]


def varint(number: int) -> bytes:
    head = b""
    while number > 127:
        head += bytes([number & 127 | 128])
        number >>= 7
    return head + bytes([number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def entry(key: bytes, value: bytes) -> bytes:
    return field(1, key) + field(2, value)


def node(name: bytes, op: bytes, *more: bytes) -> bytes:
    return field(1, name) + field(2, op) + b"".join(more)


def function(name: bytes, *nodes: bytes, **more: bytes) -> bytes:
    bodies = b"".join(field(3, body) for body in nodes)
    return field(1, field(1, name)) + bodies + b"".join(more.values())


def signature(*tensors: bytes) -> bytes:
    outputs = (entry(b"%d" % place, field(1, name)) for place, name in enumerate(tensors))
    return field(5, entry(b"serving_default", b"".join(field(2, output) for output in outputs)))


def saved(graph: bytes, *more: bytes) -> bytes:
    """A SavedModel of one graph."""
    return field(2, field(*TAGS) + field(2, graph) + b"".join(more))


def call(name: bytes) -> bytes:
    """A node that calls a function."""
    value = field(10, field(1, name))
    return node(b"n", b"PartitionedCall", field(5, entry(b"f", value)))


SERVED = signature(b"n:0")
OF_GRAPH: list[Level] = [(2, b""), (2, field(*TAGS) + SERVED)]
OF_LIBRARY: list[Level] = [*OF_GRAPH, (2, field(1, call(b"f_1"))), (1, b"")]
ATTRIBUTE: list[Level] = [(5, b""), (2, field(1, b"f"))]
OF_NODE: list[Level] = [*OF_GRAPH, (1, b"")]
IN_NODE = field(1, b"n") + field(2, b"NoOp")
# Ways from the whole file to the name of something that runs, through every kind of message.
WAYS: dict[str, list[Level]] = {
    "operation": [*OF_NODE, (2, field(1, b"n"))],
    "function": [*OF_NODE, (5, IN_NODE), *ATTRIBUTE[1:], (10, b""), (1, b"")],
    "function in a list": [*OF_NODE, (5, IN_NODE), *ATTRIBUTE[1:], (1, b""), (9, b""), (1, b"")],
    "function nested": [
        *[*OF_NODE, (5, IN_NODE), *ATTRIBUTE[1:], (10, b"")],
        *[(2, field(1, b"NoOp")), (2, field(1, b"g")), (10, b""), (1, b"")],
    ],
    "operation in a function": [
        *[*OF_LIBRARY, (3, field(1, field(1, b"f_1"))), (2, field(1, b"m"))]
    ],
    "function in a function": [
        *[*OF_LIBRARY, (3, field(1, field(1, b"f_1"))), (5, field(1, b"m") + field(2, b"NoOp"))],
        *[*ATTRIBUTE[1:], (10, b""), (1, b"")],
    ],
}


def through(way: list[Level], name: bytes) -> bytes:
    """A SavedModel in which a name stands at the end of a way."""
    content = name
    for number, beside in reversed(way):
        content = beside + field(number, content)
    return content


def doubled(way: list[Level], first: bytes, second: bytes) -> Iterator[bytes]:
    """The same with the field of each level given twice."""
    for place, (number, beside) in enumerate(way):
        twice = [through(way[place + 1 :], name) for name in (first, second)]
        content = beside + b"".join(field(number, part) for part in twice)
        yield through(way[:place], content)


def forbidden() -> list[str]:
    """The registered operations that touch files, other processes or Python, and some more."""
    touching = re.compile(
        "File|Save|Restore|PyFunc|Print|Debug|Summary|Rpc|Send$|Recv$|Checkpoint|Proto|RemoteCall"
        "|ImmutableConst|Abort|Dataset$"
    )
    return [name for name in registered() if touching.search(name) and name not in ALLOWED_OPS]


def registered() -> list[str]:
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python.client import pywrap_tf_session as session

    operations = op_def_pb2.OpList.FromString(session.TF_GetBuffer(session.TF_GetAllOpList()))
    return sorted(operation.name for operation in operations.op)


def loaded_names(content: bytes) -> set[str]:
    """Whatever TensorFlow's own reading of a SavedModel runs."""
    from tensorflow.core.protobuf import saved_model_pb2

    text = str(saved_model_pb2.SavedModel.FromString(content))
    return {*re.findall(r'(?:op|name): "([^"]*)"', text)}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_is_given_twice_is_refused_or_cannot_be_loaded(way: list[Level]) -> None:
    assert ExaminedGraph(through(way, b"Identity")).dangers == []
    names = forbidden()
    assert len(names) > 150
    for name in names:
        bad, half = name.encode(), len(name) // 2
        assert ExaminedGraph(through(way, bad)).dangers, name
        pairs = [(b"Identity", bad), (bad, b"Identity"), (bad[:half], bad[half:]), (bad, bad)]
        for content in (content for pair in pairs for content in doubled(way, *pair)):
            try:
                graph = ExaminedGraph(content)
            except ValueError:
                continue
            # Two functions, or two graphs, of which one is not needed.
            assert graph.dangers or name not in loaded_names(graph.content(Path("/m")))


def test_a_function_of_two_signatures_is_refused() -> None:
    parts = (
        field(1, field(1, b"Write")) + field(1, field(1, b"File")) + field(3, node(b"m", b"NoOp"))
    )
    graph = field(1, node(b"n", b"WriteFile")) + field(2, field(1, parts))
    with pytest.raises(ValueError, match="FunctionDefList has duplicate or unknown"):
        ExaminedGraph(saved(graph, SERVED))


NODE = field(1, node(b"n", b"NoOp"))
LIBRARY = field(1, function(b"f_1", node(b"m", b"NoOp")))
TWICE: dict[str, tuple[bytes, str]] = {
    "node": (saved(NODE + NODE), "the node n twice"),
    "function": (saved(field(2, LIBRARY + LIBRARY)), "the function f_1 twice"),
    "node of a function": (
        saved(
            field(1, call(b"f_1"))
            + field(2, field(1, function(b"f_1", *[node(b"m", b"NoOp")] * 2))),
            SERVED,
        ),
        "the node m twice",
    ),
    "signature": (saved(NODE, SERVED, SERVED), "the SignatureEntry serving_default twice"),
    "output": (
        saved(NODE, field(5, entry(b"s", field(2, entry(b"o", field(1, b"n"))) * 2))),
        "the TensorInfoEntry o twice",
    ),
    "attribute": (
        saved(field(1, node(b"n", b"NoOp", field(5, entry(b"f", b"")) * 2))),
        "a duplicate attribute of an operation",
    ),
    "asset": (
        saved(
            NODE, *[field(6, field(1, field(1, b"n")) + field(2, name)) for name in (b"a", b"b")]
        ),
        "the asset n twice",
    ),
    "collection": (saved(NODE, field(4, entry(b"c", b"")) * 2), "the CollectionEntry c twice"),
    "graph": (saved(NODE) * 2, "the tag serve twice"),
    "graph without the tag": (
        field(2, field(1, b"\x22\x01a")) + field(2, field(1, b"\x22\x01b")),
        "no graph with the tag `serve`, but a, b",
    ),
    "unknown field": (saved(field(1, node(b"n", b"NoOp", field(99, b"x")))), "unknown fields"),
    "unknown field of the file": (saved(NODE) + field(99, b"x"), "unknown fields"),
    "attribute left to the caller": (
        saved(field(1, node(b"n", b"NoOp", field(5, entry(b"f", field(9, b"T")))))),
        "from a function's caller",
    ),
    "input that is not there": (
        saved(field(1, node(b"n", b"NoOp", field(3, b"m"))), SERVED),
        "the node m, which it needs, is missing",
    ),
    "large node": (saved(field(1, node(b"n" * (1 << 19), b"NoOp"))), "is not a constant"),
}


@pytest.mark.parametrize(("content", "words"), TWICE.values(), ids=TWICE)
def test_a_graph_that_could_be_read_in_two_ways_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        ExaminedGraph(content)


def test_no_function_may_have_the_name_of_an_operation() -> None:
    for name in registered():
        assert _OPERATION_NAME.fullmatch(name), name
    graph = saved(field(2, field(1, function(b"WriteFile"))))
    assert ExaminedGraph(graph).dangers == [
        ("a function named like an operation, WriteFile", "the function library")
    ]


@pytest.mark.parametrize(
    "name",
    [
        *["__inference__traced_restore_89", "Encoder_while_body_12", "map_while_cond_49114"],
        *["__forward_gpu_lstm_with_fallback_7", "dnn_zero_fraction_1_cond_false_49441", "f"],
    ],
)
def test_names_that_tensorflow_gives_to_functions_pass(name: str) -> None:
    graph = ExaminedGraph(saved(field(2, field(1, function(name.encode())))))
    assert graph.dangers == []


def test_the_lists_name_operations_that_there_are() -> None:
    tables = ANONYMOUS_TABLES.keys() | {*ANONYMOUS_TABLES.values()}
    assert ALLOWED_OPS | CHECKPOINT_OPS | FILE_OPS.keys() | tables <= {*registered()}
    assert not ALLOWED_OPS & (CHECKPOINT_OPS | FILE_OPS.keys())


# Ours: TensorFlow's. Entries of maps and lists of names have no file of their own there.
ELSEWHERE = {
    "Dim": "TensorShapeProto.Dim",
    "AttrEntry": "NodeDef.AttrEntry",
    "Entry": "NodeDef.AttrEntry",
    "ArgDef": "OpDef.ArgDef",
    "CollectionEntry": "MetaGraphDef.CollectionDefEntry",
    "CompositeInfo": "TensorInfo.CompositeTensor",
    "LargeNode": "NodeDef",
    "ListValue": "AttrValue.ListValue",
    "MetaInfoDef": "MetaGraphDef.MetaInfoDef",
    "Names": "CollectionDef.NodeList",
    "Pieces": "CollectionDef.AnyList",
    "SignatureEntry": "MetaGraphDef.SignatureDefEntry",
    "SparseInfo": "TensorInfo.CooSparse",
    "TensorInfoEntry": "SignatureDef.InputsEntry",
}


def test_the_messages_are_those_of_tensorflow() -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    pool = saved_model_pb2.DESCRIPTOR.pool
    ours = saved_model_proto._pool()
    names = re.findall(r"^(\w+) ", saved_model_proto._MESSAGES, re.MULTILINE)
    assert len(names) > 20
    names = [name for name in names if not name.startswith("Onnx")]
    for name in set(names) - {"Any", "TensorProto"}:
        theirs = pool.FindMessageTypeByName(f"tensorflow.{ELSEWHERE.get(name, name)}")
        own = ours.FindMessageTypeByName(f"batchnorm_tool.{name}")
        declared = {item.number: wire(item) for item in own.fields}
        assert declared == {item.number: wire(item) for item in theirs.fields}, name


# Ours, with ``Onnx`` before it: ONNX's.
ONNX = {
    "Opset": "OperatorSetIdProto",
    "Value": "ValueInfoProto",
    "TensorType": "TypeProto.Tensor",
    "Shape": "TensorShapeProto",
    "Dim": "TensorShapeProto.Dimension",
}


def test_the_messages_are_those_of_onnx() -> None:
    import onnx

    pool, ours = onnx.ModelProto.DESCRIPTOR.file.pool, saved_model_proto._pool()
    names = re.findall(r"^Onnx(\w+) ", saved_model_proto._MESSAGES, re.MULTILINE)
    assert len(names) > 10
    for name in names:
        theirs = pool.FindMessageTypeByName(f"onnx.{ONNX.get(name, f'{name}Proto')}")
        own = ours.FindMessageTypeByName(f"batchnorm_tool.Onnx{name}")
        declared = {item.number: wire(item) for item in own.fields}
        assert declared == {item.number: wire(item) for item in theirs.fields}, name


def wire(item: Any) -> tuple[str, bool]:
    """The name of a field, and whether it is stored as a length and bytes."""
    sized = item.type in (item.TYPE_MESSAGE, item.TYPE_BYTES, item.TYPE_STRING)
    packed = item.is_repeated and item.type in (item.TYPE_INT64, item.TYPE_FLOAT, item.TYPE_BOOL)
    packed |= item.has_options and item.GetOptions().packed
    return item.name, sized or packed or (item.is_repeated and item.type == item.TYPE_ENUM)


def nested(depth: int) -> bytes:
    value = field(10, field(1, b"f"))
    for _ in range(depth):
        value = field(10, field(1, b"f") + field(2, entry(b"a", value)))
    return field(5, entry(b"f", value))


def repeated(unit: bytes, size: int = 1 << 24) -> bytes:
    return unit * (size // len(unit))


def numbered(make: Callable[[int], bytes], count: int) -> bytes:
    return b"".join(make(place) for place in range(count))


BOMBS: dict[str, Callable[[], bytes]] = {
    "empty nodes": lambda: saved(repeated(field(1, b""))),
    "nodes": lambda: saved(numbered(lambda i: field(1, node(b"n%d" % i, b"NoOp")), 500_000)),
    "empty functions": lambda: saved(field(2, repeated(field(1, b"")))),
    "chain of functions": lambda: saved(
        field(1, call(b"f_0"))
        + field(
            2, numbered(lambda i: field(1, function(b"f_%d" % i, call(b"f_%d" % (i + 1)))), 90_000)
        ),
        SERVED,
    ),
    "nodes of one function": lambda: saved(
        field(1, call(b"f_1")) + field(2, field(1, function(b"f_1") + repeated(field(3, b"")))),
        SERVED,
    ),
    "deep attribute": lambda: saved(field(1, node(b"n", b"NoOp", nested(20_000)))),
    "attributes as deep as may be": lambda: saved(
        numbered(lambda i: field(1, node(b"n%d" % i, b"NoOp", nested(3))), 30_000)
    ),
    "attributes of one node": lambda: saved(field(1, node(b"n", b"NoOp", repeated(field(5, b""))))),
    "functions of one attribute": lambda: saved(
        numbered(
            lambda i: field(
                1,
                node(
                    b"n%d" % i,
                    b"NoOp",
                    field(5, entry(b"f", field(1, repeated(field(9, b""), 1 << 17)))),
                ),
            ),
            100,
        )
    ),
    "signatures": lambda: saved(b"", repeated(field(5, b""))),
    "assets": lambda: saved(b"", repeated(field(6, b""))),
    "long names in the saver": lambda: saved(
        b"", field(3, field(3, b"save/restore_all" * (1 << 20))), field(7, bytes(1 << 24))
    ),
}


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS)
def test_a_graph_without_measure_is_refused_at_once(make: Callable[[], bytes]) -> None:
    content = make()
    started = time.process_time()
    with pytest.raises(
        ValueError,
        match=r"too many|truncated|levels deep|not a constant|is missing|twice|duplicate",
    ):
        ExaminedGraph(content)
    # Twice what is promised: beside other work a processor does less in a second.
    assert time.process_time() - started < 4


def test_the_object_graph_is_not_even_parsed() -> None:
    graph = ExaminedGraph(saved(NODE, SERVED, field(7, b"\xff" * 1000)))
    assert graph.dangers == []
    assert b"\xff" not in graph.content(Path("/m"))
