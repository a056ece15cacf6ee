"""Hostile and honest SavedModels, through the command line and the real TensorFlow."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchnorm_tool import score
from batchnorm_tool.errors import ModelError
from batchnorm_tool.job import Engine, Model
from batchnorm_tool.models import load_predictor
from batchnorm_tool.models.security import admit, examine
from tests.command_line import invoke
from tests.models.security.corpus_saved_model import ROWS, Export, benign, cut, hostile

pytestmark = [
    pytest.mark.usefixtures("tensorflow"),
    pytest.mark.filterwarnings("ignore:TensorFlow was in use:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*were not part of the graph:UserWarning"),
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.npy"
    np.save(path, ROWS)
    return path


@pytest.fixture(scope="module")
def marker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What no model may write."""
    return tmp_path_factory.mktemp("marker") / "marker"


@pytest.fixture(scope="module")
def hostiles(
    tmp_path_factory: pytest.TempPathFactory, tensorflow: Any, marker: Path
) -> dict[str, Path]:
    return dict(hostile(tmp_path_factory.mktemp("hostile"), marker))


def test_no_hostile_model_is_loaded(
    hostiles: dict[str, Path], marker: Path, tmp_path: Path, rows: Path
) -> None:
    assert len(hostiles) > 50
    for name, path in hostiles.items():
        for command in (["run", path, rows, tmp_path / "out"], ["show", path]):
            done = invoke(*command)
            assert done.exit_code == 2, (name, done.output, done.exception)
            assert "".join(name.split()) in "".join(done.output.split()), name
        assert not marker.exists(), name
        assert not (tmp_path / "out").exists(), name


def trusted(path: Path) -> Model:
    return Model(path=str(path), trust=f"sha256:{examine(str(path)).sha256}")


def test_the_payloads_are_real(hostiles: dict[str, Path], marker: Path) -> None:
    """A model that is trusted by its hash does what the gate keeps the others from."""
    for name in REAL:
        model = trusted(hostiles[name])
        with admit(model) as admitted:
            predictor = load_predictor(model, admitted.path, Engine()).with_batch_size(6)
        predictor.predict({"x": ROWS})
        assert marker.exists(), name
        marker.unlink()


REAL = {
    "a writer before the signature",
    "a writer before the tables",
    "a writer before the restoring",
    "a writer in the function",
    "write a file",
}


def test_what_no_signature_needs_is_left_out_and_does_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for name, path in cut(tmp_path, marker):
        result = score(str(path), {"x": ROWS}, norm="none")
        expected = 2 * ROWS @ np.ones((4, 2), "float32")
        np.testing.assert_allclose(result.vectors, expected, rtol=1e-5, err_msg=name)
        assert not marker.exists(), name


def test_missing_variables_are_told_before_what_else_is_wrong(
    hostiles: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "model"
    shutil.copytree(hostiles["write a file"], path, ignore=lambda *_: {"variables"})
    with pytest.raises(ModelError, match=r"variables are missing .* Received: neither"):
        examine(str(path))


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, tensorflow: Any) -> list[Export]:
    return list(benign(tmp_path_factory.mktemp("benign")))


def test_every_honest_model_gives_what_the_original_gives(exports: list[Export]) -> None:
    assert len(exports) >= 36
    for export in exports:
        assert examine(str(export.path)).findings == (), export.name
        result = score(str(export.path), export.features, norm="l2")
        expected = export.expected.astype("float64")
        norms = np.linalg.norm(expected, axis=-1, keepdims=True)
        found = result.vectors.reshape(expected.shape)
        # Deep models in float32: another order of sums moves a component by some 1e-6 of the norm.
        np.testing.assert_allclose(found, expected / norms, rtol=0, atol=1e-5, err_msg=export.name)
        np.testing.assert_allclose(result.norms, norms[..., 0], rtol=1e-5, err_msg=export.name)


def test_a_copy_holds_only_what_serves(exports: list[Export]) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    export = next(item for item in exports if item.name == "TrainedOnDataSets")
    assert b"WriteFile" in (export.path / "saved_model.pb").read_bytes()
    with admit(Model(path=str(export.path))) as admitted:
        content = Path(admitted.path, "saved_model.pb").read_bytes()
        assert admitted.report == examine(str(export.path))
    (graph,) = saved_model_pb2.SavedModel.FromString(content).meta_graphs
    operations = {node.op for node in graph.graph_def.node}
    for function in graph.graph_def.library.function:
        operations |= {node.op for node in function.node_def}
    assert not operations & {"WriteFile", "PrintV2", "OptionalNone", "SaveV2", "ShardedFilename"}
    assert {"RestoreV2", "MatMul", "VarHandleOp"} <= operations
    assert not graph.HasField("object_graph_def")


def test_the_copy_reads_its_own_asset(exports: list[Export], tmp_path: Path) -> None:
    """What lies under the path that the model was made with does not matter any more."""
    export = next(item for item in exports if item.name == "of_an_asset")
    made_of = export.path.parent / "words of an asset.txt"
    made_of.write_text("blue\nred\ngreen")
    result = score(str(export.path), export.features, norm="none")
    np.testing.assert_allclose(result.vectors, export.expected, rtol=1e-6)
    (asset,) = (export.path / "assets").iterdir()
    asset.unlink()
    done = invoke("show", export.path)
    assert done.exit_code == 2
    assert f"its asset assets/{asset.name} is missing" in " ".join(done.output.split())
