"""Hostile `.keras` and `.h5` files: each would touch a marker, or take all memory, if it loaded."""

from __future__ import annotations

import copy
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.fuzz.test_fuzz_models import CONFIG, DENSE, WEIGHTS, archive

Config = dict[str, Any]


def function(module: str | None, name: Any, registered: Any = None) -> Config:
    return {
        "module": module,
        "class_name": "function",
        "config": name,
        "registered_name": registered or name,
    }


def item(class_name: Any, module: Any = "keras.layers", **config: Any) -> Config:
    return {
        "module": module,
        "class_name": class_name,
        "config": {"name": "added", **config},
        "registered_name": None,
    }


def with_layer(layer: Config) -> Config:
    """The architecture with a layer more, called on the output."""
    config = copy.deepcopy(CONFIG)
    history = {"shape": [None, 2], "dtype": "float32", "keras_history": ["embedding", 0, 0]}
    tensor = {"class_name": "__keras_tensor__", "config": history}
    calls = [{"args": [tensor], "kwargs": {}}]
    config["config"]["layers"].append({**layer, "name": "added", "inbound_nodes": calls})
    config["config"]["output_layers"] = [["added", 0, 0]]
    return config


def with_dense(**settings: Any) -> Config:
    config = copy.deepcopy(CONFIG)
    config["config"]["layers"][1]["config"].update(settings)
    return config


def with_parts(**parts: Any) -> Config:
    """The architecture with parts beside the settings of its Dense layer."""
    config = copy.deepcopy(CONFIG)
    config["config"]["layers"][1].update(parts)
    return config


def nested(layer: Config, class_name: str = "Sequential") -> Config:
    return item(class_name, "keras", layers=[item("InputLayer", batch_shape=[None, 2]), layer])


