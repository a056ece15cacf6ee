"""Whatever a file holds: refused in words that help, in bounded time, from one private copy."""

from __future__ import annotations

import copy
import io
import json
import shlex
import shutil
import struct
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras.src.applications import convnext, inception_resnet_v2
from keras.src.layers.preprocessing import feature_space

from batchnorm_tool import show
from batchnorm_tool.errors import ModelError
from batchnorm_tool.job import Engine, Model
from batchnorm_tool.models import describe_model, security
from batchnorm_tool.models.backends.loading import describe_failure
from batchnorm_tool.models.security import admit, examine
from batchnorm_tool.models.security import archive as security_archive
from tests.command_line import invoke
from tests.fuzz.test_fuzz_models import CONFIG, WEIGHTS, archive
from tests.models.security.corpus_keras import function, h5_of, item, with_dense, with_layer

pytestmark = pytest.mark.usefixtures("tensorflow")
ANY_JSON: list[Any] = [None, True, 0, 1.5, 10**30, "", "\ud800", [], ["os"], {}, {"a": [1]}]


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[bytes], str]:
    def write(content: bytes) -> str:
        (tmp_path / "model.keras").write_bytes(content)
        return str(tmp_path / "model.keras")

    return write


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    np.save(tmp_path / "rows.npy", np.ones((3, 2), np.float32))
    return tmp_path / "rows.npy"


def load(path: str, **settings: Any) -> None:
    model = Model(path=path, **settings)
    with admit(model) as admitted:
        describe_model(model, admitted.path, Engine())


@pytest.mark.parametrize("value", ANY_JSON, ids=repr)
@pytest.mark.parametrize(
    "place",
    [
        lambda value: with_layer(item(value)),
        lambda value: with_layer(item("Popen", value)),
        lambda value: with_layer({**item("Popen"), "registered_name": value}),
        lambda value: with_dense(activation=function(value, "system")),
        lambda value: with_dense(activation=function("os", value)),
        lambda value: with_dense(activation=function("os", "system", value)),
    ],
    ids=["class", "module", "registered", "function's module", "function", "function registered"],
)
def test_a_class_may_be_named_by_any_json(
    stored: Callable[[bytes], str], place: Callable[[Any], Any], value: Any
) -> None:
    with (
        pytest.raises(ModelError, match="refused by the safety gate"),
        admit(Model(path=stored(archive(place(value))))),
    ):
        pass


@pytest.mark.parametrize("value", ANY_JSON, ids=repr)
@pytest.mark.parametrize("key", ["name", "config", "layers", "output_layers", "inbound_nodes"])
def test_nothing_else_in_an_architecture_needs_a_type(
    stored: Callable[[bytes], str], key: str, value: Any
) -> None:
    config = copy.deepcopy(CONFIG)
    config["config"]["layers"][1] |= {"class_name": "Dropout", key: value}
    config["config"][key] = value
    examine(stored(archive(config)))


