"""The graph of a SavedModel: what its signatures need of it, and what speaks against that.

Kept is what computes a signature, initializes its tables or restores its variables, and all of that
is examined. The rest (functions for training, the object graph, the writing side of the saver) is
left out of what TensorFlow sees. What is written is what was parsed, so that the gate and
TensorFlow cannot read two different graphs.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TypeVar

from batchnorm_tool.chunk import Field
from batchnorm_tool.models.security.keras_allowlist import allowed
from batchnorm_tool.models.security.saved_model_proto import message_class, parse, parse_all
from batchnorm_tool.models.signature import DTYPES, ModelInterface, Signature

_T = TypeVar("_T")
# Inputs, attributes and the like that are looked at one by one, at about 2 microseconds each; a
# node or a function takes as long as several of them.
_MAX_PIECES = 1_000_000
_COST = {"NodeDef": 3, "FunctionDef": 10, "NameAttrList": 8}
_MAX_DEPTH = 4
# A node above this must be a constant: of others, two bytes become a hundred in memory.
_LARGE_NODE = 1 << 18
_INIT_OP = "__saved_model_init_op"
_TRAIN_OP = "__saved_model_train_op"
# Where TensorFlow 1 names what initializes tables; the first that is there counts.
_INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op")
_ASSET_COLLECTION = "saved_model_assets"
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
# What TensorFlow demands of an operation's name; its functions' names have a `_` inside.
_OPERATION_NAME = re.compile(r"_*[A-Z][A-Za-z0-9]*(>.*)?")
_DT_STRING = 7
_NONE: frozenset[str] = frozenset()
FileKind = Literal["checkpoint", "asset"]
_STRAY_CHECKPOINT = "a checkpoint operation outside the saver"
_FOREIGN_FILE = {
    "checkpoint": _STRAY_CHECKPOINT,
    "asset": "an operation that reads a vocabulary from a file that is not an asset of the model",
}
ALLOWED_OPS = allowed("graph_operations")
CHECKPOINT_OPS = frozenset({"MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename"})
# What reads a file, which of its inputs is the file's name, and which file of the model it may be.
FILE_OPS: dict[str, tuple[int, Literal["checkpoint", "asset"]]] = {
    "InitializeTableFromTextFile": (1, "asset"),
    "InitializeTableFromTextFileV2": (1, "asset"),
    "RestoreV2": (0, "checkpoint"),
}
# Tables without a name, and the operation that makes the same with one.
ANONYMOUS_TABLES = {
    "AnonymousHashTable": "HashTableV2",
    "AnonymousMutableDenseHashTable": "MutableDenseHashTableV2",
    "AnonymousMutableHashTable": "MutableHashTableV2",
    "AnonymousMutableHashTableOfTensors": "MutableHashTableOfTensorsV2",
}


class _Node(NamedTuple):
    """A graph operation: its name, its kind, the functions that it names, and all of it."""

    name: str
    op: str
    functions: frozenset[str]
    message: Any
    raw: bytes

    @property
    def inputs(self) -> Sequence[str]:
        """The tensors that it reads."""
        inputs: Sequence[str] = self.message.input
        return inputs

    @property
    def uses(self) -> tuple[str, ...]:
        """Everything that it runs: an operation may also be a function's name."""
        return (self.op, *self.functions)


@dataclass(frozen=True)
class _File:
    """A file of the model that a node of the main graph stands for."""

    kind: FileKind
    path: str


