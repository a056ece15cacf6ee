"""What a night takes up, by values: rows of every kind, layouts, columns, kinds of keys."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool import Job, history, read, refresh, verify
from batchnorm_tool.commands.refresh.changes import detect
from batchnorm_tool.errors import InputError, JobError, OutputError, Refused
from tests.command_line import python
from tests.commands.refresh.nightly import (
    Nightly,
    features,
    firsts,
    items,
    lists,
    rows_of,
    unit,
    units,
)
from tests.kill_points import tree
from tests.refresh_records import stored_record

FIRST = dict.fromkeys(range(30), 0)
COUNTS = ("in", "new", "changed", "touched", "same", "vanished", "predicted", "live")


def counts(night: Any) -> tuple[int, ...]:
    return tuple(night.rows[name] for name in COUNTS)


def test_the_first_load_holds_every_row(nightly: Nightly) -> None:
    night = nightly.night(FIRST)
    assert (night.state, night.version, night.record["kind"]) == ("published", 1, "load")
    assert counts(night) == (30, 30, 0, 0, 0, 0, 30, 30)
    assert nightly.vectors() == units(FIRST)
    rows = nightly.rows()
    assert {row["label"] for row in rows.values()} == {f"label {key}" for key in FIRST}
    assert {(row["status"], row["version"]) for row in rows.values()} == {("good", 1)}


def test_only_new_and_changed_rows_meet_the_model(encoded: Nightly, seen: set[float]) -> None:
    encoded.night(FIRST)
    first = encoded.rows()
    seen.clear()
    edits = {key: 0 for key in FIRST if key not in (7, 8)} | {3: 1, 4: 1, 50: 0}
    night = encoded.night(edits)
    assert seen == firsts({3: 1, 4: 1, 50: 0})
    assert counts(night) == (29, 1, 2, 0, 26, 2, 3, 29)
    rows = encoded.rows()
    assert {key for key, row in rows.items() if row["version"] == 2} == {3, 4, 50}
    assert all(rows[key] == first[key] for key in FIRST if key not in (3, 4, 7, 8))
    assert encoded.vectors() == encoded.from_scratch(edits)
    assert verify(encoded.store).rows == 29


def test_vectors_are_read_like_those_of_a_run(nightly: Nightly) -> None:
    nightly.night(FIRST)
    keys, vectors, norms = read(nightly.store).to_numpy()
    found = zip(keys.tolist(), vectors, norms.tolist(), strict=True)
    assert {key: (vector.tobytes(), norm) for key, vector, norm in found} == units(FIRST)


def relaid(nightly: Nightly, table: pa.Table, layout: str) -> None:
    """The same rows in other files, row groups, order or compression."""
    folder = nightly.path / "in"
    shuffled = table.take(np.random.default_rng(1).permutation(len(table)))
    nightly.put(shuffled if layout in ("order", "files") else table)
    if layout == "files":
        (folder / "items.parquet").unlink()
        for number, start in enumerate(range(0, len(table), 7)):
            pq.write_table(shuffled.slice(start, 7), folder / f"{number}.parquet")
    if layout == "row groups":
        pq.write_table(table, folder / "items.parquet", row_group_size=4)
    if layout == "compression":
        pq.write_table(table, folder / "items.parquet", compression="gzip", version="1.0")
    if layout == "columns":
        spare = pa.array(range(len(table)))
        mixed = table.select([*reversed(table.schema.names)]).append_column("spare", spare)
        pq.write_table(mixed, folder / "items.parquet")


LAYOUTS = ["order", "files", "row groups", "compression", "columns"]


def test_another_layout_is_nothing_to_do(nightly: Nightly, seen: set[float]) -> None:
    nightly.night(FIRST)
    before = tree(Path(nightly.store))
    record = stored_record(nightly.state, 1)
    for layout in LAYOUTS:
        relaid(nightly, items(FIRST), layout)
        seen.clear()
        night = nightly.night()
        assert (night.state, night.version) == ("nothing to do", 1), layout
        assert counts(night) == (30, 0, 0, 0, 30, 0, 0, 30)
        assert seen == set()
        assert tree(Path(nightly.store)) == before
        assert nightly.staged() == []
    assert [each["version"] for each in history(nightly.store)["nights"]] == [1]
    assert stored_record(nightly.state, 1) == record


def encoded_otherwise(table: pa.Table, how: str) -> pa.Table:
    words = table.set_column(0, "id", table["id"].cast(pa.string()))
    if how == "plain":
        return words
    if how == "dictionary":
        encoded = [words[name].dictionary_encode() for name in ("id", "label")]
        return words.set_column(0, "id", encoded[0]).set_column(2, "label", encoded[1])
    kind = pa.large_string() if how == "large" else pa.string()
    keys, x, label = words.schema
    fields = [keys.with_type(kind), x, label.with_type(kind)]
    return words.cast(pa.schema([field.with_nullable(how == "large") for field in fields]))


@pytest.mark.parametrize("how", ["large", "dictionary", "required"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_another_encoding_of_the_same_values_is_nothing_to_do(
    nightly: Nightly, how: str, *, first: bool
) -> None:
    one, two = (how, "plain") if first else ("plain", how)
    nightly.night(encoded_otherwise(items(FIRST), one))
    assert nightly.night(encoded_otherwise(items(FIRST), two)).state == "nothing to do"
    edits = {key: 0 for key in FIRST if key != 9} | {3: 1, 50: 0}
    nightly.put(encoded_otherwise(items(edits, label=["new"] * 30), two))
    for values in ({}, {"store__mode": "delta"}):
        nightly.night(**values)
        assert nightly.vectors() == {str(key): bits for key, bits in units(edits).items()}
    assert {row["label"] for row in nightly.rows().values()} == {"new"}
    assert verify(nightly.store).rows == 30


def test_a_required_column_may_get_nulls(nightly: Nightly) -> None:
    nightly.night(encoded_otherwise(items(FIRST), "required"))
    labels = ["new", *[None] * 29]
    nightly.night(encoded_otherwise(items(FIRST, label=labels), "plain"))
    assert [row["label"] for row in nightly.rows().values()].count(None) == 29
    assert nightly.rows()["0"]["label"] == "new"


def test_nothing_to_do_imports_neither_tensorflow_nor_lance(encoded: Nightly) -> None:
    encoded.night(FIRST)
    relaid(encoded, items(FIRST), "files")
    job = encoded.path / "job.yaml"
    job.write_text(encoded.job().to_yaml())
    script = (
        "import sys, batchnorm_tool as b; n = b.refresh(b.Job.load(sys.argv[1])); "
        "print(n.state, sorted({'tensorflow', 'keras', 'lance'} & {*sys.modules}))"
    )
    found = python("-c", script, str(job))
    assert found.stdout == "nothing to do []\n", found.stderr


def test_an_input_that_is_the_live_versions_is_not_measured_again(
    nightly: Nightly, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = nightly.night(FIRST).record["input"]
    measure = detect.statistics_of
    monkeypatch.setattr(detect, "statistics_of", lambda *_: pytest.fail("measured again"))
    again = nightly.night(FIRST)
    assert (again.state, again.record["input"]) == ("nothing to do", first)
    monkeypatch.setattr(detect, "statistics_of", measure)
    other = nightly.night({**FIRST, 30: 0}).record["input"]
    assert other["statistics"]["inputs"]["x"]["rows"] == 31


def test_a_night_without_predictions_needs_no_tensorflow(encoded: Nightly) -> None:
    encoded.night(FIRST)
    edits = {key: 0 for key in FIRST if key != 9}
    encoded.put(items(edits, label=["other"] * 29))
    job = encoded.path / "job.yaml"
    job.write_text(encoded.job().to_yaml())
    script = (
        "import sys, batchnorm_tool as b; n = b.refresh(b.Job.load(sys.argv[1])); "
        "print(n.state, n.rows['touched'], n.rows['vanished'], 'tensorflow' in sys.modules)"
    )
    found = python("-c", script, str(job))
    assert found.stdout == "published 29 1 False\n", found.stderr
    assert {row["label"] for row in encoded.rows().values()} == {"other"}


def test_touched_rows_keep_their_vector_to_the_bit(nightly: Nightly, seen: set[float]) -> None:
    nightly.night(FIRST)
    before = nightly.vectors()
    seen.clear()
    labels = [f"label {key}" if key % 3 else None for key in FIRST]
    night = nightly.night(items(FIRST, label=labels))
    assert counts(night) == (30, 0, 0, 10, 20, 0, 0, 30)
    assert seen == set()
    assert nightly.vectors() == before
    rows = nightly.rows()
    assert [rows[key]["label"] for key in FIRST] == labels
    assert {key for key in FIRST if rows[key]["version"] == 2} == {*range(0, 30, 3)}


def test_a_changed_row_gets_tonights_label_too(nightly: Nightly) -> None:
    nightly.night(FIRST)
    nightly.night(items({**FIRST, 5: 1}, label=["new"] * 30))
    assert nightly.vectors() == units({**FIRST, 5: 1})
    assert {row["label"] for row in nightly.rows().values()} == {"new"}


def test_a_new_passed_through_column_is_taken_up(nightly: Nightly, seen: set[float]) -> None:
    nightly.night(FIRST)
    before = nightly.vectors()
    seen.clear()
    prices = [float(key) for key in FIRST]
    wanted = ["price", "label"]
    night = nightly.night(items(FIRST, price=prices), input__passthrough=wanted)
    assert (night.state, night.version) == ("published", 2)
    assert night.record["warnings"] == ["The passed-through column `price` is added to the store."]
    assert seen == set()
    assert nightly.vectors() == before
    assert [nightly.rows()[key]["price"] for key in FIRST] == prices
    assert lance.dataset(nightly.store).schema.names[-2:] == wanted
    assert nightly.night(input__passthrough=wanted).state == "nothing to do"


def test_a_new_column_of_nulls_is_taken_up(nightly: Nightly) -> None:
    nightly.night(FIRST)
    empty = pa.nulls(30, pa.float32())
    night = nightly.night(items(FIRST, price=empty), input__passthrough=["label", "price"])
    assert night.state == "published"
    assert lance.dataset(nightly.store).schema.field("price").type == pa.float32()
    assert {row["price"] for row in nightly.rows().values()} == {None}


def test_a_removed_passed_through_column_goes(nightly: Nightly, seen: set[float]) -> None:
    nightly.night(FIRST)
    before = nightly.vectors()
    seen.clear()
    night = nightly.night({**FIRST, 40: 0}, input__passthrough=[])
    assert night.state == "published"
    assert night.record["warnings"] == [
        "The passed-through column `label` is removed from the store."
    ]
    assert seen == firsts({40: 0})
    assert "label" not in lance.dataset(nightly.store).schema.names
    assert nightly.vectors() == before | units({40: 0})


def test_a_passed_through_column_may_change_its_type(nightly: Nightly) -> None:
    nightly.night(FIRST)
    nightly.night(items(FIRST, label=[*range(30)]))
    assert {key: row["label"] for key, row in nightly.rows().items()} == {k: k for k in FIRST}


DAYS = [dt.date(2026, 1, 1) + dt.timedelta(days) for days in range(30)]
WORDS = [f'it\'s "{number}" \\ é' for number in range(30)]


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(WORDS, id="strings"),
        pytest.param(DAYS, id="dates"),
        pytest.param([dt.datetime.combine(day, dt.time(3)) for day in DAYS], id="times"),
        pytest.param([bytes([number]) for number in range(30)], id="binary"),
        pytest.param(pa.array(WORDS).dictionary_encode(), id="dictionary"),
        pytest.param(pa.array(range(30), pa.uint8()), id="unsigned"),
    ],
)
def test_kinds_of_keys(nightly: Nightly, keys: Any) -> None:
    values = keys.to_pylist() if isinstance(keys, pa.Array) else keys
    kind = keys.type if isinstance(keys, pa.Array) else None

    def table(edits: dict[int, int]) -> pa.Table:
        column = pa.array([values[key] for key in edits], kind)
        return items(edits).set_column(0, "id", column)

    nightly.night(table(dict.fromkeys(range(20), 0)))
    edits = {**dict.fromkeys(range(2, 30), 0), 5: 1}
    night = nightly.night(table(edits))
    assert counts(night) == (28, 10, 1, 0, 17, 2, 11, 28)
    assert nightly.vectors() == {values[key]: bits for key, bits in units(edits).items()}
    assert nightly.night().state == "nothing to do"
    assert verify(nightly.store).rows == 28


def test_keys_of_several_columns(nightly: Nightly) -> None:
    def table(edits: dict[tuple[str, int], int]) -> pa.Table:
        parts = {"shop": [key[0] for key in edits], "day": [DAYS[key[1]] for key in edits]}
        return pa.table({**parts, "x": lists([features(*each) for each in edits.items()])})

    source = {"input": {"path": "in", "key": ["shop", "day"], "features": {"x": "x"}}}
    first = {(shop, day): 0 for shop in ("a", "b'", "") for day in range(5)}
    nightly.night(table(first), source)
    edits = {key: edit for key, edit in first.items() if key != ("b'", 2)}
    edits = {**edits, ("a", 1): 1, ("c", 0): 0}
    night = nightly.night(table(edits), source)
    assert counts(night) == (15, 1, 1, 0, 13, 1, 2, 15)
    expected = {(key[0], DAYS[key[1]]): bits for key, bits in units(edits).items()}
    assert nightly.vectors() == expected


def test_numpy_input_with_a_file_of_keys(nightly: Nightly) -> None:
    source = {"input": {"path": "x.npy", "keys": "keys.npy"}}

    def put(edits: dict[int, int]) -> None:
        np.save(nightly.path / "x.npy", np.array([features(*each) for each in edits.items()]))
        np.save(nightly.path / "keys.npy", np.array([*edits]))

    def bits() -> dict[Any, Any]:
        table = lance.dataset(nightly.store).to_table()
        name = table.schema.names[0]
        found = rows_of(table.rename_columns({name: "id"}))
        return {key: (row["vector"], row["norm"]) for key, row in found.items()}

    put(FIRST)
    nightly.night(None, source)
    assert bits() == units(FIRST)
    put({**dict(reversed(FIRST.items())), 3: 1, 90: 0})
    night = nightly.night(None, source)
    assert counts(night) == (31, 1, 1, 0, 29, 0, 2, 31)
    assert bits() == units({**FIRST, 3: 1, 90: 0})


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_types_of_vectors(nightly: Nightly, dtype: str) -> None:
    nightly.night(FIRST, output={"dtype": dtype})
    edits = {**FIRST, 3: 1, 4: 1}
    nightly.put(items(edits, label=["other"] * 30))
    nightly.night(output={"dtype": dtype})
    expected = {key: unit(features(key, edit), dtype) for key, edit in edits.items()}
    assert nightly.vectors() == expected
    assert verify(nightly.store).rows == 30


@pytest.mark.parametrize("norm", ["l1", "none", "max"])
def test_other_norms(nightly: Nightly, norm: str) -> None:
    nightly.sections = {"normalize": {"norm": norm}}
    nightly.night(FIRST)
    edits = {**FIRST, 3: 1, 31: 0}
    nightly.night(edits)
    orders = {"l1": 1, "max": np.inf}
    for key, (bits, length) in nightly.vectors().items():
        wide = features(key, edits[key]).astype(np.float64)
        expected = (
            np.linalg.norm(wide[np.newaxis], orders[norm], axis=-1)[0] if norm in orders else 1
        )
        assert bits == (wide / expected).astype(np.float32).tobytes()
        assert length == expected
    assert verify(nightly.store).rows == 31


def test_features_whose_variance_is_beyond_float64(tmp_path: Path) -> None:
    rows = {"id": [1, 2], "x": pa.array([[1e200, 1.0], [-3e200, 2.0]], pa.list_(pa.float64(), 2))}
    pq.write_table(pa.table(rows), tmp_path / "in.parquet")
    sections = {
        "input": {"path": "in.parquet", "key": "id", "features": "x"},
        "store": {"path": "s.lance"},
    }
    night = refresh(Job.from_dict(sections, tmp_path))
    assert night.record["norms"]["max"] == 3e200
    assert night.record["norms"]["std"] is None
    assert verify(tmp_path / "s.lance").rows == 2


@pytest.mark.parametrize("names", [("embedding", "length"), ("label", "norm"), ("norm", "vector")])
def test_columns_of_results_may_be_renamed(nightly: Nightly, names: tuple[str, str]) -> None:
    nightly.night(FIRST)
    before = stored_record(nightly.state, 1)
    vector, norm = names
    values = {"output": {"columns": {"vector": vector, "norm": norm}}, "input__passthrough": []}
    night = nightly.night(FIRST, **values)
    assert (night.state, night.rows["predicted"]) == ("published", 0)
    night = nightly.night({**FIRST, 3: 1}, **values)
    assert night.rows["predicted"] == 1
    table = lance.dataset(nightly.store).to_table()
    columns = {vector: "vector", norm: "norm"}
    found = rows_of(table.rename_columns([columns.get(name, name) for name in table.schema.names]))
    assert {key: (row["vector"], row["norm"]) for key, row in found.items()} == units(
        {**FIRST, 3: 1}
    )
    assert verify(nightly.store).rows == 30
    assert stored_record(nightly.state, 1) == before
    # Vectors under the old names are not looked for under the new ones.
    assert nightly.night(FIRST, **values).state == "published"


def test_a_name_alone_is_something_to_do(nightly: Nightly) -> None:
    nightly.night(FIRST)
    columns = {"output": {"columns": {"vector": "embedding", "norm": "norm"}}}
    assert nightly.night(FIRST, **columns).state == "published"
    assert "embedding" in lance.dataset(nightly.store).schema.names
    assert nightly.night(FIRST, **columns).state == "nothing to do"


def test_another_type_of_vectors_recomputes_all_of_them(nightly: Nightly, seen: set[float]) -> None:
    nightly.night(FIRST)
    seen.clear()
    half = {"output": {"dtype": "float16"}}
    night = nightly.night({**FIRST, 3: 1}, **half)
    assert (night.state, night.record["new_space"]) == ("published", False)
    assert night.record["warnings"] == [
        "The vector type changes from float32 to float16: every row is recomputed."
    ]
    assert seen == firsts({**FIRST, 3: 1})
    expected = {key: unit(features(key, edit), "float16") for key, edit in FIRST.items()}
    assert nightly.vectors() == expected | {3: unit(features(3, 1), "float16")}
    night = nightly.night(FIRST, **half)  # version 1 has this row's vector, with other bits
    assert (night.rows["predicted"], night.rows["reused"]) == (1, 0)
    assert nightly.vectors() == expected


def test_an_empty_input_empties_the_store(nightly: Nightly) -> None:
    nightly.night(FIRST)
    night = nightly.night({})
    assert counts(night) == (0, 0, 0, 0, 0, 30, 0, 0)
    assert nightly.rows() == {}
    assert nightly.night().state == "nothing to do"
    nightly.night(FIRST)
    assert nightly.vectors() == units(FIRST)


def test_a_first_load_without_rows(nightly: Nightly) -> None:
    night = nightly.night({})
    assert (night.state, night.version, counts(night)) == ("published", 1, (0,) * 8)
    assert nightly.rows() == {}
    assert len(read(nightly.store)) == 0
    nightly.night({1: 0})
    assert nightly.vectors() == units({1: 0})


def test_a_first_load_without_rows_through_a_model(encoded: Nightly) -> None:
    assert encoded.night({}).state == "published"
    encoded.night(FIRST)
    assert encoded.vectors() == encoded.from_scratch(FIRST)


NO_KEY = {"input": {"path": "in", "features": {"x": "x"}}}
TWO = {"input": {"path": "in", "key": "id", "features": {"x": "x", "y": "x"}}}
RANK_3 = {"input": {"path": "cube.npy", "keys": "keys.npy"}}


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        pytest.param(NO_KEY, JobError, "`input.key` is missing: a refresh identifies", id="no key"),
        pytest.param(
            {"normalize": {"nonfinite": "nullify"}},
            JobError,
            "`normalize.nonfinite` cannot be `nullify` in a store, where every row has a finite "
            "vector. Expected `quarantine`, `fail`. `store.bad_rows`",
            id="nullify",
        ),
        pytest.param(
            {"normalize": {"zero": "drop"}},
            JobError,
            "`normalize.zero` cannot be `drop` in a store",
            id="drop zero vectors",
        ),
        pytest.param(
            {"input": {"path": "in", "key": "id", "features": "x", "invalid": "drop"}},
            JobError,
            "`input.invalid` cannot be `drop` in a store",
            id="drop invalid rows",
        ),
        pytest.param(
            {"output": {"format": "npy"}},
            JobError,
            "`output.format` cannot be `npy` in a store",
            id="another format",
        ),
        pytest.param(
            TWO,
            JobError,
            "A store holds one vector for each row. Expected one output with one axis. Received: "
            "`x` of shape (8,); `y` of shape (8,). Choose one with `model.outputs`",
            id="two outputs",
        ),
        pytest.param(
            RANK_3,
            JobError,
            "A store holds one vector for each row. Expected one output with one axis.",
            id="rank 3",
        ),
        pytest.param(
            {"output": {"columns": {"vector": "status"}}},
            JobError,
            "Two columns of the store would be named `status`.",
            id="a name of the store",
        ),
        pytest.param(
            {
                "input": {
                    "path": "in",
                    "key": "id",
                    "features": {"x": "x"},
                    "passthrough": ["version"],
                }
            },
            JobError,
            "Two columns of the store would be named `version`",
            id="a passed-through column of the store's name",
        ),
        pytest.param(
            {"output": {"columns": {"vector": "label"}}},
            Refused,
            "label",
            id="vector named like a passed-through column",
        ),
    ],
)
def test_refused_jobs(
    nightly: Nightly, sections: dict[str, Any], error: type[Refused], message: str
) -> None:
    nightly.put(items(FIRST, version=[1] * 30))
    np.save(nightly.path / "cube.npy", np.ones((5, 2, 3), np.float32))
    np.save(nightly.path / "keys.npy", np.arange(5))
    before = tree(nightly.path)
    with pytest.raises(error) as caught:
        nightly.night(None, sections)
    assert message in caught.value.message
    assert caught.value.exit_code == 2
    assert without_lock(tree(nightly.path)) == before


def test_a_job_without_a_store_is_refused(nightly: Nightly) -> None:
    job = Job.from_dict({"input": {"path": "in"}, "output": {"path": "out"}}, nightly.path)
    with pytest.raises(JobError, match="`store` is missing: a refresh needs a store"):
        refresh(job)
    assert tree(nightly.path) == {}


def without_lock(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: data for path, data in files.items() if not path.endswith("lock")}


def test_another_type_of_key_is_refused(nightly: Nightly) -> None:
    nightly.night(FIRST)
    before = without_lock(tree(nightly.path / "items.lance")), nightly.state.pointer()
    table = items(FIRST).set_column(0, "id", pa.array(range(30), pa.int32()))
    with pytest.raises(
        InputError,
        match=r"`input\.key`: the store has a different key\. Expected `id` \(int64\)\. "
        r"Received: `id` \(int32\)\. Use the same key",
    ):
        nightly.night(table)
    assert (without_lock(tree(nightly.path / "items.lance")), nightly.state.pointer()) == before


def test_another_key_column_is_refused(nightly: Nightly) -> None:
    nightly.night(FIRST)
    with pytest.raises(InputError, match="a different key"):
        nightly.night(None, input__key="label", input__passthrough=[])


def test_a_dataset_of_somebody_else_is_refused(nightly: Nightly) -> None:
    lance.write_dataset(pa.table({"a": [1, 2]}), nightly.store)
    before = tree(Path(nightly.store))
    with pytest.raises(
        OutputError, match="holds a Lance dataset that `batchnorm-tool refresh` did not create"
    ):
        nightly.night(FIRST)
    assert tree(Path(nightly.store)) == before


def test_a_store_that_somebody_else_wrote_to_is_refused(nightly: Nightly) -> None:
    nightly.night(FIRST)
    lance.dataset(nightly.store).delete("id = 3")
    before = tree(Path(nightly.store))
    with pytest.raises(OutputError, match="Another program has written to"):
        nightly.night({**FIRST, 4: 1})
    assert tree(Path(nightly.store)) == before


def test_a_null_key_and_a_key_twice_are_refused(nightly: Nightly) -> None:
    nightly.night(FIRST)
    before = nightly.rows()
    for keys, message in (([1, None], "the key is null"), ([1, 1], "Expected unique keys")):
        table = items({1: 0, 2: 0}).set_column(0, "id", pa.array(keys, pa.int64()))
        with pytest.raises(InputError, match=message):
            nightly.night(table)
    assert nightly.rows() == before
    assert nightly.night(FIRST).state == "nothing to do"


def test_records_are_plain_data_and_say_what_was_read(encoded: Nightly) -> None:
    encoded.night(FIRST)
    record = history(encoded.store)["nights"][0]
    assert json.loads(json.dumps(record)) == record
    assert record["rows"]["predicted"] == 30
    (file,) = record["input"]["files"]
    assert (file["path"], file["rows"]) == (str(encoded.path / "in" / "items.parquet"), 30)
    assert record["settings"]["batch_size"] > 0
    assert record["model"]["path"] == encoded.sections["model"]["path"]
    norms = sorted(norm for _, norm in encoded.vectors().values())
    assert (record["norms"]["count"], record["norms"]["min"]) == (30, norms[0])
    assert record["norms"]["max"] == norms[-1]