MEBIBYTES = 64 << 20
LARGE: dict[str, Callable[[], bytes]] = {
    "dictionaries": lambda: b"[" + b"{}," * (MEBIBYTES // 3 - 9) + b"{}]",
    "keys": lambda: b"{" + b",".join(b'"%07d":1' % n for n in range(6 * 10**6)) + b"}",
    "classes": lambda: b"[" + b'{"class_name":[1]},' * 99_000 + b"{}]",
    "long keys in one another": lambda: (b'{"' + b"k" * 700_000 + b'":') * 90 + b"1" + b"}" * 90,
    "digits": lambda: b"[" + (b"9" * 4000 + b",") * 16_000 + b"1]",
    "one shape": lambda: b'{"shape":[' + b"999999999," * 900_000 + b"1]}",
    "one name": lambda: b'{"class_name":"' + b"X" * (MEBIBYTES - 99) + b'"}',
    "dropout in dropout": lambda: (
        b'{"class_name":"Dropout","inbound_nodes":[' * 45 + b"{}," * 90_000 + b"{}" + b"]}" * 45
    ),
}


@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE.keys())
def test_any_64_mebibytes_are_examined_in_seconds(
    stored: Callable[[bytes], str], make: Callable[[], bytes]
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as members:
        members.writestr("config.json", make())
        members.writestr("model.weights.h5", WEIGHTS)
    path = stored(buffer.getvalue())
    started, said = time.process_time(), [""]
    try:
        said = [found.what + found.where for found in examine(path).findings]
    except ModelError as error:
        said = [error.message]
    assert max(map(len, said), default=0) < 1000
    # Two seconds on an idle processor; a busy one shares its units with others.
    assert time.process_time() - started < 8


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (item("Reshape", target_shape=[999999999] * 100_000), "`target_shape` = [999999999, "),
        (item("Embedding", input_dim=2**19, output_dim=2**19), "`input_dim` = 524288 and `outp"),
        (item("Conv2D", filters=9999, kernel_size=[999, 999]), "`kernel_size` = [999, 999]"),
        (item("LSTM", units=9999, recurrent_initializer="zeros"), "`units` = 9999"),
        (item("MultiHeadAttention", num_heads=99999, key_dim=99999), "`key_dim` = 99999"),
    ],
    ids=lambda value: value["class_name"] if isinstance(value, dict) else "",
)
def test_sizes_that_are_absurd_together_are_refused(
    stored: Callable[[bytes], str], layer: Any, words: str
) -> None:
    found = [danger.what for danger in examine(stored(archive(with_layer(layer)))).dangers]
    assert len(found) == 1
    assert words in found[0]
    assert len(found[0]) < 200


def test_layers_make_no_more_weights_than_the_file_can_hold(stored: Callable[[bytes], str]) -> None:
    layers = [item("InputLayer", batch_shape=[None, 2])]
    for place in range(2):
        layers.append(item("Dense", units=2**20, kernel_initializer="zeros"))
        layers[-1]["config"]["name"] = f"dense_{place}"
    path = stored(archive(item("Sequential", "keras", layers=layers)))
    with pytest.raises(ModelError, match=r"`dense_1` makes weights of the shape \(1048576, 1048"):
        load(path)


def bomb(count: int, mebibytes: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as members:
        members.writestr("config.json", json.dumps(CONFIG))
        members.writestr("model.weights.h5", WEIGHTS)
        for number in range(count):
            with members.open(f"assets/{number}", "w") as member:
                for _ in range(mebibytes):
                    member.write(bytes(1 << 20))
    return buffer.getvalue()


@pytest.mark.parametrize(("count", "mebibytes"), [(1, 70), (4, 20), (80, 1)])
def test_an_archive_may_not_grow_as_a_whole(
    stored: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch, count: int, mebibytes: int
) -> None:
    path = stored(bomb(count, mebibytes))
    monkeypatch.setattr(zipfile.ZipFile, "open", None)  # nothing is unpacked to know it
    with pytest.raises(ModelError, match=r"would grow from [0-9,]+ to [0-9,]+ bytes"):
        examine(path)


def test_an_archive_that_grows_little_passes(stored: Callable[[bytes], str]) -> None:
    assert examine(stored(bomb(4, 10))).findings == ()


def many_claims(file: h5py.File) -> None:
    for number in range(9):
        file.create_dataset(f"x{number}", (2_500_000,), "f4", chunks=(2**20,), compression=1)


def unpacked_often(file: h5py.File) -> None:
    chunks = (3 << 20, 1)
    file.create_dataset("x", (3 << 20, 16), "u1", chunks=chunks, compression=1)


@pytest.mark.parametrize("change", [many_claims, unpacked_often])
def test_an_hdf5_file_may_not_grow_as_a_whole(
    stored: Callable[[bytes], str],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[h5py.File], None],
) -> None:
    monkeypatch.setattr(security_archive, "BLOCK_BYTES", 4 << 20)
    found = examine(stored(h5_of(CONFIG, change))).dangers
    assert [danger.what for danger in found[:1]]
    assert "weights that grow from" in found[0].what


