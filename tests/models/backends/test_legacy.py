"""Files of Keras 2 that Keras 3 does not load: what tf_keras makes of them, and when."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchnorm_tool
from batchnorm_tool import environment
from batchnorm_tool.chunk import Field
from batchnorm_tool.errors import ModelError
from batchnorm_tool.job import Job, Model
from batchnorm_tool.models import conversion
from batchnorm_tool.models.backends import conversion_process, legacy
from batchnorm_tool.models.backends.loading import NeedsKeras2Error, inner_layer_model
from batchnorm_tool.models.batching import LoadedModel, ModelFacts, ModelPredictor, Step
from batchnorm_tool.models.cache import ModelCache

pytestmark = pytest.mark.usefixtures("tensorflow")
ROWS = np.random.default_rng(0).integers(0, 9, (200, 6))


@pytest.fixture(scope="module")
def tf_keras() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tf_keras

        yield tf_keras


@dataclass
class Stored:
    """Files of one model, and what it predicts for `ROWS`."""

    keras: str
    h5: str
    expected: np.ndarray


@pytest.fixture(scope="module")
def stored(tf_keras: Any, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    folder = tmp_path_factory.mktemp("keras_2")
    tf_keras.utils.set_random_seed(0)
    layers = tf_keras.layers
    tokens = tf_keras.Input((6,), dtype="int64", name="tokens")
    hidden = layers.LSTM(4, name="hidden")(layers.Embedding(10, 3, mask_zero=True)(tokens))
    model = tf_keras.Model(tokens, layers.Dense(3, name="dense")(hidden) + 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(folder / "model.keras")
        model.save(folder / "model.h5")
    expected = model.predict(ROWS, verbose=0)
    return Stored(str(folder / "model.keras"), str(folder / "model.h5"), expected)


def run(model: str, folder: Path, **options: Any) -> dict[str, Any]:
    pq.write_table(pa.table({"tokens": list(ROWS)}), folder / "rows.parquet")
    job = {
        "input": {"path": str(folder / "rows.parquet")},
        "model": {"path": model, **options},
        "normalize": {"norm": "none"},
        "output": {"path": str(folder / "out")},
    }
    batchnorm_tool.run(Job.from_dict(job))
    manifest: dict[str, Any] = json.loads((folder / "out/_manifest.json").read_text())
    return manifest


def test_it_is_converted_once_and_then_scored_as_it_predicts(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    kept: list[bool] = []
    monkeypatch.setattr(environment, "keep_freed_memory", lambda: kept.append(True))
    manifest = run(stored.h5, first)
    assert kept  # as for every model that TensorFlow computes
    vectors = batchnorm_tool.read(str(first / "out")).to_numpy()[1]
    np.testing.assert_allclose(vectors, stored.expected, atol=1e-5)
    backend = manifest["backend"]
    assert backend["name"] == "tensorflow"
    assert backend["largest_difference"] < 1e-5
    assert manifest["identity"]["bits"]["backend"]["graph_sha256"] == backend["graph_sha256"]
    (entry,) = ModelCache.of_user().entries()
    assert entry.entry.kind == "saved_model"

    def ask(request: object) -> None:
        raise AssertionError("it is converted again")

    monkeypatch.setattr(conversion, "_ask", ask)
    second.mkdir()
    again = run(stored.h5, second)
    assert again["bits"] == manifest["bits"]
    shown = batchnorm_tool.show(stored.h5).to_dict()
    assert [(each["name"], each["shape"]) for each in shown["inputs"]] == [("tokens", [6])]


def test_without_the_extra_the_command_that_installs_it_is_told(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(conversion, "find_spec", lambda name: None)
    for path in (stored.keras, stored.h5):
        with pytest.raises(
            NeedsKeras2Error, match=r"Keras 2.*pip install 'batchnorm-tool\[legacy\]'"
        ):
            run(path, tmp_path)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Convert without another process, which would import TensorFlow again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(conversion, "_ask", conversion_process._convert)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("in_this_process", "tf_keras")
def test_it_is_shown_before_it_is_converted(stored: Stored) -> None:
    shown = batchnorm_tool.show(stored.keras).to_dict()
    assert [(each["name"], each["shape"]) for each in shown["inputs"]] == [("tokens", [6])]
    assert [each["shape"] for each in shown["outputs"]] == [[3]]
    assert ModelCache.of_user().entries() == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("in_this_process", "tf_keras")
def test_onnxruntime_computes_what_it_was_exported_as(stored: Stored) -> None:
    found = batchnorm_tool.score(stored.h5, ROWS, norm="none", backend="onnxruntime")
    np.testing.assert_allclose(found.vectors, stored.expected, atol=1e-5)
    kinds = [found.entry.kind for found in ModelCache.of_user().entries()]
    assert sorted(kinds) == ["onnx", "saved_model"]


def exported(model: Model, folder: Path) -> tuple[ModelFacts, LoadedModel]:
    original = ModelPredictor(legacy.load_legacy_model(model, model.path), "cpu", 1)
    rows = {"tokens": ROWS}
    facts = legacy.export_proved(original, model, folder, rows)
    return facts, legacy.load_exported(folder, model, lambda names: range(len(names)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["keras", "h5"])
def test_what_is_exported_predicts_the_same(
    stored: Stored, tf_keras: Any, tmp_path: Path, form: str
) -> None:
    facts, model = exported(Model(path=getattr(stored, form)), tmp_path)
    assert facts.inputs == (Field("tokens", (6,), "int64"),)
    assert [field.shape for field in facts.outputs] == [(3,)]
    assert facts.backend is not None
    assert facts.backend.largest_difference is not None
    assert facts.backend.largest_difference < 1e-5
    found = ModelPredictor(model, "cpu", 1).with_batch_size(32).predict({"tokens": ROWS})
    np.testing.assert_allclose(*found.values(), stored.expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_output_of_a_layer_can_be_taken(stored: Stored, tf_keras: Any, tmp_path: Path) -> None:
    model = Model(path=stored.h5, layer="hidden")
    facts, other = exported(model, tmp_path)
    assert [(field.name, field.shape) for field in facts.outputs] == [("hidden", (4,))]
    assert other.outputs == facts.outputs
    with pytest.raises(ModelError, match=r"no layer `hiden`.*Did you mean"):
        legacy.load_legacy_model(model.model_copy(update={"layer": "hiden"}), model.path)


@pytest.mark.filterwarnings("ignore")
def test_a_model_within_a_model_can_be_taken(tf_keras: Any) -> None:
    inner = tf_keras.Sequential([tf_keras.layers.Dense(3)], name="inner")
    inner.build((None, 4))
    x, other = tf_keras.Input((4,), name="x"), tf_keras.Input((3,), name="other")
    whole = tf_keras.Model([x, other], inner(x) + other)
    part = inner_layer_model(whole, "inner", tf_keras)
    assert [each.name for each in part.inputs] == ["x"]
    np.testing.assert_array_equal(part(np.ones((2, 4))), inner(np.ones((2, 4))))


@dataclass(frozen=True)
class Shifted(LoadedModel):
    """A model that predicts something else."""

    model: LoadedModel

    def compile(self, batch_size: int) -> Step:
        step = self.model.compile(batch_size)
        return lambda arrays: [array + 1e-3 for array in step(arrays)]


@pytest.mark.filterwarnings("ignore")
def test_an_export_that_predicts_otherwise_is_refused(
    stored: Stored, tf_keras: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = legacy.load_exported

    def load_shifted(*given: Any) -> LoadedModel:
        other = load(*given)
        return Shifted(*other.ends, other)

    monkeypatch.setattr(legacy, "load_exported", load_shifted)
    with pytest.raises(ModelError, match="predicts otherwise: a row differs by"):
        exported(Model(path=stored.h5), tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_what_tf_keras_cannot_load_either_is_told(
    stored: Stored, tf_keras: Any, tmp_path: Path
) -> None:
    path = tmp_path / "model.h5"
    path.write_bytes(Path(stored.h5).read_bytes())
    with h5py.File(path, "r+") as file:
        text = file.attrs["model_config"]
        file.attrs["model_config"] = text.replace('"units": 4', '"units": 5')
    with pytest.raises(ModelError, match="neither Keras 3 nor tf_keras reads it"):
        legacy.load_legacy_model(Model(path=str(path)), str(path))


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_keeps_state_is_refused(tf_keras: Any, tmp_path: Path) -> None:
    layer = tf_keras.layers.LSTM(2, stateful=True, batch_input_shape=(4, 3, 2), name="memory")
    path = str(tmp_path / "model.h5")
    tf_keras.Sequential([layer]).save(path)
    with pytest.raises(ModelError, match="its layer `memory` has stateful=True"):
        legacy.load_legacy_model(Model(path=path), path)
