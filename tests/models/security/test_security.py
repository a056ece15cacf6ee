from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from batchnorm_tool.errors import ModelError
from batchnorm_tool.job import Model
from batchnorm_tool.models.security import admit, examine
from batchnorm_tool.models.security.keras_allowlist import canonical_architecture, short

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

pytestmark = pytest.mark.usefixtures("tensorflow")

Edit = Callable[[dict[str, Any]], None]


def small_model() -> Any:
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,), name="features"),
            keras.layers.Dense(3, activation="relu", name="hidden"),
            keras.layers.Dropout(0.1, name="dropout"),
            keras.layers.Dense(2, name="embedding"),
        ],
        name="encoder",
    )
    model.compile("adam", "mse")
    return model


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model in every form."""
    folder = tmp_path_factory.mktemp("models")
    model = small_model()
    model.save(folder / "model.keras")
    model.save(folder / "model.h5")
    model.save_weights(folder / "only.weights.h5")
    model.export(str(folder / "saved_model"), verbose=False)
    return folder


@pytest.fixture
def edited(stored: Path, tmp_path: Path) -> Callable[[Edit], str]:
    """Writes the ``.keras`` file with another ``config.json``."""

    def write(edit: Edit) -> str:
        with zipfile.ZipFile(stored / "model.keras") as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        config = json.loads(members["config.json"])
        edit(config)
        members["config.json"] = json.dumps(config).encode()
        return write_archive(tmp_path / "edited.keras", members)

    return write


def write_archive(path: Path, members: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return str(path)


def first_dense(config: dict[str, Any]) -> dict[str, Any]:
    return next(item for item in config["config"]["layers"] if item["class_name"] == "Dense")


def add_layer(class_name: str, module: str | None = "keras.layers", **inner: Any) -> Edit:
    def edit(config: dict[str, Any]) -> None:
        layer = {"module": module, "class_name": class_name, "registered_name": None}
        config["config"]["layers"].append({**layer, "config": {"name": "added", **inner}})

    return edit


def change_dense(**changes: Any) -> Edit:
    return lambda config: first_dense(config)["config"].update(changes)


@pytest.mark.parametrize(
    ("name", "kind"), [("model.keras", "keras"), ("model.h5", "h5"), ("saved_model", "saved_model")]
)
def test_a_model_of_known_classes_has_no_findings(stored: Path, name: str, kind: str) -> None:
    report = examine(str(stored / name))
    assert (report.kind, report.findings, report.classes) == (kind, (), ())
    assert len(report.sha256) == len(report.content) == 64


def test_content_counts_and_not_the_suffix(stored: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    shutil.copy(stored / "model.h5", path)
    with admit(Model(path=str(path))) as admitted:
        assert admitted.report.kind == "h5"
        assert admitted.path.endswith(".h5")


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_the_same_model_saved_twice_has_the_same_content(tmp_path: Path, suffix: str) -> None:
    import keras

    first, second = str(tmp_path / f"a.{suffix}"), str(tmp_path / f"b.{suffix}")
    model = small_model()
    model.save(first)
    keras.saving.load_model(first, compile=False).save(second)
    assert examine(first).content == examine(second).content
    assert examine(first).sha256 != examine(second).sha256


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_one_other_weight_is_another_content(tmp_path: Path, suffix: str) -> None:
    first, second = str(tmp_path / f"a.{suffix}"), str(tmp_path / f"b.{suffix}")
    model = small_model()
    model.save(first)
    bias = model.get_layer("embedding").bias
    bias.assign(bias + np.float32(2**-20))
    model.save(second)
    assert examine(first).content != examine(second).content


def test_training_settings_are_no_part_of_the_content(tmp_path: Path) -> None:
    first, second = str(tmp_path / "a.keras"), str(tmp_path / "b.keras")
    model = small_model()
    model.save(first)
    model.compile("sgd", "mae")
    model.fit(np.zeros((2, 4)), np.zeros((2, 2)), epochs=0, verbose=0)
    model.save(second)
    assert examine(first).content == examine(second).content


def test_another_setting_of_a_layer_is_another_content(
    stored: Path, edited: Callable[[Edit], str]
) -> None:
    other = examine(edited(change_dense(activation="tanh")))
    assert other.content != examine(str(stored / "model.keras")).content


def test_shared_objects_are_told_apart_by_their_order_alone() -> None:
    config = {"shared_object_id": 1397, "compile_config": {}}
    assert canonical_architecture(config) == {"shared_object_id": 0}


def test_values_of_a_file_are_shown_in_short() -> None:
    assert (short("Dense"), short([1] * 1000)) == ("Dense", "[1, 1, 1, 1, ...]")


LAMBDA_OF_A_SAVED_MODEL = {
    "module": "keras.layers",
    "class_name": "TFSMLayer",
    "config": {"filepath": "/tmp/elsewhere"},
    "registered_name": None,
}
DEEP: dict[str, Any] = {}
for _ in range(200):
    DEEP = {"config": DEEP}

DANGERS: dict[str, tuple[Edit, str]] = {
    "lambda": (add_layer("Lambda", function="x"), "Lambda layer"),
    "lambda that names TFSMLayer": (
        add_layer("Lambda", function=LAMBDA_OF_A_SAVED_MODEL),
        "TFSMLayer",
    ),
    "lambda by its inner module": (
        add_layer("Lambda", "keras.src.layers.core.lambda_layer"),
        "Lambda layer",
    ),
    "TFSMLayer": (add_layer("TFSMLayer", filepath="/tmp/x"), "TFSMLayer"),
    "python lambda as activation": (
        change_dense(activation={"class_name": "__lambda__", "config": {"value": "x"}}),
        "Python lambda",
    ),
    "function of another module": (
        change_dense(
            activation={
                "module": "keras.utils",
                "class_name": "function",
                "config": "get_file",
                "registered_name": "get_file",
            }
        ),
        "custom function `get_file`",
    ),
    "loader as a class": (add_layer("load_model", "keras.models"), "load_model"),
    "class of any other module": (add_layer("Popen", "subprocess"), "`Popen` of subprocess"),
    "vocabulary path": (add_layer("StringLookup", vocabulary="/etc/passwd"), "/etc/passwd"),
    "absurd units": (change_dense(units=10**9), "`units` = 1000000000"),
    "absurd shape": (
        add_layer("Reshape", target_shape=[100_000, 100_000]),
        "`target_shape` = [100000, 100000]",
    ),
    "compile settings of an inner model": (
        lambda config: config["config"]["layers"].append(
            {
                "module": "keras",
                "class_name": "Sequential",
                "config": {"name": "inner", "layers": []},
                "compile_config": {"loss": {"module": "os", "class_name": "x", "config": {}}},
            }
        ),
        "`x` of os",
    ),
}


@pytest.mark.parametrize(("edit", "words"), DANGERS.values(), ids=DANGERS.keys())
def test_a_dangerous_architecture_is_refused(
    edited: Callable[[Edit], str], edit: Edit, words: str
) -> None:
    path = edited(edit)
    assert any(words in finding.what for finding in examine(path).dangers)
    with (
        pytest.raises(ModelError, match="refused by the safety gate") as caught,
        admit(Model(path=path)),
    ):
        pass
    assert words in caught.value.message
    assert f"sha256:{examine(path).sha256}" in caught.value.message


def test_compile_settings_of_the_model_itself_do_not_matter(edited: Callable[[Edit], str]) -> None:
    loss = {"module": None, "class_name": "MyLoss", "config": {}, "registered_name": "me>MyLoss"}
    path = edited(lambda config: config.update(compile_config={"loss": loss}))
    assert examine(path).findings == ()


def test_a_lambda_in_an_old_h5_file_is_refused(stored: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "model.h5")
    shutil.copy(stored / "model.h5", path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        layer = {"class_name": "Lambda", "config": {"name": "l", "function": ["4wEA", None, None]}}
        config["config"]["layers"].append(layer)
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(ModelError, match="Lambda layer"), admit(Model(path=path)):
        pass


def external_link(file: h5py.File) -> None:
    file["model_weights/elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")


def symbolic_link(file: h5py.File) -> None:
    file["model_weights/again"] = h5py.SoftLink("/model_weights")


def external_storage(file: h5py.File) -> None:
    file.create_dataset("model_weights/raw", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def virtual_dataset(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "data", (4,))
    file.create_virtual_dataset("model_weights/virtual", layout)


def empty_claim(file: h5py.File) -> None:
    file.create_dataset("model_weights/claim", (10**12,), "f4", chunks=(1024,), compression="gzip")


@pytest.mark.parametrize(
    ("add", "words"),
    [
        (external_link, "HDF5 external link"),
        (symbolic_link, "HDF5 symbolic link"),
        (external_storage, "HDF5 external storage"),
        (virtual_dataset, "HDF5 virtual dataset"),
        (empty_claim, "to 4,000,000,000,000 bytes"),
    ],
)
def test_hdf5_that_leads_elsewhere_is_refused(
    stored: Path, tmp_path: Path, add: Callable[[h5py.File], None], words: str
) -> None:
    path = str(tmp_path / "model.h5")
    shutil.copy(stored / "model.h5", path)
    with h5py.File(path, "r+") as file:
        add(file)
    with pytest.raises(ModelError, match=words), admit(Model(path=path)):
        pass


def test_hdf5_with_a_loop_of_links_is_refused(stored: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "model.h5")
    shutil.copy(stored / "model.h5", path)
    with h5py.File(path, "r+") as file:
        file["model_weights/loop"] = file["model_weights"]
    with pytest.raises(ModelError, match="under two names"):
        examine(path)


def test_external_links_in_the_weights_of_an_archive_are_refused(
    stored: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "model.weights.h5"
    with zipfile.ZipFile(stored / "model.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    weights.write_bytes(members["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        file["layers/dense/vars/elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")
    members["model.weights.h5"] = weights.read_bytes()
    path = write_archive(tmp_path / "model.keras", members)
    with pytest.raises(ModelError, match="HDF5 external link"), admit(Model(path=path)):
        pass


def saved_module(path: Path, body: Callable[[Any], Any]) -> str:
    import tensorflow as tf

    class Module(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32)])
        def __call__(self, x: Any) -> Any:
            return body(x)

    module = Module()
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.__call__})
    return str(path)


def write_file(x: Any) -> Any:
    import tensorflow as tf

    tf.io.write_file("/tmp/batchnorm_tool_must_not_exist", "x")
    return x


def print_to_a_file(x: Any) -> Any:
    import tensorflow as tf

    tf.print(x, output_stream="file:///tmp/batchnorm_tool_must_not_exist")
    return x


def python_function(x: Any) -> Any:
    import tensorflow as tf

    return tf.ensure_shape(tf.numpy_function(lambda a: a, [x], tf.float32), (None, 4))


def save_a_checkpoint(x: Any) -> Any:
    import tensorflow as tf

    tf.raw_ops.SaveV2(
        prefix="/tmp/batchnorm_tool_must_not_exist",
        tensor_names=["x"],
        shape_and_slices=[""],
        tensors=[x],
    )
    return x


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (write_file, "the operation WriteFile"),
        (print_to_a_file, "the operation PrintV2"),
        (python_function, "the operation PyFunc"),
        (save_a_checkpoint, "a checkpoint operation outside the saver"),
    ],
)
def test_a_graph_that_does_more_than_compute_is_refused(
    tmp_path: Path, body: Callable[[Any], Any], words: str
) -> None:
    path = saved_module(tmp_path / "saved", body)
    with pytest.raises(ModelError, match=words), admit(Model(path=path)):
        pass


def test_a_file_operation_deep_in_the_function_library_is_refused(tmp_path: Path) -> None:
    def branch(x: Any) -> Any:
        import tensorflow as tf

        size = tf.cast(tf.strings.length(tf.io.read_file("/etc/passwd")), tf.float32)
        return tf.while_loop(lambda y: tf.reduce_sum(y) < 1, lambda y: (y + size,), (x,))[0]

    path = saved_module(tmp_path / "saved", lambda x: _cond(x, branch))
    found = examine(path).dangers
    assert {finding.what for finding in found} == {"the operation ReadFile"}
    assert all("the function " in finding.where for finding in found)


def _cond(x: Any, branch: Callable[[Any], Any]) -> Any:
    import tensorflow as tf

    return tf.cond(tf.reduce_sum(x) > 1, lambda: branch(x), lambda: x)


def test_a_lookup_table_in_memory_passes(tmp_path: Path) -> None:
    import keras

    words = keras.Input((1,), dtype="string")
    numbers = keras.layers.StringLookup(vocabulary=["a", "b"])(words)
    model = keras.Model(words, keras.layers.Flatten()(keras.layers.Embedding(4, 2)(numbers)))
    model.save(tmp_path / "model.keras")
    model.export(str(tmp_path / "saved"), verbose=False)
    assert examine(str(tmp_path / "model.keras")).findings == ()
    assert examine(str(tmp_path / "saved")).findings == ()


def test_an_asset_path_that_leads_out_is_refused(stored: Path, tmp_path: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    shutil.copytree(stored / "saved_model", tmp_path / "saved")
    path = tmp_path / "saved" / "saved_model.pb"
    graph = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    graph.meta_graphs[0].asset_file_def.add().filename = "../../etc/passwd"
    path.write_bytes(graph.SerializeToString())
    with (
        pytest.raises(ModelError, match="an asset outside the model"),
        admit(Model(path=str(tmp_path / "saved"))),
    ):
        pass


def test_a_saver_that_a_signature_runs_is_refused(stored: Path, tmp_path: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    shutil.copytree(stored / "saved_model", tmp_path / "saved")
    path = tmp_path / "saved" / "saved_model.pb"
    content = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    graph = content.meta_graphs[0]
    saver = graph.saver_def.save_tensor_name.partition(":")[0]
    next(node for node in graph.graph_def.node if node.name == "NoOp").input.append(f"^{saver}")
    path.write_bytes(content.SerializeToString())
    with (
        pytest.raises(ModelError, match="a checkpoint operation outside the saver"),
        admit(Model(path=str(tmp_path / "saved"))),
    ):
        pass


def unpacked(stored: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model"
    with zipfile.ZipFile(stored / "model.keras") as archive:
        archive.extractall(path)
    return path


def truncated(stored: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.keras"
    path.write_bytes((stored / "model.keras").read_bytes()[:-500])
    return path


def truncated_h5(stored: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.h5"
    path.write_bytes((stored / "model.h5").read_bytes()[:5000])
    return path


def truncated_graph(stored: Path, tmp_path: Path) -> Path:
    path = tmp_path / "saved"
    shutil.copytree(stored / "saved_model", path)
    graph = path / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:-9])
    return path


def traversal(stored: Path, tmp_path: Path) -> Path:
    with zipfile.ZipFile(stored / "model.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return Path(write_archive(tmp_path / "model.keras", {**members, "../../evil": b""}))


def bomb(stored: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("model.weights.h5", "w", force_zip64=True) as member:
            for _ in range(300):
                member.write(bytes(1 << 20))
        archive.writestr("config.json", "{}")
    return path


def deep(stored: Path, tmp_path: Path) -> Path:
    config = json.dumps(DEEP).encode()
    members = {"config.json": config, "metadata.json": b"{}", "model.weights.h5": b""}
    return Path(write_archive(tmp_path / "model.keras", members))


def deeper_than_python(stored: Path, tmp_path: Path) -> Path:
    members = {"config.json": b"[" * 10**6, "metadata.json": b"{}", "model.weights.h5": b""}
    return Path(write_archive(tmp_path / "model.keras", members))


def lfs_pointer(stored: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.keras"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    return path


def named_pipe(stored: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.keras"
    os.mkfifo(path)
    return path


def something_else(stored: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.keras"
    path.write_bytes(b"\x08\x07onnx and more")
    return path


UNREADABLE: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "truncated archive": (truncated, "damaged or cut short"),
    "truncated hdf5": (truncated_h5, "damaged or cut short"),
    "truncated graph": (truncated_graph, "saved_model.pb is damaged: it is truncated"),
    "path traversal": (traversal, r"`\.\./\.\./evil` leads out of the archive"),
    "zip bomb": (bomb, "would grow from"),
    "deeply nested": (deep, "nested more than 100 levels deep"),
    "nested beyond Python": (deeper_than_python, "nested more than 100 levels deep"),
    "weights only": (lambda stored, _: stored / "only.weights.h5", "contains weights only"),
    "LFS pointer": (lfs_pointer, "git lfs pull"),
    "named pipe": (named_pipe, "not a file or directory"),
    "another kind of file": (something_else, "not a Keras model"),
    "empty directory": (lambda _, tmp_path: tmp_path, "a directory without saved_model.pb"),
    "unpacked archive": (unpacked, "an unpacked .keras archive"),
    "missing": (lambda _, tmp_path: tmp_path / "no.keras", "No such file"),
}


@pytest.mark.parametrize(("make", "words"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_is_no_whole_model_is_refused_with_its_reason(
    stored: Path, tmp_path: Path, make: Callable[[Path, Path], Path], words: str
) -> None:
    path = str(make(stored, tmp_path))
    with pytest.raises(ModelError, match=words) as caught:
        examine(path)
    assert path in caught.value.message
    with pytest.raises(ModelError, match=words), admit(Model(path=path)):
        pass


def custom_layer(config: dict[str, Any]) -> None:
    layer = {"module": None, "class_name": "Twice", "registered_name": "mine>Twice"}
    config["config"]["layers"].append({**layer, "config": {"name": "twice"}})


def test_a_trusted_class_passes(edited: Callable[[Edit], str]) -> None:
    path = edited(custom_layer)
    with admit(Model(path=path, trust={"classes": ["my_package.layers.Twice"]})) as admitted:
        assert admitted.report.classes == ("mine>Twice",)


def test_an_untrusted_class_is_refused_and_the_message_says_how_to_trust_it(
    edited: Callable[[Edit], str],
) -> None:
    path = edited(custom_layer)
    with (
        pytest.raises(ModelError, match=r"\{classes: \[my_package\.layers\.Twice\]\}"),
        admit(Model(path=path, trust={"classes": ["my_package.layers.Thrice"]})),
    ):
        pass


def test_a_trusted_class_lets_no_lambda_pass(edited: Callable[[Edit], str]) -> None:
    def edit(config: dict[str, Any]) -> None:
        custom_layer(config)
        add_layer("Lambda")(config)

    path, trusted = edited(edit), ["my_package.layers.Twice", "keras.layers.Lambda"]
    with (
        pytest.raises(ModelError, match="Lambda"),
        admit(Model(path=path, trust={"classes": trusted})),
    ):
        pass


def test_trust_by_hash_lets_exactly_that_file_pass(edited: Callable[[Edit], str]) -> None:
    path = edited(add_layer("Lambda"))
    digest = examine(path).sha256
    with admit(Model(path=path, trust=f"sha256:{digest}")) as admitted:
        assert admitted.report.dangers
    with (
        pytest.raises(ModelError, match=r"not the file given by `model\.trust`"),
        admit(Model(path=path, trust="sha256:" + "0" * 64)),
    ):
        pass


def test_a_pinned_hash_refuses_any_other_file(stored: Path) -> None:
    path = str(stored / "model.keras")
    with admit(Model(path=path, sha256=examine(path).sha256)):
        pass
    with (
        pytest.raises(ModelError, match=r"given by `model\.sha256`"),
        admit(Model(path=path, sha256="0" * 64)),
    ):
        pass


def test_the_copy_is_private_and_unmoved_by_what_happens_to_the_original(
    stored: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.keras"
    shutil.copy(stored / "model.keras", path)
    with admit(Model(path=str(path))) as admitted:
        path.write_bytes(b"replaced")
        assert Path(admitted.path).read_bytes() == (stored / "model.keras").read_bytes()
        assert Path(admitted.path).parent.stat().st_mode & 0o077 == 0
    assert not Path(admitted.path).exists()


def test_dropout_that_runs_at_inference_is_worth_a_warning(tmp_path: Path) -> None:
    import keras

    features = keras.Input((4,))
    model = keras.Model(features, keras.layers.Dropout(0.5)(features, training=True))
    model.save(tmp_path / "model.keras")
    report = examine(str(tmp_path / "model.keras"))
    assert [(item.severity, item.what) for item in report.findings] == [
        ("warn", "dropout that is active at inference")
    ]
    with admit(Model(path=str(tmp_path / "model.keras"))):
        pass


def test_an_output_that_is_normalized_already_is_worth_a_warning(tmp_path: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.UnitNormalization()])
    model.save(tmp_path / "model.keras")
    assert [item.what for item in examine(str(tmp_path / "model.keras")).findings] == [
        "an output that is already normalized"
    ]


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "saved_model"])
def test_examining_takes_neither_tensorflow_nor_keras(stored: Path, name: str) -> None:
    program = (
        "import sys; from batchnorm_tool.models.security import examine; examine(sys.argv[1]);"
        "print([name for name in ('tensorflow', 'keras') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(stored / name)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