def texts_at_one_place() -> bytes:
    """An attribute of many texts of any length, each of which is made to be the longest one."""

    def change(file: h5py.File) -> None:
        file.attrs["a_names"] = np.array([f"y{n}" for n in range(2000)], h5py.string_dtype())
        file.attrs["z_text"] = "x" * (4 << 20)

    content = bytearray(h5_of(CONFIG, change))
    short, long = struct.pack("<I", 2), struct.pack("<I", 4 << 20)
    found = [place for place in range(len(content)) if content.startswith(long, place)]
    places = (struct.unpack("<QI", content[place + 4 : place + 16]) for place in found)
    reference = next(
        bytes(content[place : place + 16])
        for place, (address, _) in zip(found, places, strict=True)
        if content[address : address + 4] == b"GCOL"
    )
    first = next(
        place
        for place in range(len(content))
        if all(content.startswith(short, place + 16 * step) for step in range(9))
    )
    content[first : first + 16 * 2000] = reference * 2000
    return bytes(content)


def test_texts_of_any_length_may_not_fill_the_memory(stored: Callable[[bytes], str]) -> None:
    with pytest.raises(ModelError, match="memory"):
        examine(stored(texts_at_one_place()))


def test_show_tells_of_the_copy_that_it_hashed(
    stored: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = stored(archive(CONFIG))
    clean = examine(path).sha256
    copied = shutil.copyfile

    def swap(source: str, target: Path) -> None:
        copied(source, target)
        Path(source).write_bytes(archive(with_layer(item("Lambda"))))

    monkeypatch.setattr(security.shutil, "copyfile", swap)
    facts = show(path).facts
    assert (facts["sha256"], facts["findings"], facts["load_error"]) == (clean, [], None)
    assert [field["name"] for field in facts["outputs"]] == ["embedding"]
    assert examine(path).sha256 != clean


CUSTOM = {**item("L2Distance", "mine.layers"), "registered_name": "mine>L2Distance"}


@pytest.mark.parametrize(
    ("layer", "trusted", "words"),
    [
        (CUSTOM, "mine.layers.L2Distance", None),
        (CUSTOM, "mine.L2Distance", "refused by the safety gate"),
        (CUSTOM, "other.layers.L2Distance", "refused by the safety gate"),
        (
            {**CUSTOM, "module": "x", "registered_name": "x>L2Distance"},
            "mine.L2Distance",
            "refused by the safety gate",
        ),
        ({**CUSTOM, "module": None}, "mine.layers.L2Distance", None),
        (
            {**CUSTOM, "module": None, "registered_name": "x>Evil"},
            "mine.L2Distance",
            "refused by the safety gate",
        ),
        (item("Popen", "subprocess"), "subprocess.Popen", "refused by the safety gate"),
        (
            item("load_model", "keras.models"),
            "keras.models.load_model",
            "refused by the safety gate",
        ),
    ],
)
def test_a_class_is_trusted_by_its_whole_name(
    stored: Callable[[bytes], str], layer: Any, trusted: str, words: str | None
) -> None:
    model = Model(path=stored(archive(with_layer(layer))), trust={"classes": [trusted]})
    if words is None:
        with admit(model):
            pass
    else:
        with pytest.raises(ModelError, match=words), admit(model):
            pass


@keras.saving.register_keras_serializable("corpus")
class Twice(keras.layers.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return 2 * x


def test_a_trusted_class_stands_for_no_other_name(
    stored: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for registered, words in (("corpus>Twice", None), ("x>Twice", "needs the class `x>Twice`")):
        layer = {**item("Twice", None), "registered_name": registered}
        path = stored(archive(with_layer(layer)))
        trust = {"classes": [f"{Twice.__module__}.Twice"]}
        monkeypatch.setattr("batchnorm_tool.models.backends.loading._imported", lambda name: Twice)
        if words is None:
            load(path, trust=trust)
        else:
            with pytest.raises(ModelError, match=words):
                load(path, trust=trust)


@pytest.mark.parametrize(
    ("config", "advice"),
    [
        (with_layer(CUSTOM), "{classes: [mine.layers.L2Distance]}"),
        (with_layer({**CUSTOM, "module": None}), "{classes: [my_package.layers.L2Distance]}"),
        (with_dense(activation=function("os", "system")), None),
        (with_dense(activation=function("keras.utils", "get_file")), None),
        (with_dense(activation=function("builtins", "eval")), None),
        (with_dense(activation=function("mine", "mish", "mine>mish")), None),
        (with_layer(item("Popen", "subprocess")), None),
        (with_layer(item("not a name", "mine")), None),
    ],
)
def test_only_classes_that_may_be_named_are_advised(
    stored: Callable[[bytes], str], config: Any, advice: str | None
) -> None:
    with pytest.raises(ModelError) as caught, admit(Model(path=stored(archive(config)))):
        pass
    assert ("classes: [" in caught.value.message) == (advice is not None)
    assert advice is None or advice in caught.value.message


def test_the_flag_that_a_refusal_names_works_without_a_job_file(tmp_path: Path, rows: Path) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: 2 * x)])
    model.save(tmp_path / "model.keras")
    command = ("run", tmp_path / "model.keras", rows, tmp_path / "out")
    refused = invoke(*command)
    assert refused.exit_code == 2
    flag = refused.output.rpartition("`--set ")[2].partition("`")[0]
    done = invoke(*command, "--set", *shlex.split(flag))
    assert (done.exit_code, (tmp_path / "out" / "_SUCCESS").exists()) == (0, True)