def architectures(marker: Path, saved_model: Path) -> Iterator[tuple[str, Config]]:
    """Architectures that run code of the file's own, read files, or claim absurd sizes."""
    import keras

    source = f"lambda x: (open({str(marker)!r}, 'w').close(), x)[1]"
    code = keras.layers.Lambda(eval(source), name="added")  # noqa: S307  ours
    evil = json.loads(json.dumps(keras.saving.serialize_keras_object(code)))
    raw = evil["config"]["function"]
    tfsm = item("TFSMLayer", filepath=str(saved_model), call_endpoint="serving_default")
    system = function("os", "system")
    yield "lambda", with_layer(evil)
    yield (
        "lambda by its inner module",
        with_layer({**evil, "module": "keras.src.layers.core.lambda_layer"}),
    )
    yield "lambda without a module", with_layer({"class_name": "Lambda", "config": evil["config"]})
    yield "lambda of initializers", with_layer({**evil, "module": "keras.initializers"})
    yield "lambda of operations", with_layer({**evil, "module": "keras.src.ops.numpy"})
    yield "registered lambda", with_layer({**evil, "registered_name": "keras>Lambda"})
    yield (
        "dense registered as lambda",
        with_layer({**item("Dense", units=2), "registered_name": "Lambda"}),
    )
    yield "lambda that names TFSMLayer", with_layer(item("Lambda", function=tfsm))
    yield "lambda that names a function", with_layer(item("Lambda", function=system))
    yield "TFSMLayer", with_layer(tfsm)
    yield (
        "TFSMLayer without a module",
        with_layer({"class_name": "TFSMLayer", "config": tfsm["config"]}),
    )
    for name in ("TorchModuleWrapper", "FlaxLayer", "JaxLayer"):
        yield name, with_layer(item(name, module="x", call_fn=raw))
    yield "lambda in Sequential", with_layer(nested(evil))
    yield "lambda in Functional", with_layer(nested(evil, "Functional"))
    yield "lambda two models deep", with_layer(nested(nested(evil)))
    for wrapper, slot in (
        *(("TimeDistributed", "layer"), ("Bidirectional", "layer"), ("RNN", "cell")),
        *(("SpectralNormalization", "layer"), ("StackedRNNCells", "cells")),
    ):
        inner = [evil] if slot == "cells" else evil
        yield f"lambda in {wrapper}", with_layer(item(wrapper, **{slot: inner}))
    yield "lambda in a pipeline", with_layer(item("Pipeline", layers=[evil]))
    for slot in ("activation", "kernel_initializer", "kernel_regularizer", "bias_constraint"):
        yield f"python lambda as {slot}", with_dense(**{slot: raw})
        yield f"os.system as {slot}", with_dense(**{slot: system})
    yield "class of another module as dtype", with_dense(dtype=item("Popen", "subprocess"))
    yield "function in a build record", with_parts(build_config={"input_shape": system})
    yield (
        "function in the call",
        with_parts(inbound_nodes=[{"args": [system, "id"], "kwargs": {"x": raw}}]),
    )
    yield (
        "compile settings of an inner model",
        with_layer({**nested(DENSE), "compile_config": {"loss": system, "optimizer": raw}}),
    )
    for module, name in (
        *(("keras.utils", "get_file"), ("builtins", "eval"), ("builtins", "exec")),
        *(("keras.saving", "load_model"), ("keras.models", "model_from_json")),
        *((None, "eval"), ("tensorflow.io", "write_file"), ("keras.layers", "deserialize")),
        *(("keras.activations", "deserialize"), ("subprocess", "run"), ("numpy", "load")),
    ):
        yield f"function {module}.{name}", with_dense(activation=function(module, name))
    for module, name in (
        *(("subprocess", "Popen"), ("keras.models", "load_model"), ("keras.utils", "get_file")),
        *(("keras.src.saving.saving_lib", "load_model"), (None, "Popen"), ("os", "_wrap_close")),
        *(("keras.layers", "L\u0430mbda"), ("keras.layers", "lambda"), ("keras.layers", " Lambda")),
        *(("keras.initializers", "get"), ("keras.src.ops.core", "exec"), ("mine", "Dense")),
        *((["os"], "system"), ("os", ["system"]), ("os", {"a": 1}), (7, "Dense"), ("os", None)),
    ):
        yield f"class {module}.{name}", with_layer(item(name, module))
    yield "function of a list", with_dense(activation=function("os", ["system"]))
    yield "function of a module in a list", with_dense(activation=function(["os"], "system"))  # type: ignore[arg-type]
    for layer, slot in (
        *(("StringLookup", "vocabulary"), ("IntegerLookup", "vocabulary")),
        *(("TextVectorization", "vocabulary"), ("TextVectorization", "idf_weights")),
    ):
        yield f"{slot} of {layer} in a file", with_layer(item(layer, **{slot: "/etc/passwd"}))
    yield (
        "type specification",
        with_dense(
            dtype={"class_name": "__typespec__", "spec_name": "x", "module": "os", "config": []}
        ),
    )
    yield "absurd units", with_dense(units=10**9)
    yield "absurd units, layer by layer", _chain([2**20, 2**20])
    yield "absurd embedding", with_layer(item("Embedding", input_dim=2**20, output_dim=2**20))
    yield "absurd kernel", with_layer(item("Conv2D", filters=2**19, kernel_size=[9999, 9999]))
    yield "absurd recurrence", with_layer(item("LSTM", units=2**20, recurrent_initializer="zeros"))
    yield "absurd shape", with_layer(item("Reshape", target_shape=[999999999] * 1000))
    yield "a million lists", {**CONFIG, "more": [[]] * 1_000_000}
    yield "a thousand levels", {**CONFIG, "more": _deep(900)}
    yield "a number without end", {**CONFIG, "more": 10**4000}


def _chain(units: list[int]) -> Config:
    layers = [item("InputLayer", batch_shape=[None, 2])]
    for place, width in enumerate(units):
        layers.append(item("Dense", units=width, kernel_initializer="zeros"))
        layers[-1]["config"]["name"] = f"dense_{place}"
    return item("Sequential", "keras", layers=layers)


def _deep(levels: int) -> Any:
    return {"config": _deep(levels - 1)} if levels else {}


