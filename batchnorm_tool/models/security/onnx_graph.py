"""An ONNX model: what identifies it, and what speaks against running it.

The operations of ``ai.onnx`` and ``ai.onnx.ml`` only compute; others are on a list or refused, and
so is whatever would be read from elsewhere. Graphs within operations (``If``, ``Loop``, ``Scan``)
are judged like the outer one.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from batchnorm_tool.chunk import Field
from batchnorm_tool.models.security.keras_allowlist import (
    LARGEST,
    ModelFinding,
    allowed,
    exceeds,
    short,
)
from batchnorm_tool.models.security.saved_model_proto import message_class, parse, parse_all
from batchnorm_tool.models.signature import OnnxInterface, Signature
from batchnorm_tool.storage import checked_json

# A node takes as long as several of its attributes; see `graph_allowlist`.
_MAX_PIECES = 1_000_000
_COST = {"OnnxNode": 3, "OnnxTensor": 3}
_MAX_DEPTH = 8
_MAX_BYTES = 2 << 30  # protobuf's own limit
_STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml"})
_FUSED = allowed("onnxruntime_operations")
_RANDOM = frozenset(
    f"{kind}{like}" for kind in ("RandomNormal", "RandomUniform") for like in ("", "Like")
) | {"Bernoulli", "Multinomial"}
_EXTERNAL = 1
_PACKED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "raw_data")
# By ONNX's numbers for them.
_DTYPES = dict(
    enumerate(
        """
        float32 uint8 int8 uint16 int16 int32 int64 string bool float16 float64 uint32 uint64
        """.split(),  # noqa: SIM905  as in `graph_allowlist`
        start=1,
    )
)
# The input that says how much they return, which onnxruntime computes already at loading.
_SIZED = {"ConstantOfShape": 0, "Expand": 1, "OneHot": 1, "Range": 1, "Tile": 1}
_INT32, _INT64 = 6, 7  # as ONNX numbers the types of tensors
_INTS = 0x42  # what stands before the `ints` of an attribute, and their length, in one byte
_MOST_BYTES_OF_SIZE = 127
_NO_MEANING = ("doc_string", "metadata_props")


class ExaminedOnnx:
    """An ONNX model, parsed and examined.

    Args:
        content: The bytes of the file.

    Attributes:
        findings: Dangers and warnings.
        interface: What it takes and gives, as far as it says.

    Raises:
        ValueError: It is no whole protobuf message of this kind, something in it is given twice or
            unknown, or there is too much of it.
    """

    def __init__(self, content: bytes) -> None:
        if len(content) > _MAX_BYTES:
            raise ValueError("it takes more than the 2 GiB that one such file can")
        # A producer of this name makes the same bytes a file of onnxruntime's own format.
        if content[4:8] == b"ORTM":
            raise ValueError("it can be read as a model of another format, too")
        self.findings: list[ModelFinding] = []
        self._left = _MAX_PIECES
        self._weights: set[str] = set()
        # Constants by their names that are too large for a size, and where constants may be one.
        self._huge: dict[str, Sequence[int]] = {}
        self._sized: list[tuple[str, str]] = []
        self._digest = hashlib.sha256()
        model = parse("OnnxModel", content)
        for function in self._parsed("OnnxFunction", model.functions):
            self._refuse(f"the nested function {short(function.name)}", "the function library")
        self._opsets = sorted(
            (item.domain, item.version) for item in self._parsed("OnnxOpset", model.opset_import)
        )
        self._examine(model.graph)
        for name, where in self._sized:
            self._check_size(self._huge.get(name, ()), LARGEST, where)
        values = self._parsed("OnnxValue", model.graph.input)
        inputs = {value.name: self._input(value) for value in values}
        kinds = {}
        for value in self._parsed("OnnxValue", model.graph.output):
            self._add(value)
            kinds[value.name] = value.type.WhichOneof("kind")
        # Weights may stand among the inputs, too.
        fields = [field for name, field in inputs.items() if name not in self._weights]
        self.interface = OnnxInterface({"": _signature(fields, kinds)})

    @property
    def content(self) -> str:
        """SHA-256 over graph, weights and versions of the operations; not over who wrote it."""
        return checked_json.sha256([self._opsets, self._digest.hexdigest()])

    def _parsed(self, kind: str, pieces: Sequence[bytes]) -> Iterator[Any]:
        self._left -= len(pieces) * _COST.get(kind, 1)
        if self._left < 0:
            raise ValueError("it has too many nodes, attributes and weights to examine")
        return parse_all(kind, pieces)

    def _add(self, message: Any) -> None:
        """Add a message to the hash, with its length, so that no two lists of them collide."""
        for name in _NO_MEANING:
            if name in message.DESCRIPTOR.fields_by_name:
                message.ClearField(name)
        content = message.SerializeToString()
        kind = type(message).__name__.encode()
        self._digest.update(kind + len(content).to_bytes(8, "little") + content)

    def _refuse(self, what: str, where: str) -> None:
        self.findings.append(ModelFinding("refuse", what, where))

    def _examine(self, graph: Any, depth: int = 0) -> None:
        if depth > _MAX_DEPTH:
            raise ValueError(f"it nests graphs more than {_MAX_DEPTH} levels deep")
        for node in self._parsed("OnnxNode", graph.node):
            self._examine_node(node, depth)
            self._add(node)
        for tensor in self._parsed("OnnxTensor", graph.initializer):
            self._examine_tensor(tensor, f"the weights {short(tensor.name)}")
            self._note(tensor.name, _integers(tensor))
            self._add(tensor)
            if not depth:
                self._weights.add(tensor.name)
        for sparse in self._parsed("OnnxSparseTensor", graph.sparse_initializer):
            self._examine_sparse(sparse, f"the weights {short(sparse.values.name)}")
            self._add(sparse)
            if not depth:
                self._weights.add(sparse.values.name)

    def _examine_node(self, node: Any, depth: int) -> None:
        where = f"the node {short(node.name or next(iter(node.output), node.op_type))}"
        fused = node.domain == "com.microsoft" and node.op_type in _FUSED
        if node.domain not in _STANDARD and not fused:
            name = f"{node.domain}.{node.op_type}"
            self._refuse(f"the custom operation {short(name)}", where)
        elif node.op_type in _RANDOM:
            what = f"the random operation {node.op_type}, which gives other numbers in every call"
            self.findings.append(ModelFinding("warn", what, where))
        place = _SIZED.get(node.op_type)
        if place is not None:
            self._sized += [(name, where) for name in node.input[place : place + 1]]
        for attribute in self._parsed("OnnxAttribute", node.attribute):
            self._examine_attribute(attribute, where, depth)
            if node.op_type == "Constant" and node.output:
                values = [attribute.i, *attribute.ints, *_integers(attribute.t)]
                self._note(node.output[0], values)

    def _note(self, name: str, constant: Sequence[int]) -> None:
        if exceeds(LARGEST, constant):
            self._huge[name] = constant

    def _examine_attribute(self, attribute: Any, where: str, depth: int) -> None:
        for tensor in (attribute.t, *self._parsed("OnnxTensor", attribute.tensors)):
            self._examine_tensor(tensor, where)
        several = self._parsed("OnnxSparseTensor", attribute.sparse_tensors)
        for sparse in (attribute.sparse_tensor, *several):
            self._examine_sparse(sparse, where)
        inner = [attribute.g] if attribute.HasField("g") else []
        for graph in (*inner, *self._parsed("OnnxGraph", attribute.graphs)):
            self._examine(graph, depth + 1)

    def _examine_sparse(self, sparse: Any, where: str) -> None:
        for tensor in (sparse.values, sparse.indices):
            self._examine_tensor(tensor, where)
        self._check_size(sparse.dims, LARGEST, where)

    def _examine_tensor(self, tensor: Any, where: str) -> None:
        if tensor.data_location == _EXTERNAL or tensor.external_data:
            self._refuse("weights that are read from another file", where)
            return
        # No number takes less than two bits.
        held = 4 * sum(len(getattr(tensor, name)) for name in _PACKED)
        self._check_size(tensor.dims, max(1, held, len(tensor.string_data)), where)

    def _input(self, value: Any) -> Field | None:
        """Examine an input; returns ``None`` where too little is said of it."""
        sizes = [dim.dim_value for dim in self._parsed("OnnxDim", value.type.tensor_type.shape.dim)]
        self._check_size(sizes, LARGEST, f"the input {short(value.name)}")
        self._add(value)
        dtype = _DTYPES.get(value.type.tensor_type.elem_type)
        if dtype is None or not sizes:
            return None
        return Field(value.name, tuple(size if size > 0 else None for size in sizes[1:]), dtype)

    def _check_size(self, dims: Sequence[int], most: int, where: str) -> None:
        if exceeds(most, dims):
            self._refuse(f"the huge size {short(list(dims))}", where)


def _integers(tensor: Any) -> list[int]:
    """Return the numbers of a tensor of few integers, as which a size is held."""
    held = len(tensor.int64_data) + len(tensor.int32_data) + len(tensor.raw_data)
    if held > _MOST_BYTES_OF_SIZE or tensor.data_type not in (_INT32, _INT64):
        return []
    packed = tensor.int64_data or tensor.int32_data
    numbers = message_class("OnnxAttribute").FromString(bytes([_INTS, len(packed)]) + packed)
    width = 8 if tensor.data_type == _INT64 else 4
    raw = tensor.raw_data[: len(tensor.raw_data) // width * width]
    return [*numbers.ints, *np.frombuffer(raw, f"<i{width}").tolist()]


def _signature(fields: Sequence[Field | None], kinds: Mapping[str, str | None]) -> Signature | None:
    """Return what onnxruntime tells: all inputs, and of the outputs those that are tensors."""
    outputs = tuple(name for name, kind in kinds.items() if kind == "tensor_type")
    inputs = tuple(field for field in fields if field is not None)
    known = len(inputs) == len(fields) and None not in kinds.values()
    return Signature(inputs, outputs) if known and outputs else None