def tflite(path: Path) -> None:
    path.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(40))


def tensorflow_js(path: Path) -> None:
    path.mkdir()
    text = '{"format": "layers-model", "generatedBy": "keras v2.7.0", "modelTopology": {}}'
    (path / "model.json").write_text(text)
    (path / "group1-shard1of1.bin").write_bytes(b"")


def tensorflow_js_graph(path: Path) -> None:
    path.mkdir()
    (path / "model.json").write_text('{"format": "graph-model", "modelTopology": {}}')
    (path / "group1-shard1of1.bin").write_bytes(b"")


def folder_of_tflite(path: Path) -> None:
    path.mkdir()
    tflite(path / "m.tflite")


def tensorflow_js_file(path: Path) -> None:
    path.write_text('{"modelTopology": {"class_name": "Sequential"}}')


def versions(path: Path) -> None:
    for name in ("2", "10"):
        (path / name).mkdir(parents=True)
        (path / name / "saved_model.pb").write_bytes(b"")


def folder_of_models(path: Path) -> None:
    path.mkdir()
    (path / "best.keras").write_bytes(archive(CONFIG))


def checkpoint(path: Path) -> None:
    path.mkdir()
    (path / "checkpoint").write_text("")
    (path / "ckpt-1.index").write_bytes(b"")


def pytorch(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as members:
        members.writestr("model/data.pkl", b"")


def safetensors(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 9) + b'{"a":{}}')


