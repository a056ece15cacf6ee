"""The graph of a SavedModel, read from its protobuf bytes without TensorFlow.

Field numbers are those of TensorFlow's ``saved_model.proto``, ``meta_graph.proto``,
``graph.proto``, ``function.proto``, ``node_def.proto`` and ``attr_value.proto``; they never change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from batchnorm_tool.model_gate.ops import ALLOWED_OPS, CHECKPOINT_OPS

_MAX_DEPTH = 64
_SKIPPED_BYTES = {1: 8, 5: 4}  # wire types of fixed size: 64 and 32 bits


@dataclass(frozen=True)
class _Node:
    """A graph operation: its name, its kind, the nodes it reads, the functions it names."""

    name: str
    op: str
    inputs: frozenset[str]
    functions: frozenset[str]

    @property
    def uses(self) -> frozenset[str]:
        """Everything that it runs: an operation may also be a function's name."""
        return self.functions | {self.op}


@dataclass(frozen=True)
class _Graph:
    """One MetaGraphDef."""

    nodes: tuple[_Node, ...]
    functions: dict[str, tuple[_Node, ...]]
    gradients: tuple[tuple[str, str], ...]
    saver_nodes: frozenset[str]
    swappable: frozenset[str]
    assets: tuple[str, ...]
    references: bytes


def graph_dangers(content: bytes) -> list[tuple[str, str]]:
    """Operations of a ``saved_model.pb`` that may do more than compute.

    The function library is included, whether or not anything calls it. Checkpoint operations are
    let pass where only the graph's own saver runs them, which nothing here ever does.

    Args:
        content: The bytes of ``saved_model.pb``.

    Returns:
        (what, where), one for each danger.

    Raises:
        ValueError: It is not a protobuf message of this kind.
    """
    found: list[tuple[str, str]] = []
    graphs = [_graph(raw) for raw in _repeated(memoryview(content), 2)]
    if not graphs:
        raise ValueError("it holds no graph")
    for graph in graphs:
        found += _forbidden_ops(graph)
        found += _checkpoint_calls(graph)
        found += [
            ("an asset outside of the model", name) for name in graph.assets if _leads_out(name)
        ]
    return sorted(set(found))


def _forbidden_ops(graph: _Graph) -> Iterator[tuple[str, str]]:
    known = ALLOWED_OPS | CHECKPOINT_OPS | graph.functions.keys()
    for where, nodes in _bodies(graph):
        for node in nodes:
            yield from ((f"the operation {name}", where) for name in node.uses - known)


def _bodies(graph: _Graph) -> Iterator[tuple[str, tuple[_Node, ...]]]:
    yield "the main graph", graph.nodes
    for name, nodes in graph.functions.items():
        yield f"the function {name}", nodes


def _checkpoint_calls(graph: _Graph) -> Iterator[tuple[str, str]]:
    """Where anything but the saver runs a checkpoint operation, which reads or writes files."""
    writers = _checkpoint_functions(graph)
    exempt = graph.saver_nodes - _referred_nodes(graph)
    for node in graph.nodes:
        if node.uses & CHECKPOINT_OPS or (node.uses & writers and node.name not in exempt):
            yield "a checkpoint operation outside of the saver", f"the node {node.name}"
    for name in writers:
        if name in graph.swappable or _mentions(graph.references, name):
            yield "a checkpoint operation outside of the saver", f"the function {name}"


def _checkpoint_functions(graph: _Graph) -> set[str]:
    """The functions that run a checkpoint operation, themselves or through others."""
    runs = {
        name: frozenset().union(*(node.uses for node in nodes))
        for name, nodes in graph.functions.items()
    }
    for name, gradient in graph.gradients:
        runs[name] = runs.get(name, frozenset()) | {gradient}
    tainted: set[str] = set()
    while more := {
        name
        for name, uses in runs.items()
        if name not in tainted and uses & (CHECKPOINT_OPS | tainted)
    }:
        tainted |= more
    return tainted


