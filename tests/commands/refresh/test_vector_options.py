"""Truncated, projected and quantized vectors in a store: fitted once, undone by readers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import faiss
import lance
import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool import Contract, accept, history, read, rollback, verify
from batchnorm_tool.commands.refresh.refresh import plan_refresh
from batchnorm_tool.commands.run import fit
from batchnorm_tool.errors import Held
from batchnorm_tool.norms.normalization import Normalization
from batchnorm_tool.store.state import StoreSchema
from tests.commands.refresh.nightly import LOOSE, WIDTH, Edits, Nightly, features, items
from tests.postgres import database, server

__all__ = ["database", "server"]  # fixtures

FIRST = dict.fromkeys(range(40), 0)
OPTIONS: dict[str, dict[str, Any]] = {
    "truncate": {"truncate": 5},
    "mean": {"project_mean": "fit"},
    "int8": {"dtype": "int8"},
    "binary": {"dtype": "binary"},
    "all": {"truncate": 6, "project_mean": "fit", "dtype": "int8"},
}
TYPES = {"int8": pa.int8(), "binary": pa.uint8(), "all": pa.int8()}
every_option = pytest.mark.parametrize("name", OPTIONS)


def asked(name: str) -> dict[str, Any]:
    return {f"normalize__{key}": value for key, value in OPTIONS[name].items()}


def layout(nightly: Nightly) -> StoreSchema:
    found = nightly.state.pointer().layout
    assert found is not None
    return found


def expected(way: Normalization, edits: Edits) -> dict[Any, tuple[list[float], float]]:
    """What readers should get of items, by their key."""
    raw = np.array([features(key, edit) for key, edit in edits.items()])
    stored, norms = way.apply(raw)
    vectors = way.decode(stored, way.kept_width(WIDTH)).tolist()
    return dict(zip(edits, zip(vectors, norms[:, 0].tolist(), strict=True), strict=True))


def found(nightly: Nightly, **given: Any) -> dict[Any, tuple[list[float], float]]:
    keys, vectors, norms = read(nightly.store, **given).to_numpy()
    assert vectors.dtype == np.float32
    return dict(zip(keys.tolist(), zip(vectors.tolist(), norms.tolist(), strict=True), strict=True))


@every_option
def test_what_was_fitted_for_the_first_load_is_kept(nightly: Nightly, name: str) -> None:
    nightly.night(FIRST, **asked(name))
    way = layout(nightly).normalization
    assert found(nightly) == expected(way, FIRST)
    assert (way.truncate, way.dtype) == (OPTIONS[name].get("truncate"), OPTIONS[name].get("dtype"))
    assert [way.mean is not None, way.scale is not None] == [
        name in ("mean", "all"),
        name in ("int8", "all"),
    ]
    scratch = nightly.from_scratch(FIRST, **asked(name))
    assert scratch == {
        key: (np.float32(vector).tobytes(), norm) for key, (vector, norm) in found(nightly).items()
    }
    second = {**FIRST, 3: 1, 40: 0}
    night = nightly.night(second, **asked(name))
    assert (night.state, night.rows["predicted"], night.record["new_space"]) == (
        "published",
        2,
        False,
    )
    assert layout(nightly).normalization == way
    assert found(nightly) == expected(way, second)
    assert nightly.night(None, **asked(name)).state == "nothing to do"
    assert verify(nightly.store).vectors == len(found(nightly))


@pytest.mark.parametrize("name", TYPES)
def test_the_dataset_holds_integers_that_readers_may_ask_for(nightly: Nightly, name: str) -> None:
    nightly.night(FIRST, **asked(name))
    column = lance.dataset(nightly.store).schema.field("vector").type
    assert column == pa.list_(TYPES[name], 1 if name == "binary" else 6 if name == "all" else 8)
    stored = read(nightly.store, decode=False)
    assert stored.schema.field("vector").type == column
    way = layout(nightly).normalization
    raw = np.array([features(key) for key in stored.to_numpy()[0].tolist()])
    assert (stored.to_numpy()[1] == way.apply(raw)[0]).all()
    lengths = np.linalg.norm(read(nightly.store, raw=True).to_numpy()[1], axis=1)
    np.testing.assert_allclose(lengths, read(nightly.store).to_numpy()[2], rtol=0.02)


def beyond(table: pa.Table, key: int) -> pa.Table:
    """Give an item a vector along one axis, farther out than any that was there."""
    rows = np.array(table["x"].to_pylist(), np.float32)
    rows[key] = np.eye(WIDTH)[0] * 5
    lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), WIDTH)
    return table.set_column(1, "x", lists)


def test_a_component_beyond_the_scale_is_clipped_counted_and_no_fault(nightly: Nightly) -> None:
    nightly.night(FIRST, **asked("int8"))
    way, before = layout(nightly).normalization, found(nightly)
    night = nightly.night(beyond(items(FIRST), 7), **asked("int8"))
    assert night.state == "published"
    (warning,) = [text for text in night.record["warnings"] if "clipped" in text]
    assert warning.startswith("1 row had components beyond the scale")
    assert layout(nightly).normalization == way
    assert read(nightly.store, decode=False).to_numpy()[1].max() == 127
    after = found(nightly)
    assert after[7][0] == [np.float32(127 * (way.scale or 0)), *[0.0] * (WIDTH - 1)]
    assert {**after, 7: before[7]} == before
    assert verify(nightly.store).vectors == len(found(nightly))


def test_zeros_have_no_bits_of_their_own_and_are_no_fault(nightly: Nightly) -> None:
    table = items(FIRST)
    rows = np.array(table["x"].to_pylist(), np.float32) * (np.arange(40) != 5)[:, None]
    lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.astype(np.float32).ravel()), WIDTH)
    nightly.night(table.set_column(1, "x", lists), **asked("binary"))
    assert found(nightly)[5] == ([np.float32(-1 / WIDTH**0.5)] * WIDTH, 0.0)
    assert verify(nightly.store).vectors == len(found(nightly))


def test_another_option_is_another_space_and_the_version_before_stays_readable(
    nightly: Nightly, monkeypatch: pytest.MonkeyPatch
) -> None:
    nightly.night(FIRST)
    whole = found(nightly)
    waits = nightly.held({**FIRST, 1: 1}, **asked("all"))
    monkeypatch.setattr(fit, "fit", None)  # what is staged is fitted already
    assert nightly.held(None, **asked("all"))["version"] == waits["version"]
    assert "vector space is new" in waits["message"]
    (note,) = [text for text in waits["warnings"] if "A new vector space" in text]
    assert "truncation none → 6" in note
    assert "vector dtype none → int8" in note
    accept(nightly.store, waits["version"])
    way = layout(nightly).normalization
    assert found(nightly) == expected(way, {**FIRST, 1: 1})
    assert found(nightly, version=1) == whole
    rollback(nightly.store)
    assert found(nightly) == whole
    assert layout(nightly).output is None
    assert found(nightly, version=2) == expected(way, {**FIRST, 1: 1})
    assert verify(nightly.store).vectors == len(found(nightly))
    assert len(history(nightly.store)["nights"]) == 3


def test_choices_that_are_made_anew_keep_what_was_fitted(
    nightly: Nightly, monkeypatch: pytest.MonkeyPatch
) -> None:
    nightly.night(FIRST, **asked("all"))
    way = layout(nightly).normalization
    monkeypatch.setattr(fit, "fit", None)  # it is not called
    second = dict.fromkeys(range(50), 1)
    renamed = {**asked("all"), "output__columns__vector": "embedding"}
    night = nightly.night(second, **renamed)
    assert (night.state, night.record["new_space"]) == ("published", False)
    assert layout(nightly).normalization == way
    assert found(nightly) == expected(way, second)


def test_a_dry_run_fits_nothing(nightly: Nightly, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "fit", None)
    nightly.put(FIRST)
    found = plan_refresh(nightly.job(**asked("all")))
    assert (found["rows"]["new"], len(found["notes"])) == (40, 1)
    assert "reads all rows, to fit" in found["notes"][0]
    assert plan_refresh(nightly.job(**asked("truncate")))["notes"] == []


def test_the_gate_sees_the_same_shift_of_what_is_decoded(nightly: Nightly) -> None:
    keys = dict.fromkeys(range(400), 0)
    same_signs = np.abs(np.array(items(keys)["x"].to_pylist(), np.float32))
    lists = pa.FixedSizeListArray.from_arrays(pa.array(same_signs.ravel()), WIDTH)
    moved = items(keys).set_column(1, "x", lists)
    limit, shifts = {"gate": {**LOOSE, "output": {"centroid_shift": 0.2}}}, {}
    for dtype in (None, "int8"):
        values = {"store__path": f"{dtype}.lance", "normalize__dtype": dtype}
        nightly.night(keys, limit, **values)
        with pytest.raises(Held) as caught:
            nightly.night(moved, limit, **values)
        findings = (caught.value.night or {})["gate"]["findings"]
        shifts[dtype] = [f["measured"] for f in findings if f["limit"].endswith("centroid_shift")]
    assert shifts["int8"] == pytest.approx(shifts[None], rel=0.01)
    assert min(shifts["int8"]) > 0.2


def test_a_mean_that_a_file_gives_is_that_of_the_file(nightly: Nightly) -> None:
    np.save(nightly.path / "mean.npy", np.eye(WIDTH)[2])
    given = {"normalize__project_mean": "mean.npy", "normalize__dtype": "int8"}
    nightly.night(FIRST, **given)
    assert layout(nightly).normalization.mean == tuple(np.eye(WIDTH)[2])
    np.save(nightly.path / "mean.npy", np.eye(WIDTH)[3])
    waits = nightly.held({**FIRST, 1: 1}, **given)
    assert any("projected mean" in text for text in waits["warnings"])
    accept(nightly.store, waits["version"])
    way = layout(nightly).normalization
    assert way.mean == tuple(np.eye(WIDTH)[3])
    assert found(nightly) == expected(way, {**FIRST, 1: 1})


@every_option
def test_the_contract_of_a_version_says_what_was_done(nightly: Nightly, name: str) -> None:
    nightly.night(FIRST, **asked(name))
    nightly.night({**FIRST, 3: 1}, **asked(name))
    contract, way = Contract.load(nightly.store), layout(nightly).normalization
    assert [each.normalization for each in contract.outputs] == [way]
    assert len(contract.canaries) == 16
    for canary in contract.canaries:
        stored, norms = way.apply(canary.features["x"][np.newaxis])
        assert canary.vectors["x"].dtype == stored.dtype
        assert (canary.vectors["x"].tolist(), float(canary.norms["x"])) == (
            stored[0].tolist(),
            norms[0, 0],
        )


@pytest.mark.parametrize("name", TYPES)
def test_targets_get_floats(nightly: Nightly, database: psycopg.Connection, name: str) -> None:
    nightly.sections = {
        "publish": [
            {"to": "parquet", "path": "snapshot"},
            {"to": "changes", "path": "feed"},
            {"to": "faiss", "path": "items.index"},
            {"to": "pgvector", "table": "items", "index": "none", "rebuild_above": 0.5},
        ]
    }
    nightly.night(FIRST, **asked(name))
    nightly.night({**FIRST, 3: 1}, **asked(name))
    held = found(nightly)
    snapshot = pq.read_table(nightly.path / "snapshot" / "versions" / "2")
    assert by_key(snapshot) == {key: vector for key, (vector, _) in held.items()}
    assert by_key(pq.read_table(nightly.path / "feed" / "2" / "upserts")) == {3: held[3][0]}
    index = faiss.read_index(str(nightly.path / "items.index"))
    assert index.ntotal == 40
    assert index.reconstruct(3).tolist() == held[3][0]
    (text,) = database.execute("SELECT vector FROM items WHERE id = 3").fetchone() or ("",)
    assert [float(np.float32(number)) for number in text.strip("[]").split(",")] == held[3][0]


def by_key(table: pa.Table) -> Mapping[Any, list[float]]:
    assert table.schema.field("vector").type.value_type == pa.float32()
    return dict(zip(table["id"].to_pylist(), table["vector"].to_pylist(), strict=True))