class ExaminedGraph:
    """The part of a SavedModel that serves, parsed and examined.

    Args:
        content: The bytes of ``saved_model.pb``.

    Raises:
        ValueError: It is no whole protobuf message of this kind, something in it is given twice or
            unknown, or there is too much of it.
    """

    def __init__(self, content: bytes) -> None:
        self._left = _MAX_PIECES
        self._meta = self._serving_graph(content)
        self._signatures = self._entries("SignatureEntry", self._meta.signature_def)
        self._signatures.pop(_TRAIN_OP, None)
        self._collections = self._entries("CollectionEntry", self._meta.collection_def)
        self._assets = self._asset_files()
        library = self._meta.graph_def.library
        functions = self._parsed("FunctionDef", library.function)
        # Twice the same name, and TensorFlow might run another function than the one that was
        # examined.
        self._functions = _unique("function", ((item.signature.name, item) for item in functions))
        nodes = self._nodes(self._meta.graph_def.node)
        self._init_op = self._find_init_op()
        self._main = _ancestors(nodes, self._roots())
        self._bodies = self._called_functions()
        self._files = self._file_nodes()

    @cached_property
    def dangers(self) -> list[tuple[str, str]]:
        """What may do more than compute, and where it is."""
        found = [*self._forbidden(), *self._foreign_files()]
        found += [
            (f"a function named like an operation, {name}", "the function library")
            for name in self._functions
            if _OPERATION_NAME.fullmatch(name)
        ]
        found += [
            ("an asset outside the model", path)
            for path in self._assets.values()
            if _leads_out(path)
        ]
        return sorted(set(found))

    @property
    def restores(self) -> bool:
        """Whether it reads variables from its checkpoint."""
        return any(node.op == "RestoreV2" for _, nodes in self._scopes() for node in nodes)

    @property
    def assets(self) -> list[str]:
        """Paths, within the model, of the assets that it needs."""
        return sorted({file.path for file in self._files.values() if file.kind == "asset"})

    @property
    def interface(self) -> ModelInterface | None:
        """What its signatures take and give, as far as they tell."""
        with contextlib.suppress(ValueError):
            return ModelInterface(dict(self._each_signature()))
        return None

    def _each_signature(self) -> Iterator[tuple[str, Signature | None]]:
        for name, signature in self._signatures.items():
            inputs = sorted(self._entries("TensorInfoEntry", signature.inputs).items())
            outputs = sorted(self._entries("TensorInfoEntry", signature.outputs))
            fields = [_field(name, info) for name, info in inputs]
            known = tuple(field for field in fields if field is not None)
            yield name, Signature(known, tuple(outputs)) if len(known) == len(fields) else None

    def content(self, directory: Path) -> bytes:
        """Return the bytes of a ``saved_model.pb`` that holds what was examined, and no more."""
        graph = message_class("GraphDef")()
        graph.versions = self._meta.graph_def.versions
        for node in self._main.values():
            file = self._files.get(node.name)
            path = None if file is None else str(directory / file.path)
            graph.node.append(self._kept(node) if path is None else _constant(node.name, path))
        for name in self._bodies:
            graph.library.function.append(_only_itself(self._functions[name]))
        meta = message_class("MetaGraphDef")(graph_def=graph)
        if self.restores:
            meta.saver_def.CopyFrom(self._meta.saver_def)
        meta.meta_info_def.CopyFrom(self._meta.meta_info_def)
        meta.meta_info_def.ClearField("any_info")
        meta.signature_def.extend(entry.SerializeToString() for entry in self._kept_signatures())
        saved = message_class("SavedModel")(saved_model_schema_version=1)
        saved.meta_graphs.append(meta.SerializeToString())
        return bytes(saved.SerializeToString())

    def _take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ValueError("it has too many nodes, attributes and functions to examine")

    def _parsed(self, kind: str, pieces: Sequence[bytes]) -> Iterator[Any]:
        self._take(len(pieces) * _COST.get(kind, 1))
        return parse_all(kind, pieces)

    def _entries(self, kind: str, pieces: Sequence[bytes]) -> dict[str, Any]:
        """Return a map: the values by key."""
        entries = self._parsed(kind, pieces)
        return _unique(kind, ((entry.key, entry.value) for entry in entries))

    def _serving_graph(self, content: bytes) -> Any:
        graphs = list(self._parsed("MetaGraphDef", parse("SavedModel", content).meta_graphs))
        tagged = _unique("tag", ((" ".join(sorted(g.meta_info_def.tags)), g) for g in graphs))
        if "serve" not in tagged and len(graphs) != 1:
            listed = ", ".join(tagged) or "none"
            raise ValueError(f"it has no graph with the tag `serve`, but {listed}")
        return tagged.get("serve", graphs[0])

    def _asset_files(self) -> dict[str, str]:
        """Return the names of the assets, by the node of the main graph that stands for them."""
        pieces = list(self._meta.asset_file_def)
        if not pieces and _ASSET_COLLECTION in self._collections:
            items = self._collections[_ASSET_COLLECTION].any_list.value
            pieces = [item.value for item in self._parsed("Any", items)]
        assets = self._parsed("AssetFileDef", pieces)
        named = ((_node_name(item.tensor_info.name), item.filename) for item in assets)
        # A table of TensorFlow 1 may add what its maker added already.
        return _unique("asset", dict.fromkeys(named))

    def _nodes(self, pieces: Sequence[bytes]) -> dict[str, _Node]:
        return _unique("node", ((node.name, node) for node in self._each_node(pieces)))

    def _each_node(self, pieces: Sequence[bytes]) -> Iterator[_Node]:
        self._take(len(pieces) * _COST["NodeDef"])
        small = [piece for piece in pieces if len(piece) <= _LARGE_NODE]
        for piece, node in zip(small, parse_all("NodeDef", small), strict=True):
            functions = self._functions_in(node.attr) if node.attr else _NONE
            yield _Node(node.name, node.op, functions, node, piece)
        for piece in (piece for piece in pieces if len(piece) > _LARGE_NODE):
            node = parse("LargeNode", piece)
            if node.op != "Const":
                raise ValueError(f"a node in it takes {len(piece):,} bytes and is not a constant")
            yield _Node(node.name, node.op, _NONE, node, piece)

    def _functions_in(self, attributes: Sequence[Any], depth: int = 0) -> frozenset[str]:
        """Return names of the functions in a node's attributes, alone, in lists, and nested."""
        self._take(len(attributes))
        if depth > _MAX_DEPTH:
            raise ValueError(f"it nests attributes more than {_MAX_DEPTH} levels deep")
        keys, functions = set(), []
        for entry in attributes:
            keys.add(entry.key)
            kind = entry.value.WhichOneof("kind")
            if kind == "placeholder":
                raise ValueError("it takes an attribute of an operation from a function's caller")
            if kind == "func":
                functions.append(entry.value.func)
            elif kind == "list":
                functions += entry.value.list.func
        if len(keys) != len(attributes):
            raise ValueError("it has a duplicate attribute of an operation")
        if not functions:
            return _NONE
        self._take(len(functions) * _COST["NameAttrList"])
        nested = (self._functions_in(item.attr, depth + 1) for item in functions if item.attr)
        return frozenset(item.name for item in functions).union(*nested)

    def _find_init_op(self) -> str | None:
        signature = self._signatures.pop(_INIT_OP, None)
        if signature is not None:
            infos = self._entries("TensorInfoEntry", signature.outputs)
            return next((info.name for info in infos.values()), None)
        for name in _INIT_COLLECTIONS:
            if name in self._collections:
                return next(iter(self._collections[name].node_list.value), None)
        return None

    def _roots(self) -> Iterator[str]:
        """Yield names that are asked of the main graph: tensors of signatures, two operations."""
        for signature in self._signatures.values():
            for infos in (signature.inputs, signature.outputs):
                for info in self._entries("TensorInfoEntry", infos).values():
                    yield from self._tensors(info)
        yield from (self._init_op or "", self._meta.saver_def.restore_op_name)

    def _tensors(self, info: Any) -> list[str]:
        if info.HasField("composite_tensor"):
            parts = self._parsed("TensorInfo", info.composite_tensor.components)
            return [part.name for part in parts]
        sparse = info.coo_sparse
        return [
            info.name,
            sparse.values_tensor_name,
            sparse.indices_tensor_name,
            sparse.dense_shape_tensor_name,
        ]

    def _called_functions(self) -> dict[str, list[_Node]]:
        """Return the bodies of all functions that the kept nodes call, directly or not."""
        bodies: dict[str, list[_Node]] = {}
        waiting = [name for node in self._main.values() for name in node.uses]
        while waiting:
            name = waiting.pop()
            if name in bodies or name not in self._functions:
                continue
            bodies[name] = list(self._nodes(self._functions[name].node_def).values())
            waiting += [used for node in bodies[name] for used in node.uses]
        return bodies

    def _file_nodes(self) -> dict[str, _File]:
        """Return the nodes of the main graph that stand for files of the model."""
        files = {
            name: _File("asset", f"assets/{path}")
            for name, path in self._assets.items()
            if name in self._main
        }
        # TensorFlow 2 keeps an asset's path in a variable that is read once it is assigned.
        held: dict[str, _File] = {}
        for node in self._main.values():
            if node.op == "AssignVariableOp" and node.inputs[1:2] and node.inputs[1] in files:
                held[node.inputs[0]] = files[node.inputs[1]]
        for node in self._main.values():
            if node.op == "ReadVariableOp" and node.inputs and node.inputs[0] in held:
                files[node.name] = held[node.inputs[0]]
        saver = self._meta.saver_def
        if _node_name(saver.filename_tensor_name) in self._main:
            file = _File("checkpoint", "variables/variables")
            files.setdefault(_node_name(saver.filename_tensor_name), file)
        return files

    def _scopes(self) -> Iterator[tuple[str | None, Iterable[_Node]]]:
        """Yield the main graph under no name, and the functions under theirs."""
        yield None, self._main.values()
        yield from self._bodies.items()

    def _forbidden(self) -> Iterator[tuple[str, str]]:
        known = ALLOWED_OPS | self._bodies.keys()
        for scope, nodes in self._scopes():
            for node in nodes:
                # File operations are judged by the file that they read, in `_foreign_files`.
                for name in {node.op} - FILE_OPS.keys() | node.functions:
                    if name in CHECKPOINT_OPS:
                        yield _STRAY_CHECKPOINT, _place(scope, node)
                    elif name not in known:
                        yield f"the operation {name}", _place(scope)

    def _foreign_files(self) -> Iterator[tuple[str, str]]:
        """Yield where a file is read that is neither the model's checkpoint nor an asset of it."""
        # The file's name is followed from the operation that reads it, through arguments of
        # functions, to a node of the main graph, which must stand for a file of that kind.
        calls, arguments = self._calls(), cache(self._arguments)
        waiting = [
            (scope, node, *FILE_OPS[node.op])
            for scope, nodes in self._scopes()
            for node in nodes
            if node.op in FILE_OPS
        ]
        seen: set[tuple[str, int, str]] = set()
        while waiting:
            scope, node, place, kind = waiting.pop()
            source = node.inputs[place] if place < len(node.inputs) else ""
            if scope is None:
                file = self._files.get(source.removesuffix(":0"))
                known = file is not None and file.kind == kind
            else:
                argument = arguments(scope).get(source, -1)
                known = argument >= 0 and calls[scope] is not None
                if known and (scope, argument, kind) not in seen:
                    seen.add((scope, argument, kind))
                    waiting += [(*call, argument, kind) for call in calls[scope] or ()]
            if not known:
                yield _FOREIGN_FILE[kind], _place(scope, node)

    def _calls(self) -> dict[str, list[tuple[str | None, _Node]] | None]:
        """Return who calls each function with ordered arguments; ``None``: others do as well."""
        calls: dict[str, list[tuple[str | None, _Node]] | None]
        calls = {name: [] for name in self._bodies}
        for scope, nodes in self._scopes():
            for node in nodes:
                for name in filter(self._bodies.__contains__, node.uses):
                    direct = node.op == name if not node.functions else node.op in _CALLS
                    found = calls[name]
                    if found is not None and direct and len(node.functions) < 2:
                        found.append((scope, node))
                    else:
                        calls[name] = None
        return calls

    def _arguments(self, function: str) -> dict[str, int]:
        arguments = self._parsed("ArgDef", self._functions[function].signature.input_arg)
        return {argument.name: place for place, argument in enumerate(arguments)}

    def _kept_signatures(self) -> Iterator[Any]:
        for name, signature in self._signatures.items():
            yield message_class("SignatureEntry")(key=name, value=signature)
        if self._init_op:
            info = message_class("TensorInfo")(name=self._init_op)
            entry = message_class("TensorInfoEntry")(key=_INIT_OP, value=info)
            signature = message_class("SignatureDef")(outputs=[entry.SerializeToString()])
            yield message_class("SignatureEntry")(key=_INIT_OP, value=signature)

    def _kept(self, node: _Node) -> bytes:
        """Return a node of the main graph as TensorFlow gets it."""
        # It must not stand beside nodes that are left out; and a table without a name would be
        # another, an empty one, each time that the main graph runs.
        beside = b"loc:@" in node.raw and len(node.raw) <= _LARGE_NODE
        if not beside and node.op not in ANONYMOUS_TABLES:
            return node.raw
        kept = parse("NodeDef", node.raw)
        for entry in kept.attr:
            if entry.key == "_class":
                near = [name for name in entry.value.list.s if name[5:].decode() in self._main]
                entry.value.list.s[:] = near
        if node.op in ANONYMOUS_TABLES:
            kept.op = ANONYMOUS_TABLES[node.op]
            kept.attr.add(key="shared_name").value.s = node.name.encode()
        return bytes(kept.SerializeToString())