def architecture_alone(path: Path) -> None:
    path.write_text(json.dumps({"class_name": "Sequential", "config": {}}))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (tflite, "a TFLite (LiteRT) model. Use the original Keras model"),
        (
            folder_of_tflite,
            "a folder with m.tflite in it, a TFLite (LiteRT) model. Use the original Keras",
        ),
        (tensorflow_js, "a TensorFlow.js model. Convert it back: `tensorflowjs_converter"),
        (tensorflow_js_graph, "a TensorFlow.js model of the format graph-model, which cannot be"),
        (tensorflow_js_file, "a TensorFlow.js model. Convert it back: `tensorflowjs_converter"),
        (versions, "a folder of SavedModels: 10, 2. Use one of them, such as {path}/10"),
        (folder_of_models, "a folder with the model best.keras in it. Use {path}/best.keras"),
        (checkpoint, "a checkpoint: weights only"),
        (pytorch, "a PyTorch model"),
        (safetensors, "a safetensors file: weights only"),
        (architecture_alone, "an architecture without weights"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_model_of_another_program_is_told_as_what_it_is(
    tmp_path: Path, rows: Path, write: Callable[[Path], None], words: str
) -> None:
    path = tmp_path / "given"
    write(path)
    for command in (("show", path), ("run", path, rows, tmp_path / "out")):
        done = invoke(*command)
        assert done.exit_code == 2, done.output
        assert words.format(path=path) in " ".join(done.output.split())


def keras_2(config: Any) -> bytes:
    def change(file: h5py.File) -> None:
        file.attrs["keras_version"] = "2.4.0"

    return h5_of(config, change)


OLD = {
    "a list of layers": {"class_name": "Sequential", "config": []},
    "a setting of its own": with_dense(time_major=False, padding_of_old="x" * 900),
    "another setting": with_layer({"class_name": "BatchNormalization", "config": {"mode": 0}}),
}


@pytest.mark.parametrize("config", OLD.values(), ids=OLD.keys())
def test_a_file_of_keras_2_is_called_one(stored: Callable[[bytes], str], config: Any) -> None:
    with pytest.raises(ModelError, match="It was written by Keras 2") as caught:
        load(stored(keras_2(config)))
    assert "tf_keras" in caught.value.message


def named_keras_2(module: str, class_name: str = "Dense", **config: Any) -> dict[str, Any]:
    inner = {"name": "it", "trainable": True, **config}
    return {"module": module, "class_name": class_name, "config": inner, "registered_name": None}


@pytest.mark.parametrize(
    ("layer", "danger"),
    [
        (named_keras_2("keras.src.engine.functional", "Functional"), None),
        (named_keras_2("tf_keras.src.engine.sequential", "Sequential"), None),
        (named_keras_2("tf_keras.layers"), None),
        (named_keras_2("tf_keras.layers", "Lambda"), "a Lambda layer"),
        (named_keras_2("tf_keras.layers", "TFSMLayer"), "a TFSMLayer"),
        (named_keras_2("tf_keras.utils", "get_file"), "the custom class `get_file`"),
        (named_keras_2("tf_keras", "losses"), "the custom class `losses`"),
        (named_keras_2("keras.src.engine.functional", "os"), "the custom class `os`"),
        ({"class_name": "TFOpLambda", "config": {"function": "math.add"}}, None),
        ({"class_name": "SlicingOpLambda", "config": {"function": "__operators__.getitem"}}, None),
        (
            named_keras_2("tf_keras.src.layers.core.tf_op_layer", "TFOpLambda", function="concat"),
            None,
        ),
        (
            named_keras_2("my.module", "TFOpLambda", function="concat"),
            "a call of TensorFlow's `concat`",
        ),
        (
            {"class_name": "TFOpLambda", "config": {"function": "io.write_file"}},
            "a call of TensorFlow's `io.write_file`",
        ),
        ({"class_name": "ClassMethod", "config": {}}, "a call of TensorFlow's `ClassMethod`"),
        (
            {"class_name": "TensorFlowOpLayer", "config": {"function": "concat"}},
            "a call of TensorFlow's `concat`",
        ),
    ],
    ids=str,
)
def test_what_keras_2_alone_has_is_judged_like_the_rest(
    stored: Callable[[bytes], str], layer: dict[str, Any], danger: str | None
) -> None:
    report = security.examine(stored(h5_of(with_layer(layer))))
    assert report.is_of_keras_2
    assert report.needs_keras_2 in (layer.get("module"), layer["class_name"])
    found = [finding.what for finding in report.dangers]
    assert [what.startswith(danger or "") for what in found] == ([True] if danger else [])


OPERATIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "mean": (
        lambda x: keras.ops.mean(x, axis=-1, keepdims=True),
        "contains a Keras operation.*`Mean`",
    ),
    "part": (lambda x: x[:, :1], "contains a Keras operation, `GetItem`"),
    "sum": (lambda x: x + x, "cannot store operations such as `a \\+ b`"),
}


