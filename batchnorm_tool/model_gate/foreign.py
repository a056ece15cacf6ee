"""Models of other programs, and folders around a model: what they are, and the way on."""

from __future__ import annotations

import re
from pathlib import Path

_ELSEWHERE = (
    "predict with the program that it is made for, and give the stored predictions to "
    "`batchnorm-tool normalize`."
)
_TFLITE = f"a TFLite (LiteRT) model. Give the Keras model that it was made from. Or {_ELSEWHERE}"
_ONNX = f"an ONNX model. Give the Keras model that it was made from, or {_ELSEWHERE}"
_PYTORCH = f"a PyTorch model. Give a Keras model, or {_ELSEWHERE}"
_TENSORFLOW_JS = (
    "a TensorFlow.js model. Convert it back: `tensorflowjs_converter "
    "--input_format=tfjs_layers_model --output_format=keras model.json model.h5`."
)
_ARCHITECTURE = (
    "an architecture without weights, as model.to_json() writes it. Save the whole model with "
    "model.save('model.keras')."
)
_SAFETENSORS = (
    "a safetensors file: weights only, without the architecture. Save the whole model with Keras, "
    f"or {_ELSEWHERE}"
)
_GRAPH_JS = (
    "a TensorFlow.js model of the format graph-model, which cannot be converted back. Give the "
    f"model that it was made from, or {_ELSEWHERE}"
)
# By what the first bytes hold; the first pattern that is found counts.
_HEADS = {
    rb'^\s*\{\s*"format"\s*:\s*"graph-model"': _GRAPH_JS,
    rb"^.{4}TFL3": _TFLITE,
    rb'^\s*\{\s*"(format|modelTopology|generatedBy)"\s*:\s*("layers-model"|\{|"keras)': (
        _TENSORFLOW_JS
    ),
    rb'^\s*\{.{0,80}"class_name"': _ARCHITECTURE,
    rb'^.{7}\x00\{"': _SAFETENSORS,
    rb"^\x08.{1,2}\x12.{1,3}(pytorch|tf2onnx|onnx|skl2onnx)": _ONNX,
}
_SUFFIXES = {
    ".onnx": _ONNX,
    ".pt": _PYTORCH,
    ".pth": _PYTORCH,
    ".tflite": _TFLITE,
    ".pb": (
        "one file of a TensorFlow model. Give the directory of a SavedModel, which holds "
        "saved_model.pb and the folder variables."
    ),
}
HEAD_BYTES = 256
_LOOKED_AT = 1000  # names in a folder: no model has more, and data may
_DATA_SUFFIXES = {".arrow", ".feather", ".npy", ".parquet"}


def foreign_file(path: Path, head: bytes) -> str | None:
    """Say what a file is that holds a model of another program, and what to do.

    Args:
        path: The file.
        head: Its first bytes, some hundred of them.

    Example:
        >>> foreign_file(Path("m"), b"    TFL3").partition(".")[0]
        'a TFLite (LiteRT) model'
    """
    for pattern, words in _HEADS.items():
        if re.search(pattern, head, re.DOTALL):
            return words
    return _SUFFIXES.get(path.suffix.lower())


def foreign_folder(path: Path) -> str | None:
    """Say what a folder is that holds models, but is none that can be loaded, and what to do."""
    names = sorted(item.name for item in path.iterdir())[:_LOOKED_AT]
    if "config.json" in names and "model.weights.h5" in names:
        return "an unpacked .keras archive. Pack it: zip -0 -r ../model.keras . (inside it)."
    versions = [name for name in names if (path / name / "saved_model.pb").is_file()]
    if versions:
        latest = max(versions, key=lambda name: (len(name), name) if name.isdigit() else (0, name))
        listed = ", ".join(versions[:5])
        return f"a folder of SavedModels: {listed}. Give one of them, such as {path / latest}."
    if "checkpoint" in names and any(name.endswith(".index") for name in names):
        return (
            "a checkpoint: weights only, without the architecture. Load it in Python with "
            "model.load_weights(), and save the whole model with model.save('model.keras')."
        )
    return None if _DATA_SUFFIXES & {Path(name).suffix for name in names} else _held(path, names)


def _held(path: Path, names: list[str]) -> str | None:
    """What a folder without data is, by the model file in it."""
    for name in names:
        if name.endswith((".keras", ".h5", ".hdf5")):
            return f"a folder with the model {name} in it. Give {path / name}."
    for name in names:
        words = _SUFFIXES.get(Path(name).suffix.lower())
        if name == "model.json" and any(other.endswith(".bin") for other in names):
            words = foreign_file(path / name, _head(path / name))
        if words is not None:
            return f"a folder with {name} in it, {words}"
    return None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)
