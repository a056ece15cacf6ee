from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.errors import JobError, OutputError, WorkFailed
from batchnorm_tool.publish import Target, faiss_build, open_target
from batchnorm_tool.publish.faiss import IndexFiles
from batchnorm_tool.publish.faiss_build import Neighbours, RecallQueries, RecallSample
from batchnorm_tool.storage.checked_json import verified_json
from batchnorm_tool.storage.files import OutputFile
from tests.publish.kills import killed_at
from tests.publish.publications import (
    Publication,
    Section,
    Store,
    a_month,
    integers,
    pairs,
    rows,
    texts,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """FAISS's threads wait for each other actively, which is slow where cores are shared."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


def target(path: Path, index: str = "auto", sample: int = 50) -> Target:
    return open_target(Section("faiss", path=str(path), index=index, sample=sample))


def read(path: Path, store: Store) -> dict[Any, bytes]:
    """Vectors by key, as someone reads them who knows nothing but the index's file."""
    index = faiss.read_index(str(path))
    ids = faiss.vector_to_array(index.id_map)
    vectors = np.stack([index.reconstruct(int(number)) for number in ids]) if len(ids) else []
    keys = [explained(path, int(number), store) for number in ids]
    return {key: vector.tobytes() for key, vector in zip(keys, vectors, strict=True)}


def explained(path: Path, number: int, store: Store) -> Any:
    version = number >> 40
    if not version:
        return number
    return explanations(path.with_name(f"{path.name}.{version}.keys.parquet"), store)[number]


def explanations(path: Path, store: Store) -> dict[int, tuple[Any, ...]]:
    table = pq.read_table(path)
    assert table.column_names == ["faiss_id", *store.keys]
    return {row.pop("faiss_id"): tuple(row.values()) for row in table.to_pylist()}


def wanted(publication: Publication) -> dict[Any, bytes]:
    table = publication.table
    columns = [table[name].to_pylist() for name in publication.layout.keys]
    keys = [*zip(*columns, strict=True)]
    if len(columns) == 1 and table[0].type in {pa.int8(), pa.uint8(), pa.uint32(), pa.int64()}:
        keys = columns[0]
    vectors = [np.array(vector, "f4").tobytes() for vector in table["vector"].to_pylist()]
    return dict(zip(keys, vectors, strict=True))


@pytest.mark.parametrize("keys", [integers, texts])
def test_every_version_of_a_month_arrives_exactly(keys: Any, tmp_path: Path) -> None:
    store, nights = a_month(keys)
    place, held = target(tmp_path / "x.faiss"), None
    for publication in nights:
        held = place.publish(publication, held)
        assert read(tmp_path / "x.faiss", store) == wanted(publication)
        assert (held["version"], held["rows"]) == (publication.version, publication.rows)


@pytest.mark.parametrize(
    "keys",
    [
        pairs(("a", 1), ("b", 1), ("b", 2)),
        {"id": pa.array([1, 2**64 - 1, 3], pa.uint64())},
        {"id": pa.array([b"x", b"y", b"\x00"])},
    ],
    ids=["composite", "uint64", "binary"],
)
def test_keys_that_are_no_ids_are_explained_by_a_file(
    keys: dict[str, pa.Array], tmp_path: Path
) -> None:
    store = Store(list(keys))
    publication = store.put(4, rows(keys, 1))
    facts = target(tmp_path / "x").publish(publication, None)
    assert read(tmp_path / "x", store) == wanted(publication)
    assert facts["keys"] == "x.4.keys.parquet"


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.uint32(), pa.int64()])
def test_integer_keys_are_the_ids(kind: pa.DataType, tmp_path: Path) -> None:
    store = Store(["id"])
    publication = store.put(4, rows({"id": pa.array([5, 0, 127], kind)}, 1))
    facts = target(tmp_path / "x").publish(publication, None)
    assert sorted(read(tmp_path / "x", store)) == [0, 5, 127]
    assert facts["keys"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x.contract.json", "x.json"]


def test_a_key_that_faiss_has_another_use_for_is_refused(tmp_path: Path) -> None:
    publication = Store(["id"]).put(1, rows(integers(3, -1), 1))
    with pytest.raises(OutputError, match="the key `id` is -1 in a row"):
        target(tmp_path / "x").publish(publication, None)
    unfit = target(tmp_path / "x").find_unfit(publication.table.select(["id"]), ["id"])
    assert unfit is not None
    assert (unfit.row, unfit.column) == (1, "id")
    for keys in (integers(3, 1), texts("-1"), {"id": pa.array([255], pa.uint8())}):
        assert target(tmp_path / "x").find_unfit(pa.table(keys), ["id"]) is None


def test_a_key_may_be_called_as_the_ids_are(tmp_path: Path) -> None:
    table = rows(texts("a", "b"), 1)
    renamed = table.rename_columns(["faiss_id", *table.column_names[1:]])
    target(tmp_path / "x").publish(Store(["faiss_id"]).put(1, renamed), None)
    held = pq.read_table(tmp_path / "x.1.keys.parquet")
    assert held.column_names == ["faiss_id_", "faiss_id"]
    assert held["faiss_id"].to_pylist() == ["a", "b"]


def test_the_document_tells_of_the_index(tmp_path: Path) -> None:
    _, nights = a_month()
    facts = target(tmp_path / "x").publish(nights[0], None)
    document = verified_json((tmp_path / "x.json").read_bytes())
    assert document == facts
    assert (tmp_path / "x.contract.json").read_bytes() == nights[0].contract
    size = (tmp_path / "x").stat().st_size
    assert facts.pop("sha256") == IndexFiles(tmp_path / "x").document().sha256  # type: ignore[union-attr]
    assert facts == {
        "version": 1,
        "rows": 40,
        "run_id": "store-1",
        "warnings": [],
        "index": "Flat",
        "recall_at_10": 1.0,
        "queries": 40,
        "effort": {},
        "keys": None,
        "norm": "l2",
        "space": "abc",
        "bytes": size,
    }


@pytest.fixture(scope="module")
def clustered() -> Publication:
    """Rows in which an index with lists misses neighbours if it looks at few."""
    return Store(["id"]).put(1, rows(integers(*range(3000)), 1, width=16))


def brute_recall(path: Path, publication: Publication, queries: int) -> float:
    """Recall@10 by other means: NumPy over everything, each row without itself."""
    index = faiss.read_index(str(path))
    vectors = np.array(publication.table["vector"].to_pylist(), "f4")
    asked = np.arange(queries) * len(vectors) // queries
    scores = vectors[asked] @ vectors.T
    scores[np.arange(queries), asked] = -np.inf
    true = np.argsort(-scores, axis=1)[:, :10]
    _, found = index.search(vectors[asked], 11)
    hits = [len({*t} & {*f} - {q}) for t, f, q in zip(true, found, asked, strict=True)]
    return float(np.mean(hits)) / 10


@pytest.mark.parametrize("index", ["IVF64,Flat", "64", "HNSW8", "IVF64,SQ8", "PQ4x4"])
def test_the_recall_is_that_of_the_file(index: str, clustered: Publication, tmp_path: Path) -> None:
    facts = target(tmp_path / "x", index, sample=40).publish(clustered, None)
    assert facts["recall_at_10"] == pytest.approx(brute_recall(tmp_path / "x", clustered, 40))
    assert facts["queries"] == 40


@pytest.mark.parametrize("index", ["IVF64,Flat", "HNSW4"])
def test_the_least_effort_that_reaches_the_wanted_recall_is_kept_in_the_file(
    index: str, clustered: Publication, tmp_path: Path
) -> None:
    facts = target(tmp_path / "x", index, sample=40).publish(clustered, None)
    assert facts["recall_at_10"] >= 0.95
    assert facts["warnings"] == []
    stored = faiss.read_index(str(tmp_path / "x"))
    ((name, value),) = facts["effort"].items()
    faiss.ParameterSpace().set_index_parameter(stored, name, value // 2)
    faiss.write_index(stored, str(tmp_path / "less"))
    assert brute_recall(tmp_path / "less", clustered, 40) < 0.95


def test_a_recall_that_cannot_be_reached_is_a_warning(
    clustered: Publication, tmp_path: Path
) -> None:
    facts = target(tmp_path / "x", "PQ4x4").publish(clustered, None)
    assert facts["recall_at_10"] < 0.95
    assert facts["warnings"][0].startswith("`PQ4x4` finds ")


def test_auto_is_exact_below_a_size_and_has_lists_above(
    clustered: Publication, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert faiss_build.factory_text("auto", 49_999) == "Flat"
    assert faiss_build.factory_text("auto", 50_000) == "IVF894,Flat"
    assert faiss_build.factory_text("HNSW32", 9) == "HNSW32"
    monkeypatch.setattr(faiss_build, "EXACT_BELOW", 3000)
    facts = target(tmp_path / "x").publish(clustered, None)
    assert facts["index"] == "IVF219,Flat"
    assert facts["recall_at_10"] >= 0.95


def test_equal_neighbours_are_all_right(tmp_path: Path) -> None:
    table = rows(integers(*range(60)), 1)
    same = pa.concat_tables([table.slice(0, 1)] * 60)["vector"].combine_chunks()
    table = table.set_column(1, "vector", same)
    facts = target(tmp_path / "x").publish(Store(["id"]).put(1, table), None)
    assert facts["recall_at_10"] == 1.0


@pytest.mark.parametrize(("count", "recall"), [(0, None), (1, None), (2, 1.0), (5, 1.0)])
def test_few_rows(count: int, recall: float | None, tmp_path: Path) -> None:
    store = Store(["id"])
    publication = store.put(1, rows(integers(*range(5)), 1).slice(0, count))
    facts = target(tmp_path / "x").publish(publication, None)
    assert facts["recall_at_10"] == recall
    assert read(tmp_path / "x", store) == wanted(publication)


def test_a_sample_is_spread_evenly_over_all_rows() -> None:
    sample = RecallSample(rows=1000, size=4)
    for first in range(0, 1000, 300):
        ids = np.arange(first, min(first + 300, 1000))
        sample.take(first, np.repeat(ids[:, None], 2, axis=1).astype("f4"), ids)
    taken = sample.queries()
    assert taken.ids.tolist() == [0, 250, 500, 750]
    assert taken.vectors[:, 0].tolist() == [0, 250, 500, 750]


def test_true_neighbours_do_not_depend_on_the_batches() -> None:
    random = np.random.default_rng(5)
    vectors = random.normal(size=(300, 5)).astype("f4")
    ids = np.arange(300)
    found = []
    for size in (300, 17):
        neighbours = Neighbours(RecallQueries(vectors[:9], ids[:9]))
        for first in range(0, 300, size):
            neighbours.add(vectors[first : first + size], ids[first : first + size])
        found.append(neighbours.ids[:, :60].tolist())
    assert found[0] == found[1]
    assert all(query not in found[0][query] for query in range(9))


def test_a_factory_text_that_faiss_does_not_know_is_refused(tmp_path: Path) -> None:
    _, nights = a_month()
    said = r"target `faiss`: FAISS refused an index `Nope`: .*Choose"
    with pytest.raises(OutputError, match=said):
        target(tmp_path / "x", "Nope").publish(nights[0], None)
    with pytest.raises(JobError, match=said):
        target(tmp_path / "x", "Nope").check_layout(nights[0].layout)
    target(tmp_path / "x").check_layout(nights[0].layout)


def test_rows_that_are_missing_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, nights = a_month()
    monkeypatch.setattr(Publication, "rows", property(lambda self: 41))
    with pytest.raises(WorkFailed, match="has 41 rows; 40 were read"):
        target(tmp_path / "x").publish(nights[0], None)


def test_float64_vectors_are_indexed_as_float32(tmp_path: Path) -> None:
    store = Store(["id"])
    publication = store.put(1, rows(integers(1, 2, 3), 1, dtype="f8"))
    target(tmp_path / "x").publish(publication, None)
    assert read(tmp_path / "x", store) == wanted(publication)


def test_the_files_that_explain_ids_stay_for_readers_of_older_indexes(tmp_path: Path) -> None:
    _, nights = a_month(texts)
    (tmp_path / "x.9.keys.parquet.mine").write_text("")
    (tmp_path / "y.1.keys.parquet").write_text("")
    for publication in nights[:5]:
        target(tmp_path / "x").publish(publication, None)
    names = sorted(path.name for path in tmp_path.glob("*keys*"))
    assert names == [
        "x.3.keys.parquet",
        "x.4.keys.parquet",
        "x.5.keys.parquet",
        "x.9.keys.parquet.mine",
        "y.1.keys.parquet",
    ]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["commit", "write"])
def test_killed_at_any_step_index_and_keys_agree(
    name: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, nights = a_month(texts)
    kills = 0
    for count in range(1, 30 if name == "commit" else 4):
        path = tmp_path / str(count) / "x"
        held = target(path).publish(nights[1], None)
        attempt = partial(target(path).publish, nights[2], held)
        if not killed_at(monkeypatch, (OutputFile, name), count, when, attempt):
            break
        kills += 1
        assert read(path, store) in [wanted(night) for night in nights[1:3]]
        (path.parent / ".x.new").write_text("left by a process that really died")
        target(path).publish(nights[2], held)
        assert read(path, store) == wanted(nights[2])
        document = IndexFiles(path).document()
        assert document is not None
        assert document.version == 3
    assert kills == (4 if name == "commit" else 3)


def test_an_index_that_is_there_already_is_not_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, nights = a_month()
    facts = target(tmp_path / "x").publish(nights[0], None)
    with monkeypatch.context() as patch:
        patch.setattr(faiss_build, "trained", None)
        assert target(tmp_path / "x").publish(nights[0], None) == facts
    (tmp_path / "x").write_bytes(b"something else")
    assert target(tmp_path / "x").publish(nights[0], None) == facts
    assert read(tmp_path / "x", store) == wanted(nights[0])
    (tmp_path / "x.json").unlink()
    assert target(tmp_path / "x").publish(nights[0], None) == facts


def test_a_missing_library_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target(tmp_path / "x").check()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(JobError, match=r"needs faiss.*pip install 'batchnorm-tool\[faiss\]'"):
        target(tmp_path / "x").check()


def test_a_path_on_an_object_store_is_refused_before_the_work() -> None:
    with pytest.raises(JobError, match="without a scheme"):
        open_target(Section("faiss", path="s3://bucket/x", index="auto")).check()