@pytest.mark.parametrize(("compute", "words"), OPERATIONS.values(), ids=OPERATIONS.keys())
def test_operations_that_hdf5_cannot_hold_are_told(
    tmp_path: Path, compute: Callable[[Any], Any], words: str
) -> None:
    row = keras.Input((2,))
    path = str(tmp_path / "model.h5")
    keras.Model(row, compute(row)).save(path)
    with pytest.raises(ModelError, match=rf"{words}.*Save the model as \.keras"):
        load(path)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: convnext.LayerScale(0.5, 2),
        lambda: convnext.StochasticDepth(0.1),
        feature_space.TFDIdentity,
        lambda: feature_space.TFDConcat(axis=1),
        lambda: inception_resnet_v2.CustomScaleLayer(0.5),
    ],
    ids=["scale", "depth", "identity", "concatenation", "sum"],
)
def test_layers_inside_of_what_keras_offers_are_its_own(
    tmp_path: Path, layer: Callable[[], Any]
) -> None:
    row = keras.Input((2,))
    takes_two = layer().name.startswith(("tfd_concat", "custom"))
    path = str(tmp_path / "model.keras")
    keras.Model(row, layer()([row, row] if takes_two else row)).save(path)
    assert examine(path).findings == ()
    load(path)


def test_a_function_that_is_missing_is_told(stored: Callable[[bytes], str]) -> None:
    function_of_theirs = function("theirs", "builtins")
    path = stored(archive(with_dense(activation=function_of_theirs)))
    with pytest.raises(ModelError, match=r"a custom function.*model\.export\(\)"):
        load(path, trust=f"sha256:{examine(path).sha256}")


def test_what_keras_says_in_color_is_told_without() -> None:
    error = NameError("Exception in call().\n\n\x1b[1mname 'tf' is not defined\x1b[0m\n\nArguments")
    said = describe_failure(error, "Else.")
    assert said.startswith("Its own Python code")
    assert said.endswith("NameError: Exception in call(). name 'tf' is not defined Arguments")


def test_the_end_of_what_keras_says_is_quoted(stored: Callable[[bytes], str]) -> None:
    path = stored(archive(with_dense(padding_of_old="x" * 900, units_of_old=3)))
    with pytest.raises(ModelError, match=r"Keras says: TypeError: .{100,500}units_of_old': 3}\S*$"):
        load(path)


@pytest.mark.parametrize("shape", [None, (2,)], ids=["when loaded", "when it is called"])
def test_a_trusted_lambda_that_lacks_a_name_is_refused(
    tmp_path: Path, rows: Path, shape: tuple[int, ...] | None
) -> None:
    call = eval("lambda x: no_such_module.abs(x)")  # noqa: S307  as a notebook has it
    layer = keras.layers.Lambda(call, output_shape=shape, name="added")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    path = tmp_path / "model.keras"
    path.write_bytes(archive(with_layer(config)))
    trust = f"model.trust=sha256:{examine(str(path)).sha256}"
    done = invoke("run", path, rows, tmp_path / "out", "--set", trust)
    assert done.exit_code == 2
    assert "name 'no_such_module' is not defined" in done.output


def test_what_keras_warns_of_stays_away(stored: Callable[[bytes], str]) -> None:
    path = stored(archive(with_dense(input_shape=[2])))
    with pytest.warns(UserWarning, match="Do not pass an `input_shape`"):
        keras.saving.load_model(path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        load(path)
    assert said == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (archive(with_layer(item("Lambda"))), "refused by the safety gate"),
        (archive(with_dense(unknown_setting=1)), "does not load"),
    ],
    ids=["refused", "does not load"],
)
def test_show_ends_with_2_where_a_model_does_not_load(
    stored: Callable[[bytes], str], content: bytes, words: str
) -> None:
    path = stored(content)
    report = invoke("show", path)
    assert (report.exit_code, examine(path).sha256 in report.stdout) == (2, True)
    assert words in report.stderr
    document = invoke("show", path, "--json")
    assert document.exit_code == 2
    assert words in json.loads(document.stdout)["load_error"]
    quiet = invoke("show", path, "--quiet")
    assert (quiet.exit_code, quiet.stdout) == (2, "")
    assert words in quiet.stderr


def test_a_name_without_end_is_not_advised(stored: Callable[[bytes], str]) -> None:
    with (
        pytest.raises(ModelError, match="refused by the safety gate") as caught,
        admit(Model(path=stored(archive(with_layer(item("A" * 100_000, "mypk")))))),
    ):
        pass
    assert len(caught.value.message) < 2000
    assert "model.trust: sha256:" in caught.value.message
    assert "classes" not in caught.value.message
