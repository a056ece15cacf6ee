"""Parity: what each format gives is the norm after prediction, also at the edges, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import openvino
import pytest
from click.testing import CliRunner
from keras import layers
from tensorflow.lite.tools import flatbuffer_utils

from batchnorm_tool import Baked, bake, normalize
from batchnorm_tool.chunk import Field
from batchnorm_tool.cli.app import cli
from batchnorm_tool.commands.bake import bake as baking
from batchnorm_tool.commands.bake.parity import Parity, RowDifferences, edge_rows, run_bare
from batchnorm_tool.errors import JobError, ModelError
from batchnorm_tool.layers import VectorNormalization
from batchnorm_tool.models.backends import bare_runner, export
from batchnorm_tool.models.backends.normalized_model import GraphOutput
from batchnorm_tool.norms.norm import L1, L2
from batchnorm_tool.norms.normalization import Normalization

pytestmark = pytest.mark.usefixtures("tensorflow")
FORMATS = ("keras", "savedmodel", "onnx", "openvino", "litert")
SPACE = 64 * "5"
WORDS = ("zeros", "ulp", "ulp", "ulp", "taken as zeros", "ulp", "ulp", "NaN")


@dataclass(frozen=True)
class Written:
    """A model of two inputs and outputs, its copies in every format, and what the model gives."""

    model: Path
    baked: Baked
    rows: dict[str, np.ndarray]
    raw: dict[str, np.ndarray]


def two_sides() -> keras.Model:
    left, right = keras.Input((4,), name="left"), keras.Input((3, 2), name="right")
    both = layers.Concatenate()([layers.Dense(5)(left), layers.Flatten()(right)])
    outputs = {"user": layers.Dense(6)(both), "word": layers.Dense(5)(right)}
    return keras.Model([left, right], outputs)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Baked in this process, and run in bare ones."""
    place = tmp_path_factory.mktemp("parity")
    keras.utils.set_random_seed(5)
    model = two_sides()
    model.save(place / "raw.keras")
    wanted = baking.Model(path=str(place / "raw.keras"), outputs=["user", "word"])
    request = baking.BakeRequest(
        model=wanted,
        out=place / "all",
        outputs=(GraphOutput("", Normalization(L1)),),
        formats=FORMATS,
        keep_norm=True,
        space=SPACE,
    )
    random = np.random.default_rng(7)
    rows = {"left": random.normal(size=(9, 4)), "right": random.normal(size=(9, 3, 2))}
    rows = {name: array.astype(np.float32) for name, array in rows.items()}
    return Written(place / "raw.keras", baking.bake_model(request), rows, model.predict(rows))


@pytest.fixture(scope="module")
def parity(written: Written) -> dict[str, Parity]:
    return {each.format: each for each in written.baked.parity}


@pytest.mark.parametrize("form", FORMATS)
def test_a_format_is_within_three_ulp(parity: dict[str, Parity], form: str) -> None:
    measured = parity[form]
    assert measured.fault is None
    assert 0 < measured.ulp < 3
    assert 0 < measured.norm_difference < 1e-6
    assert measured.rows == 32
    assert measured.model_difference is not None
    assert measured.model_difference < 1e-6


@pytest.mark.parametrize("form", FORMATS)
def test_each_edge_row_has_its_word(parity: dict[str, Parity], form: str) -> None:
    edges = parity[form].edges
    assert [edge.output for edge in edges] == ["user"] * 8 + ["word"] * 8
    assert [edge.row for edge in edges] == [*edge_rows(Field("x", (2,), "float32"))] * 2
    assert tuple(edge.word.split()[-1] for edge in edges[:8]) == tuple(
        word.split()[-1] for word in WORDS
    )
    assert all(edge.agrees for edge in edges)


def test_the_report_is_beside_the_files(written: Written) -> None:
    report = json.loads((written.model.parent / "all.parity.json").read_text())
    assert [each["format"] for each in report] == [*FORMATS]
    assert tuple(Parity.from_dict(each) for each in report) == written.baked.parity


