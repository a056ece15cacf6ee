"""Normalized models as files for other runtimes: ONNX, OpenVINO's IR, and LiteRT."""

from __future__ import annotations

import tempfile
from pathlib import Path

from batchnorm_tool.errors import ModelError
from batchnorm_tool.models.backends import place_name
from batchnorm_tool.models.backends.normalized_model import NormalizedModel, identifier
from batchnorm_tool.models.backends.onnx_conversion import (
    conversion_errors,
    exported_graph,
    to_onnx,
)
from batchnorm_tool.models.export import BakeFormat

_CONVERTERS = ("onnx", "onnxruntime", "tf2onnx")


def write_onnx(model: NormalizedModel, path: Path) -> None:
    """Write an ``.onnx`` file whose inputs and outputs have the model's names."""
    import onnx

    with conversion_errors("it cannot be converted to ONNX"):
        proto = onnx.load_from_string(_named(model))
        onnx.helper.set_model_props(proto, dict(model.metadata))
        path.write_bytes(proto.SerializeToString(deterministic=True))


def write_openvino(model: NormalizedModel, path: Path) -> None:
    """Write a directory with OpenVINO's graph and weights, converted from ONNX."""
    import openvino

    with conversion_errors("it cannot be converted for OpenVINO"):
        converted = openvino.Core().read_model(_named(model))
        for name, text in model.metadata.items():
            converted.set_rt_info(text, [name])
        path.mkdir()
        openvino.save_model(converted, path / "model.xml", compress_to_fp16=False)


def write_litert(model: NormalizedModel, path: Path) -> None:
    """Write a ``.tflite`` file; its only signature has the model's names."""
    import tensorflow as tf
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    keys = ["serving_default"]
    with (
        conversion_errors("it cannot be converted for LiteRT"),
        tempfile.TemporaryDirectory() as at,
    ):
        model.export(at)
        content = tf.lite.TFLiteConverter.from_saved_model(at, signature_keys=keys).convert()
        stored = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
        for name, text in model.metadata.items():
            entry, buffer = schema.MetadataT(), schema.BufferT()
            entry.name, entry.buffer, buffer.data = name, len(stored.buffers), [*text.encode()]
            stored.buffers.append(buffer)
            stored.metadata = [*(stored.metadata or ()), entry]
        path.write_bytes(flatbuffer_utils.convert_object_to_bytearray(stored))


def _named(model: NormalizedModel) -> bytes:
    """Return a model in ONNX, with its own names of inputs and outputs."""
    loaded = exported_graph(model)
    # What was exported has other names where the model's are no identifiers.
    own = {identifier(field.name): field.name for field in model.inputs}
    taken, given = ([field.name for field in side] for side in (loaded.inputs, loaded.outputs))
    ends = {place_name("input", place): own[name] for place, name in enumerate(taken)}
    ends |= {place_name("output", place): name for place, name in enumerate(given)}
    if len({*ends.values()}) < len(ends):
        raise ModelError("an input and an output have the same name, which ONNX does not know")
    return to_onnx(loaded, ends)


ONNX = BakeFormat("model.onnx", write_onnx, _CONVERTERS, "onnxruntime", is_admitted=True)
OPENVINO = BakeFormat("openvino", write_openvino, (*_CONVERTERS, "openvino"), "openvino")
LITERT = BakeFormat("model.tflite", write_litert, ("ai_edge_litert",), "litert")
