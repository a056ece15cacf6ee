"""The query tower beside the items: baked with their norm, in one version with them."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchnorm_tool import accept, normalize, rollback
from batchnorm_tool.commands.bake.parity import Subject
from batchnorm_tool.commands.refresh import query_model
from batchnorm_tool.errors import JobError, TargetFailed
from batchnorm_tool.storage.checked_json import verified_json
from tests.commands.refresh.nightly import Nightly

pytestmark = pytest.mark.usefixtures("in_this_process")
FIRST = dict.fromkeys(range(20), 0)
SECOND = {**FIRST, 3: 1}
QUERIES = np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32)


def save_tower(path: Path, width: int = 4, seed: int = 5) -> None:
    import keras

    keras.utils.set_random_seed(seed)
    source = keras.Input((3,), name="words")
    keras.Model(source, keras.layers.Dense(width, name="query")(source)).save(path)


@pytest.fixture
def towers(encoded: Nightly) -> Nightly:
    """A store of items whose refresh bakes the tower of queries, too."""
    save_tower(encoded.path / "query.keras")
    target = {"to": "query_model", "path": "queries", "model": "query.keras"}
    encoded.sections |= {"publish": [target]}
    return encoded


@pytest.fixture
def unproved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is proved: for tests of what becomes of a model that is baked."""
    monkeypatch.setattr(Subject, "prove", lambda *_: [])