@pytest.mark.parametrize("form", FORMATS)
def test_outputs_have_their_names(written: Written, form: str) -> None:
    (found,) = bare_runner.run([(form, str(written.baked.files[form]), written.rows, 4)])
    assert sorted(found) == ["user", "user_norm", "word", "word_norm"]
    for name, raw in written.raw.items():
        vectors, norms = normalize(raw, "l1", return_norm=True)
        np.testing.assert_allclose(found[name], vectors, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found[f"{name}_norm"][..., 0], norms, rtol=1e-6)


def onnx_metadata(path: Path) -> dict[str, str]:
    return {each.key: each.value for each in onnx.load(path).metadata_props}


def openvino_metadata(path: Path) -> dict[str, str]:
    model = openvino.Core().read_model(path / "model.xml")
    return {"batchnorm_tool.space": model.get_rt_info(["batchnorm_tool.space"]).astype(str)}


def litert_metadata(path: Path) -> dict[str, str]:
    model = flatbuffer_utils.read_model(str(path))
    data = {each.name.decode(): model.buffers[each.buffer].data for each in model.metadata}
    return {"batchnorm_tool.space": bytes(data["batchnorm_tool.space"]).decode()}


METADATA: dict[str, Callable[[Path], dict[str, str]]] = {
    "onnx": onnx_metadata,
    "openvino": openvino_metadata,
    "litert": litert_metadata,
}


@pytest.mark.parametrize("form", METADATA)
def test_the_space_is_in_the_file(written: Written, form: str) -> None:
    assert METADATA[form](written.baked.files[form]) == {"batchnorm_tool.space": SPACE}


def with_a_changed_constant(model: Any, path: Path) -> None:
    """Write ONNX; of the file, not of the probe, a weight is another."""
    export.bake_format("onnx").write(model, path)
    if path.parent.name == "staged":
        proto = onnx.load(path)
        weights = next(each for each in proto.graph.initializer if [*each.dims] == [11, 6])
        changed = onnx.numpy_helper.to_array(weights) + np.float32(1e-5)
        weights.CopyFrom(onnx.numpy_helper.from_array(changed, weights.name))
        onnx.save(proto, path)


def test_a_broken_graph_is_not_written(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_this_process: None
) -> None:
    broken = replace(export.bake_format("onnx"), write=with_a_changed_constant)
    monkeypatch.setattr(baking, "bake_format", lambda name: broken)
    with pytest.raises(ModelError, match=r"as onnx, row \d+ differs .* by \d+ ulp, more than 4\."):
        bake(written.model, tmp_path / "unit.onnx", outputs=["user"], to=["onnx"])
    assert list(tmp_path.iterdir()) == []


def test_a_norm_that_fails_at_the_edges_is_not_written(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_this_process: None
) -> None:
    def usual(x: Any, *_: object) -> tuple[Any, Any]:
        length = keras.ops.sqrt(keras.ops.sum(x * x, axis=-1, keepdims=True))
        return x / keras.ops.maximum(length, 1e-12), length

    monkeypatch.setattr("batchnorm_tool.models.backends.normalized_model.normalize_tensor", usual)
    with pytest.raises(ModelError, match=r"as keras, the row `1e-30` gives \d+\.\d+ ulp in `user`"):
        bake(written.model, tmp_path / "unit.keras", outputs=["user"])
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_needs_this_package_does_not_run(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((4,)), VectorNormalization()]).save(tmp_path / "own.keras")
    rows = {"input": np.ones((1, 4), np.float32)}
    with pytest.raises(ModelError, match=r"as keras does not run .* Leave keras out of `to`"):
        run_bare(("keras", str(tmp_path / "own.keras"), rows, 1))


@pytest.mark.parametrize(
    ("form", "package", "extra"),
    [
        ("onnx", "tf2onnx", "onnxruntime"),
        ("openvino", "openvino", "openvino"),
        ("litert", "ai_edge_litert", "litert"),
    ],
    ids=["onnx", "openvino", "litert"],
)
def test_a_missing_extra_is_named(
    form: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        export, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    with pytest.raises(JobError, match=rf"{form}, which needs {package}.*\[{extra}\]"):
        bake("no.keras", tmp_path / "unit", to=[form])


@pytest.mark.parametrize("form", ["savedmodel", "onnx"])
def test_a_pair_is_compared(
    written: Written, form: str, tmp_path: Path, in_this_process: None
) -> None:
    words = ["bake", "--check", str(written.model), str(written.baked.files[form])]
    flags = ["--norm", "l1", "--outputs", "user,word", "--json"]
    done = CliRunner().invoke(cli, [*words, *flags])
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)["parity"]
    assert (found["format"], found["edges"]) == (form, [])
    assert found["ulp"] < 3
    assert found["bound"] == (4 if form == "savedmodel" else pytest.approx(84, 0.01))
    other = CliRunner().invoke(cli, [*words, "--norm", "l2", *flags[2:]])
    assert other.exit_code == 2
    assert "differs from the norm after prediction" in other.stderr


