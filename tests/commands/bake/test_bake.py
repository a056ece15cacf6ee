"""`bake`: the files that it writes, what they give anywhere, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from batchnorm_tool import bake, normalize, normalized, read, run
from batchnorm_tool.cli.app import cli
from batchnorm_tool.commands.bake.parity import Subject
from batchnorm_tool.contract import Contract
from batchnorm_tool.errors import InputError, JobError, ModelError, OutputError, capture_warnings
from batchnorm_tool.job import Job
from batchnorm_tool.models import security
from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.norms.normalization import Normalization
from batchnorm_tool.norms.output_spec import OutputSpec
from batchnorm_tool.storage import Storage

pytestmark = pytest.mark.usefixtures("tensorflow", "in_this_process")

# In a process that knows nothing of this package: what models give, as one array for each name.
BARE = """
import sys
import keras
import numpy as np
import tensorflow as tf
x = np.load("x.npy")
for number, path in enumerate(sys.argv[1:]):
    if path.endswith(".keras"):
        found = keras.saving.load_model(path, safe_mode=True).predict(x, verbose=0)
    else:
        loaded = tf.saved_model.load(path).signatures["serving_default"]
        found = {name: tensor.numpy() for name, tensor in loaded(tf.constant(x)).items()}
    np.savez(f"{number}.npz", **(found if isinstance(found, dict) else {"alone": found}))