def _unique(what: str, items: Iterable[tuple[str, _T]]) -> dict[str, _T]:
    """Return a dictionary of things that must not have the same name."""
    found: dict[str, _T] = {}
    for name, item in items:
        if name in found:
            raise ValueError(f"it has the {what} {name} twice")
        found[name] = item
    return found


def _ancestors(nodes: dict[str, _Node], roots: Iterable[str]) -> dict[str, _Node]:
    """Return the nodes that some tensors follow from, in the order of the graph."""
    needed: set[str] = set()
    waiting = [_node_name(root) for root in roots if root]
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        if name not in nodes:
            raise ValueError(f"the node {name}, which it needs, is missing")
        needed.add(name)
        waiting += map(_node_name, nodes[name].inputs)
    return {name: node for name, node in nodes.items() if name in needed}


def _node_name(tensor: str) -> str:
    """Return the node that ``"^node"`` and ``"node:0"`` both mean."""
    return tensor.removeprefix("^").partition(":")[0]


def _field(name: str, info: Any) -> Field | None:
    """Return an input of a signature; ``None`` where it is not dense, or of unknown rank."""
    shape = parse("TensorShapeProto", info.tensor_shape)
    dtype = DTYPES.get(info.dtype, "-")
    if info.WhichOneof("kind") != "name" or dtype == "-" or not shape.dim:
        return None
    sizes = [None if dim.size < 0 else int(dim.size) for dim in shape.dim]
    return Field(name, tuple(sizes[1:]), dtype)


def _leads_out(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts


def _place(scope: str | None, node: _Node | None = None) -> str:
    if scope is not None:
        return f"the function {scope}"
    return "the main graph" if node is None else f"the node {node.name}"


def _only_itself(function: Any) -> bytes:
    """Remove what lets TensorFlow run another function in its place."""
    kept = message_class("FunctionDef")()
    kept.CopyFrom(function)
    kept.attr[:] = [raw for raw in function.attr if parse("Entry", raw).key != "api_implements"]
    return bytes(kept.SerializeToString())


def _constant(name: str, text: str) -> bytes:
    """Return a node that holds one text."""
    tensor = message_class("TensorProto")(dtype=_DT_STRING, tensor_shape=b"")
    tensor.string_val.append(text.encode())
    node = message_class("NodeDef")(name=name, op="Const")
    node.attr.add(key="dtype").value.type = _DT_STRING
    node.attr.add(key="value").value.tensor = tensor.SerializeToString()
    return bytes(node.SerializeToString())