def test_a_model_without_the_norm_is_no_copy(written: Written, in_this_process: None) -> None:
    with pytest.raises(ModelError, match=r"It is no copy of .* with this norm"):
        bake(written.model, written.model, outputs=["user", "word"], check=True)


def test_rows_of_an_input_are_compared(
    samples: Path, tmp_path: Path, in_this_process: None
) -> None:
    model, rows = samples / "digits_encoder.keras", samples / "digits.parquet"
    (found,) = bake(model, tmp_path / "unit.keras", rows=rows).parity
    assert found.rows == 1024
    assert found.ulp < 3


def scalar() -> keras.Model:
    given = keras.Input((4,), name="given")
    return keras.Model(given, layers.Dense(1, name="score")(given)[:, 0])


def narrow() -> keras.Model:
    given = keras.Input((4,), name="given")
    return keras.Model(given, layers.Dense(5, dtype="mixed_float16", name="half")(given))


def sized() -> keras.Model:
    given = keras.Input((4,), batch_size=5, name="given")
    return keras.Model(given, layers.Dense(5, name="five")(given))


@pytest.mark.parametrize("make", [scalar, narrow, sized])
@pytest.mark.parametrize("form", ["keras", "onnx"])
def test_awkward_outputs_are_compared(
    make: Callable[[], keras.Model], form: str, tmp_path: Path, in_this_process: None
) -> None:
    make().save(tmp_path / "raw.keras")
    out = tmp_path / export.bake_format(form).file
    (found,) = bake(tmp_path / "raw.keras", out, keep_norm=True, to=[form]).parity
    assert found.ulp < 3
    assert [edge.word for edge in found.edges][::7] == ["zeros", "NaN"]


def difference(raw: np.ndarray, vectors: np.ndarray) -> RowDifferences:
    output = GraphOutput("x", Normalization(L2))
    return RowDifferences.of(output, raw, {"x": vectors})


def test_vectors_of_another_width_are_refused() -> None:
    with pytest.raises(ModelError, match=r"has the shape \(2, 3\)\. Expected: \(2, 4\)"):
        difference(np.ones((2, 4)), np.ones((2, 3)))


def test_an_ulp_is_that_of_the_vector_s_length() -> None:
    raw = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)
    step = float(np.spacing(np.float32(1.0)))
    found = difference(raw, np.array([[0.6, 0.8 + 2 * step], [0.0, 1.0]]))
    assert found.ulp.tolist() == [pytest.approx(2.0), 0.0]


@pytest.mark.parametrize(
    ("raw", "vector", "word"),
    [
        ([0, 0], [0, 0], ("zeros", True)),
        ([0, 0], [0, 1], ("numbers where zeros are expected", False)),
        ([3, 4], [0, 0], ("zeros", False)),
        ([1e-40, 0], [0, 0], ("taken as zeros", True)),
        ([1e-40, 0], [np.nan, 0], ("inf ulp", False)),
        ([np.nan, 1], [np.nan, np.nan], ("NaN", True)),
        ([np.nan, 1], [0, 1], ("numbers where NaN is expected", False)),
        ([0, 5], [0, 1], ("0.00 ulp", True)),
    ],
)
def test_words_of_rows(raw: list[float], vector: list[float], word: tuple[str, bool]) -> None:
    found = difference(np.array([raw], np.float32), np.array([vector], np.float32))
    assert found.word(0) == word


def test_narrow_floats_may_round_as_they_do() -> None:
    raw = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    assert difference(raw, normalize(raw).astype(np.float16)).ulp.max() <= 1
    assert difference(raw, normalize(raw).astype(np.float16).astype(np.float32)).ulp.max() > 100