assert not any(name.startswith("batchnorm_tool.") for name in sys.modules)
"""
ROWS = 100


@pytest.fixture(scope="module")
def model(samples: Path) -> Path:
    return samples / "digits_encoder.keras"


@pytest.fixture(scope="module")
def finished(model: Path, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run") / "out"
    job = {
        "input": {"path": str(samples / "digits.parquet"), "key": "id"},
        "model": {"path": str(model), "layer": "hidden"},
        "normalize": {"norm": "l1", "truncate": 16, "project_mean": "fit"},
        "output": {"path": str(place), "dtype": "float16"},
    }
    run(Job.from_dict(job))
    return place


@dataclass(frozen=True)
class Written:
    """What was baked, and what each file gives for the first rows in a bare process."""

    directory: Path
    files: dict[str, Path]
    given: dict[str, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def written(
    model: Path, finished: Path, pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> Written:
    place = tmp_path_factory.mktemp("baked")
    both = ["keras", "savedmodel"]
    made = {
        "lp": bake(model, place / "lp", "lp:3", keep_norm=True, to=both),
        "one": bake(model, place / "one.keras"),
        "like": bake(model, place / "like", like=finished, to=both),
    }
    names = {path.name.removesuffix(".parity.json") for path in place.iterdir()}
    assert names == {"like", "lp", "one.keras"}, "something was left aside"
    files = {f"{key} {form}": path for key, one in made.items() for form, path in one.files.items()}
    np.save(place / "x.npy", pixels[:ROWS])
    command = [sys.executable, "-I", "-c", BARE, *map(str, files.values())]
    subprocess.run(command, check=True, cwd=place)
    given = {name: dict(np.load(place / f"{number}.npz")) for number, name in enumerate(files)}
    return Written(place, files, given)


def test_several_formats_are_in_a_directory(written: Written) -> None:
    assert written.files["lp keras"] == written.directory / "lp" / "model.keras"
    assert written.files["lp savedmodel"] == written.directory / "lp" / "saved_model"
    assert written.files["one keras"] == written.directory / "one.keras"


@pytest.mark.parametrize("form", ["keras", "savedmodel"])
def test_norms_are_beside_vectors_by_name(
    written: Written, predictions: np.ndarray, form: str
) -> None:
    expected, norms = normalize(predictions[:ROWS], "lp:3", return_norm=True)
    found = written.given[f"lp {form}"]
    assert sorted(found) == ["embedding", "embedding_norm"]
    np.testing.assert_allclose(found["embedding"], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["embedding_norm"], norms.reshape(-1, 1), rtol=1e-5)


def test_one_output_stays_a_tensor_of_its_name(written: Written, predictions: np.ndarray) -> None:
    found = written.given["one keras"]["alone"]
    np.testing.assert_allclose(found, normalize(predictions[:ROWS]), rtol=0, atol=1e-6)
    interface = security.examine(str(written.files["one keras"])).interface
    assert interface is not None
    assert interface.signatures[""].outputs == ("embedding",)


def test_the_gate_admits_what_was_written(written: Written) -> None:
    for path in written.files.values():
        assert security.examine(str(path)).findings == ()


@pytest.mark.parametrize("form", ["keras", "savedmodel"])
def test_like_a_run_gives_its_vectors(written: Written, finished: Path, form: str) -> None:
    _, vectors, _ = read(finished).to_numpy()
    (found,) = written.given[f"like {form}"].values()
    assert found.dtype == vectors.dtype == np.float16
    np.testing.assert_allclose(found, vectors[:ROWS], rtol=1e-3, atol=1e-6)


def test_like_a_run_names_its_space(written: Written, finished: Path) -> None:
    space = json.loads((finished / "_manifest.json").read_text())["space"]
    with zipfile.ZipFile(written.files["like keras"]) as archive:
        metadata = json.loads(archive.read("metadata.json"))
    assert metadata["batchnorm_tool.space"] == space
    assert metadata["keras_version"]
    beside = written.files["like savedmodel"] / "assets.extra" / "batchnorm_tool.json"
    assert json.loads(beside.read_text()) == {"batchnorm_tool.space": space}


def test_what_is_there_is_replaced_only_if_told(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "unit"
    bake(model, out, to=["savedmodel"])
    before = (out / "saved_model.pb").read_bytes()
    with pytest.raises(OutputError, match="--fresh"):
        bake(model, out, "l1", to=["savedmodel"])
    assert (out / "saved_model.pb").read_bytes() == before
    bake(model, out, "l1", to=["savedmodel"], fresh=True)
    assert (out / "saved_model.pb").read_bytes() != before
    assert {path.name for path in tmp_path.iterdir()} == {"unit", "unit.parity.json"}


def test_a_directory_of_other_files_is_never_replaced(model: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match=r"such as `letter\.txt`"):
        bake(model, tmp_path / "home", to=["savedmodel"], fresh=True)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "format": ({"to": ["kera"]}, JobError, "Did you mean `keras`"),
    "no format": ({"to": []}, JobError, "no format"),
    "norm": ({"norm": "l7"}, JobError, "Unknown norm"),
    "axis": ({"axis": 2}, JobError, "-1 or 'all'. Received: 2"),
    "like and norm": ({"like": "x", "norm": "l2"}, JobError, "Leave these out"),
    "like nothing": ({"like": "nowhere"}, InputError, "nowhere"),
    "suffix": ({"out": "unit.h5"}, OutputError, r"ends in \.keras. Received: `unit.h5`"),
    "layer": ({"layer": "dence"}, ModelError, "dence"),
    "output": ({"outputs": ["x"]}, ModelError, "no output `x`"),
    "lone output": ({"outputs": "xyz"}, ModelError, "no output `xyz`"),
    "lone format": ({"to": "kera"}, JobError, "Received: kera"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_and_nothing_written(
    case: str, model: Path, tmp_path: Path
) -> None:
    changed, kind, words = REFUSED[case]
    arguments = {**changed, "out": tmp_path / changed.get("out", "unit.keras")}
    with pytest.raises(kind, match=words):
        bake(model, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_converted_is_named_with_its_format(tmp_path: Path) -> None:
    text = keras.Input((1,), dtype="string", name="text")
    words = keras.layers.TextVectorization(vocabulary=["a", "b"], output_sequence_length=2)(text)
    path = tmp_path / "text.keras"
    keras.Model(text, keras.layers.Rescaling(1.0)(words)).save(path)
    with pytest.raises(ModelError, match=r"text\.keras: as onnx, ONNX has no .* Leave onnx out"):
        bake(path, tmp_path / "unit.onnx", to=["onnx"])
    assert list(tmp_path.iterdir()) == [path]


def test_only_a_model_in_memory_is_normalized() -> None:
    with pytest.raises(ModelError, match=r"Expected a built keras\.Model\. Received: str"):
        normalized("model.keras")  # type: ignore[arg-type]


def test_the_model_is_not_replaced_by_its_copy(model: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.keras"
    own.write_bytes(model.read_bytes())
    with pytest.raises(OutputError, match="the model itself"):
        bake(own, own, fresh=True)


def test_another_width_than_that_of_the_result_is_refused(
    finished: Path, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"Expected the shape \(\d+,\).*Received: \(32,\)"):
        bake(model, tmp_path / "unit.keras", like=finished, layer="embedding")


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_a_graph_does_not_quantize(dtype: Any, model: Path, tmp_path: Path) -> None:
    output = OutputSpec("embedding", (32,), -1, Normalization(Norm("l2"), dtype=dtype))
    like = tmp_path / "contract.json"
    like.write_bytes(Contract("space", (), (output,)).to_bytes())
    with pytest.raises(JobError, match=f"`embedding` is stored as {dtype}"):
        bake(model, tmp_path / "unit.keras", like=like)


def odd(*names: str) -> keras.Model:
    """A model that takes a dictionary with these keys, and gives one with ``end``."""
    inputs = {name: keras.Input((2,), name=name) for name in names}
    return keras.Model(inputs, {"end": keras.ops.concatenate([*inputs.values()], axis=-1)})


def test_inputs_of_any_name_are_taken(tmp_path: Path) -> None:
    odd("user id", "a-b").save(tmp_path / "odd.keras")
    baked = bake(tmp_path / "odd.keras", tmp_path / "out", to=["keras", "savedmodel"])
    loaded = keras.saving.load_model(baked.files["keras"])
    x = np.float32([[1, 2]])
    found = loaded.predict({"user id": x, "a-b": 2 * x}, verbose=0)["end"]
    np.testing.assert_allclose(found, [np.array([1, 2, 2, 4]) / 5], rtol=1e-6)
    graph = tf.saved_model.load(baked.files["savedmodel"])
    again = graph.signatures["serving_default"](user_id=tf.constant(x), a_b=tf.constant(2 * x))
    np.testing.assert_allclose(again["end"], found, rtol=1e-6)


def test_inputs_that_a_signature_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    odd("a b", "a-b").save(tmp_path / "odd.keras")
    with pytest.raises(ModelError, match="Received: a b, a-b"):
        bake(tmp_path / "odd.keras", tmp_path / "out", to=["savedmodel"])
    assert [path.name for path in tmp_path.iterdir()] == ["odd.keras"]


def test_a_saved_model_is_refused(written: Written, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Bake the model as Keras 3 saves it"):
        bake(written.files["like savedmodel"], tmp_path / "unit.keras")


def test_a_failure_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("batchnorm_tool.commands.bake.bake.sync_path", fail)
    with pytest.raises(Exception, match="No space left"):
        bake(model, tmp_path / "unit", to=["savedmodel"])
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_one_left_is_removed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Subject, "prove", lambda *_: [])
    left, busy, other = (tmp_path / f".unit.keras.{name}" for name in ("a.baking", "b.baking", "c"))
    for directory in (left, busy, other):
        directory.mkdir()
    with Storage(busy).lock():
        bake(model, tmp_path / "unit.keras")
    assert {path.name for path in tmp_path.iterdir()} == {
        *(busy.name, other.name),
        *("unit.keras", "unit.keras.parity.json"),
    }


def test_what_the_graph_does_already_is_said_by_layer_and_by_sample(tmp_path: Path) -> None:
    layers = [keras.layers.Dense(3), keras.layers.UnitNormalization(name="y")]
    keras.Sequential([keras.Input((2,)), *layers]).save(tmp_path / "unit.keras")
    warned: list[str] = []
    with capture_warnings(warned.append):
        bake(tmp_path / "unit.keras", tmp_path / "again.keras")
    assert "`y` is normalized already, by UnitNormalization, at the end of the model." in warned
    assert any("Baking l2 changes nothing." in text for text in warned)


def test_the_command_prints_a_document(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "unit.keras"
    words = ["bake", str(model), str(out), "--norm", "lp", "--p", "3", "--axis", "all"]
    done = CliRunner().invoke(cli, [*words, "--json"])
    assert done.exit_code == 0, done.output
    parity = json.loads(Path(f"{out}.parity.json").read_text())
    document = {"status": "done", "files": {"keras": str(out)}, "parity": parity}
    assert json.loads(done.stdout) == document
    again = CliRunner().invoke(cli, words)
    assert again.exit_code == 2
    assert "--fresh" in again.stderr