def _referred_nodes(graph: _Graph) -> frozenset[str]:
    """Nodes that another node waits for, or that a signature or an initializer names."""
    inputs = frozenset().union(*(node.inputs for node in graph.nodes))
    return inputs | {name for name in graph.saver_nodes if _mentions(graph.references, name)}


def _mentions(text: bytes, name: str) -> bool:
    return re.search(rb"(?<![\w/])" + re.escape(name.encode()) + rb"(?![\w/])", text) is not None


def _leads_out(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts


def _graph(raw: memoryview) -> _Graph:
    definitions = list(_repeated(raw, 2))
    libraries = [library for graph in definitions for library in _repeated(graph, 2)]
    functions = [function for library in libraries for function in _repeated(library, 1)]
    savers = [name for saver in _repeated(raw, 3) for name in _texts(saver, 2, 3)]
    return _Graph(
        nodes=tuple(_node(node) for graph in definitions for node in _repeated(graph, 1)),
        functions={
            _function_name(function): tuple(_node(node) for node in _repeated(function, 3))
            for function in functions
        },
        gradients=tuple(
            (_text(gradient, 1), _text(gradient, 2))
            for library in libraries
            for gradient in _repeated(library, 2)
        ),
        # Without an object graph (TensorFlow 1) loading runs the saver: nothing is exempt then.
        saver_nodes=frozenset(
            _node_name(name) for name in savers if any(True for _ in _repeated(raw, 7))
        ),
        swappable=frozenset(
            _function_name(function)
            for function in functions
            if b"api_implements" in bytes(function)
        ),
        assets=tuple(_text(asset, 2) for asset in _repeated(raw, 6)),
        # Collections, signatures and the object graph: whatever may start a function on loading.
        references=b"\0".join(
            bytes(part) for number in (4, 5, 7) for part in _repeated(raw, number)
        ),
    )


def _function_name(function: memoryview) -> str:
    return "".join(_text(signature, 1) for signature in _repeated(function, 1))


def _node(raw: memoryview) -> _Node:
    named: set[str] = set()
    ops = list(_texts(raw, 2))
    for entry in _repeated(raw, 5):
        for value in _repeated(entry, 2):
            named.update(_functions_in_attribute(value, 0))
    return _Node(
        name=_text(raw, 1),
        op=ops[-1] if ops else "",
        inputs=frozenset(_node_name(name) for name in _texts(raw, 3)),
        functions=frozenset(named).union(ops),
    )


def _functions_in_attribute(value: memoryview, depth: int) -> Iterator[str]:
    """Names of the functions that an AttrValue holds, alone or in a list."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"attributes nested more than {_MAX_DEPTH} levels deep")
    functions = [*_repeated(value, 10)]
    functions += [item for items in _repeated(value, 1) for item in _repeated(items, 9)]
    for function in functions:
        yield from _texts(function, 1)
        for entry in _repeated(function, 2):
            for inner in _repeated(entry, 2):
                yield from _functions_in_attribute(inner, depth + 1)


def _node_name(tensor: str) -> str:
    """``"^node"`` and ``"node:0"`` both mean ``"node"``."""
    return tensor.removeprefix("^").partition(":")[0]


def _repeated(message: memoryview, number: int) -> Iterator[memoryview]:
    return (value for field, value in _fields(message) if field == number)


def _texts(message: memoryview, *numbers: int) -> Iterator[str]:
    for field, value in _fields(message):
        if field in numbers:
            yield bytes(value).decode()


def _text(message: memoryview, number: int) -> str:
    """The text in a field; of several the last counts, as in protobuf."""
    return ([*_texts(message, number)] or [""])[-1]


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of a protobuf message, in order; others are skipped."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire_type = key & 7
        if wire_type == 0:
            _, at = _varint(message, at)
        elif wire_type == 2:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise ValueError("it is cut short")
            yield key >> 3, message[at : at + length]
            at += length
        elif wire_type in _SKIPPED_BYTES:
            at += _SKIPPED_BYTES[wire_type]
        else:
            raise ValueError(f"it is no protobuf message (wire type {wire_type})")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("it is cut short")