def h5_of(config: Any, change: Callable[[h5py.File], object] = lambda file: None) -> bytes:
    """An ``.h5`` file of this architecture with the weights of one Dense layer, and a change."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = "3.15.1"
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = np.array([b"embedding"])
        layer = group.create_group("embedding")
        layer.attrs["weight_names"] = np.array([b"kernel", b"bias"])
        layer["kernel"], layer["bias"] = np.ones((2, 2), "f4"), np.zeros(2, "f4")
        change(file)
    return buffer.getvalue()


def keras_of(config: Any) -> bytes:
    return archive(config)


def repacked(**members: bytes | None) -> Callable[[], bytes]:
    """The harmless archive with members more (`__` for a dot); ``None`` leaves one out."""

    def write() -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(archive(CONFIG))) as old:
            content = {name: old.read(name) for name in old.namelist()}
        content |= {name.replace("__", "."): text for name, text in members.items()}
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
            for name, text in content.items():
                if text is not None:
                    new.writestr(name, text)
        return buffer.getvalue()

    return write


def twice(name: str) -> bytes:
    buffer = io.BytesIO(archive(CONFIG))
    with zipfile.ZipFile(buffer, "a") as members:
        members.writestr("spare_name_", b"{}" if name == "config.json" else WEIGHTS)
    return buffer.getvalue().replace(b"spare_name_", name.encode().ljust(11, b"_")[:11])


def linked() -> bytes:
    buffer = io.BytesIO(archive(CONFIG))
    with zipfile.ZipFile(buffer, "a") as members:
        link = zipfile.ZipInfo("assets")
        link.external_attr = 0o120777 << 16
        members.writestr(link, "/etc")
    return buffer.getvalue()


def shared_text(file: h5py.File) -> None:
    """Many texts of any length that all lie at one place."""
    file.create_dataset("text", data=np.full(200_000, "x" * 1000, h5py.string_dtype()))


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "data", (4,))
    file.create_virtual_dataset("model_weights/virtual", layout)


HDF5_CHANGES: dict[str, Callable[[h5py.File], object]] = {
    "external link": lambda file: file.__setitem__("x", h5py.ExternalLink("/etc/passwd", "/")),
    "symbolic link": lambda file: file.__setitem__("x", h5py.SoftLink("/model_weights")),
    "link to itself": lambda file: file.__setitem__("model_weights/x", file["model_weights"]),
    "external storage": lambda file: file.create_dataset(
        "x", (4,), "u1", external=[("/etc/passwd", 0, 4)]
    ),
    "virtual data": virtual,
    "references": lambda file: file.create_dataset("x", (4,), h5py.ref_dtype),
    "terabytes that are not there": lambda file: file.create_dataset(
        "x", (10**12,), "f4", chunks=(2**20,), compression="gzip"
    ),
    "many data sets that are not there": lambda file: [
        file.create_dataset(f"x{i}", (10**7,), "f4", chunks=(2**20,)) for i in range(9)
    ],
    "a hundred thousand groups": lambda file: [file.create_group(f"g{i}") for i in range(21_000)],
    "a million chunks": lambda file: file.create_dataset("x", (10**6,), "u1", chunks=(1,)),
    "text at one place": shared_text,
    "large attributes": lambda file: [
        file.create_dataset(f"x{i}", (1,), "u1").attrs.create("a", np.zeros(60_000, "u1"))
        for i in range(150)
    ],
}

CONTAINERS: dict[str, Callable[[], bytes]] = {
    "path out of the archive": repacked(**{"../../evil": b""}),
    "absolute path": repacked(**{"/tmp/evil": b""}),
    "path of Windows": repacked(**{"..\\evil": b"", "C:evil": b""}),
    "two architectures": lambda: twice("config.json"),
    "an architecture in other letters": repacked(Config__json=b"{}"),
    "symbolic link": linked,
    "archive in the archive": repacked(model__weights__npz=b"PK"),
    "bomb": repacked(**{"assets/bomb": bytes(80 << 20)}),
    "bombs": repacked(**{f"assets/bomb{i}": bytes(9 << 20) for i in range(9)}),
    "no weights": repacked(model__weights__h5=None),
    "weights that are none": repacked(model__weights__h5=b"no hdf5"),
    "metadata of another kind": repacked(metadata__json=b"[" * 9000),
    "cut short": lambda: archive(CONFIG)[:-200],
    "size of the directory forged": lambda: archive(CONFIG)[:-10] + struct.pack("<IIH", 9, 9, 0),
}


def hostile(folder: Path, marker: Path, saved_model: Path) -> Iterator[tuple[str, Path]]:
    """Write each hostile file, and give its name and path."""
    content = {
        f"{name}, {suffix}": (suffix, change)
        for suffix, name, change in _files(marker, saved_model)
    }
    for number, (name, (suffix, write)) in enumerate(content.items()):
        path = folder / f"hostile_{number}.{suffix}"
        path.write_bytes(write())
        yield name, path


def _files(marker: Path, saved_model: Path) -> Iterator[tuple[str, str, Callable[[], bytes]]]:
    for name, config in architectures(marker, saved_model):
        yield "keras", name, lambda config=config: archive(config)
        yield "h5", name, lambda config=config: h5_of(config)
    for name, change in HDF5_CHANGES.items():
        yield "h5", name, lambda change=change: h5_of(CONFIG, change)
    for name, write in CONTAINERS.items():
        yield "keras", name, write
