from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool import show
from batchnorm_tool.commands.run.run import RunResult
from batchnorm_tool.errors import BadRows, Damaged, InputError, ModelError
from batchnorm_tool.inputs import reading
from batchnorm_tool.inputs.reading import head
from batchnorm_tool.storage import Storage
from tests.command_line import invoke

pytestmark = pytest.mark.usefixtures("tensorflow")


def columns_of(path: Path) -> dict[str, dict[str, Any]]:
    shown = show(str(path))
    json.dumps(shown.to_dict(), allow_nan=False)
    return {column["name"]: column for column in shown.facts["columns"]}


@pytest.fixture
def table_of(tmp_path: Path) -> Callable[..., Path]:
    def write(**columns: Any) -> Path:
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        return tmp_path / "a.parquet"

    return write


def test_data_have_schema_key_features_ranges_and_nulls(samples: Path) -> None:
    shown = show(str(samples / "bad_rows.parquet"))
    assert shown.kind == "data"
    facts = shown.facts
    assert (facts["format"], facts["files"], facts["rows"]) == ("parquet", 1, 19)
    assert (facts["likely_key"], facts["likely_features"]) == ("id", ["pixels"])
    columns = {column.pop("name"): column for column in facts["columns"]}
    assert columns["id"] == {
        "type": "int64",
        "width": None,
        "nulls": 0,
        "min": 0,
        "max": 18,
        "distinct": 19,
    }
    pixels = columns["pixels"]
    assert (pixels["width"], pixels["nulls"]) == (64, 2)  # a null list and a null element
    assert (pixels["min"], pixels["max"]) == ("-inf", "inf")


@pytest.mark.parametrize(
    ("name", "form", "features"),
    [
        ("digits.parquet", "parquet", ["pixels"]),
        ("digits_halves.parquet", "parquet", ["upper", "lower"]),
        ("digits_wide.parquet", "parquet", [f"pixel_{i:02}" for i in range(64)]),
        ("digits.npy", "npy", ["data"]),
    ],
)
def test_likely_features(samples: Path, name: str, form: str, features: list[str]) -> None:
    facts = show(str(samples / name)).facts
    assert (facts["format"], facts["rows"]) == (form, 1797)
    assert facts["likely_features"] == features


def test_directories_and_globs_are_one_table(tmp_path: Path) -> None:
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", np.full((4, 2), number, np.float32))
    for path in (tmp_path, tmp_path / "*.npy"):
        facts = show(str(path)).facts
        assert (facts["files"], facts["rows"]) == (3, 12)
        assert (facts["columns"][0]["min"], facts["columns"][0]["max"]) == (0.0, 2.0)


def test_columns_of_any_type_can_be_shown(table_of: Callable[..., Path]) -> None:
    path = table_of(
        text=["a", "b"],
        words=pa.array(["x", "x"]).dictionary_encode(),
        nothing=pa.nulls(2),
        time=[datetime(2025, 1, 1, tzinfo=UTC)] * 2,
        exact=[Decimal("1.5"), None],
        blob=[b"\xff", b""],
        struct=[{"a": 1}, None],
        mapping=pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
        nested=[[[1.0, 2.0], [3.0, 4.0]]] * 2,
        nan=[float("nan"), 1.0],
        empty=pa.array([[], []], pa.list_(pa.float32())),
    )
    columns = columns_of(path)
    assert columns["words"]["distinct"] == 1
    assert columns["nothing"]["nulls"] == 2
    assert columns["struct"]["nulls"] == 1
    assert columns["nested"]["width"] == 4
    assert (columns["nan"]["min"], columns["nan"]["max"]) == (1.0, 1.0)
    assert columns["empty"]["min"] is None


def test_the_key_has_the_best_name_among_unique_columns(table_of: Callable[..., Path]) -> None:
    path = table_of(rank=[1, 2], score=[0.5, 0.25], item_id=["a", "b"], id_of_shop=[7, 7])
    assert show(str(path)).facts["likely_key"] == "item_id"


def test_without_a_unique_column_there_is_no_key(table_of: Callable[..., Path]) -> None:
    assert show(str(table_of(id=[1, 1], other=[2, None]))).facts["likely_key"] is None


def test_no_rows_can_be_shown(table_of: Callable[..., Path]) -> None:
    facts = show(str(table_of(id=pa.array([], pa.int64())))).facts
    assert (facts["rows"], facts["columns"][0]["min"]) == (0, None)


def test_a_finished_run_is_its_manifest(
    samples: Path, encode: Callable[..., RunResult], tmp_path: Path
) -> None:
    result = encode(str(samples / "digits.parquet"))
    page = tmp_path / "run.html"
    shown = show(result.path, html=str(page))
    assert shown.kind == "run"
    assert shown.facts["rows"]["out"] == 1797
    assert shown.facts["statistics"]["embedding"]["rows"] == 1797
    html = page.read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    assert "embedding" in html
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_the_vectors_of_a_run_are_data(samples: Path, encode: Callable[..., RunResult]) -> None:
    result = encode(str(samples / "digits.parquet"), input={"key": "id"})
    facts = show(result.path + "/vectors").facts
    assert (facts["likely_key"], facts["likely_features"]) == ("id", ["vector"])


