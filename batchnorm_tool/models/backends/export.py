"""The formats in which a normalized model is written; `batchnorm_tool.registry` lists them."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from batchnorm_tool.display import did_you_mean
from batchnorm_tool.errors import JobError, ModelError
from batchnorm_tool.models.backends import place_name
from batchnorm_tool.models.backends.normalized_model import NormalizedModel, identifier
from batchnorm_tool.models.backends.onnx_conversion import (
    conversion_errors,
    exported_graph,
    to_onnx,
)
from batchnorm_tool.registry import BAKE_FORMATS, load

_KERAS_METADATA = "metadata.json"
# Where TensorFlow keeps what is no part of the graph.
_SAVED_MODEL_METADATA = "assets.extra/batchnorm_tool.json"
_CONVERTERS = ("onnx", "onnxruntime", "tf2onnx")


@dataclass(frozen=True)
class BakeFormat:
    """A format of model files.

    Attributes:
        file: Its file's, or directory's, name where there are several formats.
        write: Writes a model, and what is to be known of it, to a path that does not exist yet.
        packages: What has to be installed to write and to run it.
        extra: The extra of this package that installs them.
        is_admitted: Whether the safety gate knows it, and has to admit what was written.
    """

    file: str
    write: Callable[[NormalizedModel, Path], None]
    packages: tuple[str, ...] = ()
    extra: str = ""
    is_admitted: bool = False


def bake_format(name: str) -> BakeFormat:
    """Return a format by its name.

    Raises:
        JobError: There is none of that name, or it needs what is not installed.
    """
    if name not in BAKE_FORMATS:
        raise JobError(
            f"`to` takes {', '.join(BAKE_FORMATS)}. Received: {name}."
            f"{did_you_mean(name, BAKE_FORMATS)}"
        )
    found: BakeFormat = load(BAKE_FORMATS, name)
    for package in found.packages:
        if find_spec(package) is None:
            raise JobError(
                f"`to` names {name}, which needs {package}. Install it with `pip install "
                f"'batchnorm-tool[{found.extra}]'`, or leave {name} out."
            )
    return found


def _write_keras(model: NormalizedModel, path: Path) -> None:
    plain = path.with_name("plain.keras")
    model.keras.save(plain)
    with zipfile.ZipFile(plain) as saved, zipfile.ZipFile(path, "w") as written:
        for member in saved.infolist():
            content = saved.read(member)
            if member.filename == _KERAS_METADATA:
                content = json.dumps({**json.loads(content), **model.metadata}).encode()
            written.writestr(member, content)
    plain.unlink()


def _write_saved_model(model: NormalizedModel, path: Path) -> None:
    model.export(str(path))
    if model.metadata:
        place = path / _SAVED_MODEL_METADATA
        place.parent.mkdir()
        place.write_text(json.dumps(model.metadata))


def _write_onnx(model: NormalizedModel, path: Path) -> None:
    import onnx

    with conversion_errors("it cannot be converted to ONNX"):
        proto = onnx.load_from_string(_as_onnx(model))
        onnx.helper.set_model_props(proto, dict(model.metadata))
        path.write_bytes(proto.SerializeToString(deterministic=True))


def _write_openvino(model: NormalizedModel, path: Path) -> None:
    import openvino

    with conversion_errors("it cannot be converted for OpenVINO"):
        converted = openvino.Core().read_model(_as_onnx(model))
        for name, text in model.metadata.items():
            converted.set_rt_info(text, [name])
        path.mkdir()
        openvino.save_model(converted, path / "model.xml", compress_to_fp16=False)


def _write_litert(model: NormalizedModel, path: Path) -> None:
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


def _as_onnx(model: NormalizedModel) -> bytes:
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


KERAS = BakeFormat("model.keras", _write_keras, is_admitted=True)
SAVED_MODEL = BakeFormat("saved_model", _write_saved_model, is_admitted=True)
ONNX = BakeFormat("model.onnx", _write_onnx, _CONVERTERS, "onnxruntime", is_admitted=True)
OPENVINO = BakeFormat("openvino", _write_openvino, (*_CONVERTERS, "openvino"), "openvino")
LITERT = BakeFormat("model.tflite", _write_litert, ("ai_edge_litert",), "litert")