@pytest.fixture
def baked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The space of each model that is baked."""
    spaces: list[str] = []
    real = query_model.bake_model

    def bake_model(request: Any) -> Any:
        spaces.append(request.space)
        return real(request)

    monkeypatch.setattr(query_model, "bake_model", bake_model)
    return spaces


def current(nightly: Nightly) -> Path:
    """The directory that a reader finds; nothing but versions lies beside it."""
    place = nightly.path / "queries"
    assert {*os.listdir(place)} == {"current", "versions"}
    return place / (place / "current").read_text().strip()


def raw(nightly: Nightly) -> Any:
    import keras

    return keras.models.load_model(nightly.path / "query.keras").predict(QUERIES, verbose=0)


def vectors(path: Path) -> np.ndarray:
    import keras

    model = keras.models.load_model(path / "model.keras", safe_mode=True)
    return np.asarray(model.predict(QUERIES, verbose=0))


def test_queries_get_the_norm_of_the_items_in_one_version(
    towers: Nightly, baked: list[str]
) -> None:
    assert towers.night(FIRST).state == "published"
    place, space = current(towers), towers.state.existing_record(1).space
    assert (place.name, baked) == ("1", [space])
    np.testing.assert_allclose(vectors(place), normalize(raw(towers)), rtol=0, atol=3e-7)
    assert (place / "contract.json").read_bytes() == towers.state.contract(1)
    with zipfile.ZipFile(place / "model.keras") as archive:
        assert json.loads(archive.read("metadata.json"))["batchnorm_tool.space"] == space
    document = verified_json((towers.path / "queries/versions/1.json").read_bytes())
    assert document is not None
    assert (document["version"], document["space"]) == (1, space)
    names = ["model.keras", "model.keras.parity.json", "contract.json"]
    assert [file["path"] for file in document["files"]] == names
    (parity,) = json.loads((place / names[1]).read_text())
    assert (parity["format"], parity["ulp"] <= 4) == ("keras", True)
    # Rows change, the model stays: it is the same file.
    assert towers.night(SECOND).targets[0]["facts"]["path"] == "versions/2"
    assert (current(towers) / "model.keras").samefile(place / "model.keras")
    assert towers.night(SECOND).state == "nothing to do"
    assert len(baked) == 1


@pytest.mark.usefixtures("unproved")
def test_a_new_norm_waits_and_a_rollback_brings_the_model_back(
    towers: Nightly, baked: list[str]
) -> None:
    towers.night(FIRST)
    first = (current(towers) / "model.keras").read_bytes()
    with pytest.raises(Exception, match="its vector space is new"):
        towers.night(FIRST, normalize__norm="l1")
    assert len(baked) == 2  # before it waits: what cannot be baked is not accepted
    assert (towers.path / "queries/current").read_text() == "versions/1\n"
    accept(towers.store, 2)
    assert np.abs(vectors(current(towers))).sum(axis=1) == pytest.approx(np.ones(5))
    save_tower(towers.path / "query.keras", seed=6)
    rollback(towers.store)
    place = current(towers)
    assert (place.name, (place / "model.keras").read_bytes()) == ("3", first)
    assert (place / "contract.json").read_bytes() == towers.state.contract(1)
    assert len(baked) == 2
    towers.held(FIRST, normalize__norm="l1")  # on hold: the other model stays away
    assert (towers.path / "queries/current").read_text() == "versions/3\n"


@pytest.mark.usefixtures("unproved")
def test_a_damaged_model_is_baked_again_and_never_brought_back(
    towers: Nightly, baked: list[str]
) -> None:
    towers.night(FIRST)
    model = current(towers) / "model.keras"
    model.unlink()
    assert towers.night(FIRST).state == "nothing to do"
    whole = (current(towers) / "model.keras").read_bytes()
    model.unlink()
    assert towers.night(SECOND).state == "published"
    assert (current(towers) / "model.keras").exists()
    assert len(baked) == 3
    save_tower(towers.path / "query.keras", seed=6)
    (current(towers) / "model.keras").unlink()
    with pytest.raises(TargetFailed, match="the model of version 1, which is restored, is damaged"):
        rollback(towers.store)
    model.write_bytes(whole)
    assert rollback(towers.store, 1).state == "published"
    assert (current(towers) / "model.keras").read_bytes() == whole


@pytest.mark.usefixtures("unproved")
def test_another_query_model_is_published_although_no_row_changed(
    towers: Nightly, baked: list[str]
) -> None:
    towers.night(FIRST)
    save_tower(towers.path / "query.keras", seed=6)
    assert towers.night(FIRST).state == "nothing to do"
    place = current(towers)
    assert (place.name, len(baked)) == ("1", 2)
    np.testing.assert_allclose(vectors(place), normalize(raw(towers)), rtol=0, atol=3e-7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 7}, "does not fit. Expected the shape"),
        ({"formats": ["keras", "oonx"]}, "Received: oonx"),
        ({"layer": "word"}, "word"),
        ({"dtype": "int8"}, "int8"),
    ],
    ids=["another width", "no such format", "no such layer", "quantized items"],
)
def test_what_cannot_be_baked_is_refused_before_anything_is_published(
    towers: Nightly, change: dict[str, Any], words: str
) -> None:
    sections: dict[str, Any] = {}
    if "width" in change:
        save_tower(towers.path / "query.keras", change["width"])
    elif "dtype" in change:
        sections = {"normalize": change}
    else:
        towers.sections["publish"][0] |= change
    with pytest.raises(JobError, match="`publish`: target `query_model`") as caught:
        towers.night(FIRST, sections)
    assert (caught.value.exit_code, words in caught.value.message) == (2, True)
    assert towers.state.pointer().live is None
    assert not Path(towers.store).exists()


class KilledError(Exception):
    pass


@pytest.mark.usefixtures("unproved")
@pytest.mark.parametrize("step", ["bake_model", "publish_directory", "_linked"])
def test_killed_anywhere_the_next_call_finishes(
    towers: Nightly, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    towers.night(FIRST)

    def killed(*given: Any) -> Any:
        if step == "bake_model":  # half of it is written
            given[0].out.parent.mkdir(parents=True)
            given[0].out.write_bytes(b"not the whole model")
        raise KilledError

    changes: dict[str, Any] = {"normalize__norm": "max", "store__on_new_space": "publish"}
    with monkeypatch.context() as patched:
        patched.setattr(query_model, step, killed)
        with pytest.raises(KilledError):
            towers.night(SECOND, **changes)
    towers.night(SECOND, **changes)
    place = current(towers)
    assert place.name == "2"
    assert np.abs(vectors(place)).max(axis=1) == pytest.approx(np.ones(5))
    assert (place / "contract.json").read_bytes() == towers.state.contract(2)
    names = {"model.keras", "model.keras.parity.json", "contract.json"}
    assert {path.name for path in place.iterdir()} == names


def test_several_formats_lie_side_by_side(towers: Nightly, baked: list[str]) -> None:
    import onnxruntime

    towers.sections["publish"][0] |= {"formats": ["onnx", "savedmodel"]}
    towers.night(FIRST)
    place = current(towers)
    session = onnxruntime.InferenceSession(place / "model.onnx")
    (found,) = session.run(None, {"words": QUERIES})
    np.testing.assert_allclose(found, normalize(raw(towers)), rtol=0, atol=3e-6)
    assert (place / "saved_model/saved_model.pb").is_file()
    towers.night(SECOND)
    assert (current(towers) / "model.onnx").samefile(place / "model.onnx")
    assert len(baked) == 2  # once for each format


def test_a_missing_package_is_named_before_anything_is_published(
    towers: Nightly, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchnorm_tool.models.backends.export.find_spec", lambda _: None)
    towers.sections["publish"][0] |= {"formats": ["onnx"]}
    with pytest.raises(JobError, match=r"needs onnx.* `pip install 'batchnorm-tool\[onnx"):
        towers.night(FIRST)
    assert not Path(towers.store).exists()