def test_a_damaged_manifest_is_said_to_be(samples: Path, encode: Callable[..., RunResult]) -> None:
    result = encode(str(samples / "digits.parquet"))
    manifest = Path(result.path) / "_manifest.json"
    manifest.write_text(manifest.read_text().replace('"in":1797', '"in":1798'))
    with pytest.raises(Damaged, match=r"_manifest\.json"):
        show(result.path)


def test_an_unfinished_run_says_how_far_it_is(
    samples: Path, encode: Callable[..., RunResult], tmp_path: Path
) -> None:
    spec = {"invalid": "quarantine"}
    with pytest.raises(BadRows):
        encode(str(samples / "bad_rows.parquet"), input=spec, output={"part_rows": 8})
    out = tmp_path / "out"
    shown = show(str(out))
    assert shown.kind == "unfinished run"
    facts = shown.facts
    assert (facts["parts"], facts["parts_done"]) == (3, 3)
    assert (facts["rows"], facts["rows_done"], facts["bad_rows"]) == (19, 19, 8)
    assert facts["running"] is False
    with Storage(out).lock():
        assert show(str(out)).facts["running"] is True
    with pytest.raises(InputError, match="`--html` needs a finished run"):
        show(str(out), html=str(tmp_path / "page.html"))
    assert not (tmp_path / "page.html").exists()


def test_a_run_that_stopped_before_its_plan(tmp_path: Path) -> None:
    Storage(tmp_path).put("_state/records/.keep", b"")
    (tmp_path / "_state" / "records" / ".keep").unlink()
    facts = show(str(tmp_path)).facts
    assert (facts["parts"], facts["rows"], facts["bad_rows"]) == (0, 0, 0)


@pytest.mark.parametrize("kind", ["keras", "h5", "saved_model"])
def test_models_have_inputs_outputs_and_hash(tmp_path: Path, kind: str) -> None:
    inputs = keras.Input((3,), name="x")
    model = keras.Model(inputs, keras.layers.Dense(2, name="d")(inputs))
    path = tmp_path / {"keras": "m.keras", "h5": "m.h5", "saved_model": "m"}[kind]
    if kind == "saved_model":
        model.export(path, verbose=False)
    else:
        model.save(path)
    shown = show(str(path))
    assert shown.kind == "model"
    assert shown.facts["format"] == kind
    (taken,), (given,) = shown.facts["inputs"], shown.facts["outputs"]
    assert (taken["shape"], taken["dtype"]) == ([3], "float32")
    assert (given["shape"], given["dtype"]) == ([2], "float32")
    assert len(shown.facts["sha256"]) == 64


def test_models_of_several_outputs_are_shown(samples: Path) -> None:
    facts = show(str(samples / "digits_two_inputs.keras")).facts
    assert [field["name"] for field in facts["inputs"]] == ["upper", "lower"]
    assert {field["name"]: field["shape"] for field in facts["outputs"]} == {
        "embedding": [32],
        "halves": [2, 16],
    }


def test_refused_models_are_shown_but_not_loaded(tmp_path: Path) -> None:
    inputs = keras.Input((3,), name="x")
    outputs = keras.layers.Lambda(lambda x: x + 1, name="plus")(inputs)
    keras.Model(inputs, outputs).save(tmp_path / "m.keras")
    facts = show(str(tmp_path / "m.keras")).facts
    assert (facts["inputs"], facts["outputs"]) == (None, None)
    assert "refuse" in [finding["severity"] for finding in facts["findings"]]


@pytest.mark.parametrize(
    ("name", "error"),
    [("nothing", InputError), ("nothing.keras", ModelError), ("words.txt", InputError)],
)
def test_what_cannot_be_shown_is_refused(tmp_path: Path, name: str, error: type[Exception]) -> None:
    (tmp_path / "words.txt").write_text("neither table nor model")
    with pytest.raises(error, match=name):
        show(str(tmp_path / name))


def bomb(kind: str) -> pa.Table:
    """A table of a few kilobytes on disk whose values are far larger in memory."""
    if kind == "list":
        large: pa.Array = pa.array([np.zeros(2**22, np.float32)] * 2)
    else:
        rows = 10_000 if kind == "dictionary" else 2
        large = pa.DictionaryArray.from_arrays([0] * rows, ["x" * 2**24])
        large = large if kind == "dictionary" else large.cast(pa.string())
    return pa.table({"id": np.arange(len(large)), "large": large})


@pytest.mark.parametrize("kind", ["string", "dictionary", "list"])
def test_values_too_large_to_look_at_are_not_read(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(bomb(kind), path, compression="zstd", use_dictionary=kind == "dictionary")
    assert path.stat().st_size < 100_000
    read = []
    monkeypatch.setattr(reading, "head", lambda *a: read.append(a[1]) or head(*a))
    columns = columns_of(path)
    assert {*map(tuple, read)} == {("id",)}
    assert columns["id"]["min"] == 0
    assert columns["large"]["nulls"] is columns["large"]["distinct"] is None
    assert "values too large to inspect" in invoke("show", path).output


def test_as_many_rows_are_looked_at_as_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((1000, 100_000), np.float32))
    facts = show(str(tmp_path / "a.npy")).facts
    assert 100 < facts["rows_sampled"] < 200
    assert facts["rows"] == 1000
