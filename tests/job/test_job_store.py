"""The sections of a refresh: `store`, `gate` and `publish`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool import run
from batchnorm_tool.errors import JobError
from batchnorm_tool.job import Gate, Job, Keep, Publish, Store, job_schema
from batchnorm_tool.job.refresh_sections import InputGate, OutputGate
from tests.job.job_texts import job_of, refusal_of

BASE = {"input": {"path": "/data/in"}, "store": {"path": "/stores/items.lance"}}

TARGETS = "`changes`, `parquet`, `pgvector`, `faiss` or `query_model`"
# Every key, with a value that is not its default.
FULL = {
    "store": {
        "path": "/stores/items.lance",
        "mode": "delta",
        "delete_column": "gone",
        "keep": {"count": 3, "days": 7},
        "columns": {
            "feature_hash": "features",
            "passthrough_hash": "values",
            "status": "state",
            "version": "written",
        },
        "on_new_space": "publish",
        "on_new_bits": "recompute",
        "bad_rows": "remove",
    },
    "gate": {
        "action": "warn",
        "input": {
            "new": 0.5,
            "changed": 0.1,
            "vanished": 0.0,
            "null_shift": 0.02,
            "constant_feature": "ignore",
            "mean_shift": 2.0,
            "deviation_ratio": 8.0,
            "min_rows": 10,
        },
        "output": {
            "bad": 0.5,
            "norm_psi": 0.1,
            "norm_quantiles": 0.4,
            "centroid_shift": 0.5,
            "dimension_shift": 2.5,
            "frechet": 0.7,
            "min_rows": 20,
        },
    },
    "publish": [
        {"to": "changes", "name": "feed", "path": "/feed", "keep": 5},
        {"to": "parquet", "path": "/snapshots", "keep": 2},
        {
            "to": "pgvector",
            "table": "public.items",
            "dsn_env": "ITEMS_DSN",
            "rebuild_above": 0.5,
            "index": "none",
        },
        {"to": "faiss", "path": "/items.faiss", "index": "Flat", "sample": 50},
        {
            "to": "query_model",
            "path": "/queries",
            "keep": 2,
            "model": "/query.keras",
            "layer": "tower",
            "outputs": ["query"],
            "formats": ["keras", "savedmodel"],
        },
    ],
}


def job(**sections: Any) -> Job:
    return Job.from_dict({**BASE, **sections}, "/jobs")


def refusal(**sections: Any) -> str:
    with pytest.raises(JobError) as caught:
        job(**sections)
    return caught.value.message


def store(**values: Any) -> dict[str, Any]:
    return {"store": {"path": "/stores/items.lance", **values}}


def test_every_key_is_read_and_written_back() -> None:
    found = job(**FULL)
    data = json.loads(json.dumps(found.to_dict()))
    for section in ("store", "gate"):
        assert data[section] == FULL[section]
    given = [{k: v for k, v in target.items() if v is not None} for target in data["publish"]]
    assert given == FULL["publish"]
    assert Job.from_dict(data) == found
    assert Job.model_validate(found.model_dump()) == found


def test_a_job_file_is_written_that_reads_back(tmp_path: Path) -> None:
    found = job(**FULL)
    assert job_of(found.to_yaml(), tmp_path) == found
    assert job_of(found.to_yaml(defaults=True), tmp_path) == found


def test_defaults() -> None:
    found = job()
    assert found.store == Store(path="/stores/items.lance")
    assert found.store is not None
    assert found.store.model_dump() == {
        "path": "/stores/items.lance",
        "mode": "full",
        "delete_column": None,
        "columns": {
            "feature_hash": "feature_hash",
            "passthrough_hash": "passthrough_hash",
            "status": "status",
            "version": "version",
        },
        "keep": {"count": 14, "days": 30},
        "on_new_space": "hold",
        "on_new_bits": "keep",
        "bad_rows": "keep",
    }
    assert found.gate.action == "hold"
    assert found.gate.input == InputGate()
    assert found.gate.output == OutputGate()
    assert found.gate.input.model_dump() == {
        "new": None,
        "changed": 0.2,
        "vanished": 0.02,
        "null_shift": 0.01,
        "constant_feature": "fail",
        "mean_shift": 1.0,
        "deviation_ratio": 4.0,
        "min_rows": 200,
    }
    assert found.gate.output.model_dump() == {
        "bad": 0.001,
        "norm_psi": 0.2,
        "norm_quantiles": 0.2,
        "centroid_shift": 0.3,
        "dimension_shift": 1.5,
        "frechet": 0.3,
        "min_rows": 200,
    }
    assert found.publish == []


def test_a_job_without_a_store_has_none() -> None:
    found = Job.from_dict({"input": {"path": "in"}, "output": {"path": "out"}})
    assert (found.store, found.publish) == (None, [])


@pytest.mark.parametrize(
    ("target", "defaults"),
    [
        ({"to": "changes", "path": "/f"}, {"keep": 30}),
        ({"to": "parquet", "path": "/p"}, {"keep": 3}),
        (
            {"to": "pgvector", "table": "items"},
            {"dsn_env": "BATCHNORM_TOOL_PGVECTOR_DSN", "rebuild_above": 0.02, "index": "hnsw"},
        ),
        ({"to": "faiss", "path": "/x"}, {"index": "auto", "sample": 1000}),
        (
            {"to": "query_model", "path": "/q", "model": "/m.keras"},
            {"keep": 3, "formats": ["keras"]},
        ),
    ],
    ids=["changes", "parquet", "pgvector", "faiss", "query_model"],
)
def test_defaults_of_targets(target: dict[str, str], defaults: dict[str, Any]) -> None:
    (found,) = job(publish=[target]).publish
    assert found.model_dump(exclude_none=True) == {**target, **defaults}
    assert found.label == target["to"]
    assert Publish(**target, name="other").label == "other"


def test_gate_warn_is_short_for_its_action(tmp_path: Path) -> None:
    assert job(gate="warn").gate == Gate(action="warn")
    assert job(gate="hold").gate == Gate()
    text = "input: {path: in}\nstore: {path: s.lance}\ngate: warn\n"
    assert job_of(text, tmp_path).gate == Gate(action="warn")


def test_relative_places_begin_at_the_job_file(tmp_path: Path) -> None:
    text = "input: {path: in}\nstore: {path: s.lance}\npublish: [{to: changes, path: feed}]\n"
    found = job_of(text, tmp_path)
    assert found.store is not None
    assert found.store.path == str(tmp_path / "s.lance")
    assert found.publish[0].path == str(tmp_path / "feed")


@pytest.mark.parametrize("count", [None, 1, "5"])
def test_limits_on_kept_versions_may_be_left_open(count: int | str | None) -> None:
    assert Keep(count=count, days=None).count == (5 if count == "5" else count)


@pytest.mark.parametrize("section", ["input", "output"])
def test_any_limit_may_be_left_out(section: str) -> None:
    names = [
        name
        for name in FULL["gate"][section]  # type: ignore[index]
        if name not in ("constant_feature", "min_rows")
    ]
    found = getattr(job(gate={section: dict.fromkeys(names)}).gate, section)
    assert {getattr(found, name) for name in names} == {None}


NUMBER = "a number of 0 or more, or null for no limit"
COUNT = "a positive integer"
KEPT = f"{COUNT}, or null"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (store(path=3), "`store.path` must be a path. Received: 3 (an integer)."),
        ({"store": {}}, "`store.path` is missing. Expected: a path."),
        (
            store(mode="partial"),
            "`store.mode` must be `full` or `delta`. Received: 'partial' (text).",
        ),
        (store(mode="ful"), "Did you mean `full`?"),
        (
            store(mode="delta", delete_column=""),
            "`store.delete_column` must be a column name. Received: '' (text).",
        ),
        (
            store(delete_column="gone"),
            (
                "`store.delete_column` is for `mode: delta`: with a full input, missing rows are "
                "deleted."
            ),
        ),
        (
            store(keep=3),
            (
                "`store.keep` must be a section with the keys `count` and `days`. Received: 3 (an "
                "integer)."
            ),
        ),
        (store(keep={"count": 0}), f"`store.keep.count` must be {KEPT}. Received: 0 (an integer)."),
        (store(keep={"days": 1.5}), f"`store.keep.days` must be {KEPT}. Received: 1.5 (a number)."),
        (
            store(keep={"versions": 1}),
            "`store.keep.versions` is not a key. Known keys: `count` and `days`.",
        ),
        (
            store(on_new_space="wait"),
            "`store.on_new_space` must be `hold` or `publish`. Received: 'wait' (text).",
        ),
        (
            store(on_new_bits=True),
            "`store.on_new_bits` must be `keep` or `recompute`. Received: true (a boolean).",
        ),
        (
            store(bad_rows="drop"),
            "`store.bad_rows` must be `keep` or `remove`. Received: 'drop' (text).",
        ),
        (store(on_new_spaces="hold"), "`store.on_new_spaces` is not a key. Did you mean"),
        ({"gate": "strict"}, "`gate.action` must be `hold` or `warn`. Received: 'strict' (text)."),
        (
            {"gate": {"input": {"changed": -1}}},
            f"`gate.input.changed` must be {NUMBER}. Received: -1 (an integer).",
        ),
        (
            {"gate": {"input": {"vanished": "many"}}},
            f"`gate.input.vanished` must be {NUMBER}. Received: 'many' (text).",
        ),
        (
            {"gate": {"input": {"constant_feature": None}}},
            "`gate.input.constant_feature` must be `fail` or `ignore`. Received: null (nothing).",
        ),
        ({"gate": {"input": {"min_rows": 0}}}, "`gate.input.min_rows` must be "),
        (
            {"gate": {"output": {"bad": 1.5}}},
            f"`gate.output.bad` must be {NUMBER}. Received: 1.5 (a number).",
        ),
        (
            {"gate": {"output": {"frechet": float("inf")}}},
            f"`gate.output.frechet` must be {NUMBER}. Received: inf (a number).",
        ),
        ({"gate": {"output": {"fretchet": 1}}}, "`gate.output.fretchet` is not a key. Did you"),
        (
            {"gate": {"changed": 1}},
            "`gate.changed` is not a key. Did you mean `gate.input.changed`",
        ),
        (
            {"publish": {"to": "changes"}},
            "`publish` must be a list of targets, each with `to`. Received: {'to': 'changes'}",
        ),
        ({"publish": [{"path": "/f"}]}, f"`publish.0.to` is missing. Expected: {TARGETS}."),
        (
            {"publish": [{"to": "pinecone"}]},
            (f"`publish.0.to` must be {TARGETS}. Received: 'pinecone' (text)."),
        ),
        ({"publish": [{"to": "changes"}]}, "`publish.0.path` is missing: `to: changes` needs it."),
        (
            {"publish": [{"to": "pgvector", "path": "/f"}]},
            "`publish.0.table` is missing: `to: pgvector` needs it.",
        ),
        (
            {"publish": [{"to": "parquet", "path": "/f", "table": "items"}]},
            "`publish.0.table` is not for `to: parquet`, which takes `path`, `keep`.",
        ),
        (
            {"publish": [{"to": "faiss", "path": "/f", "keep": 3}]},
            "`publish.0.keep` is not for `to: faiss`, which takes `path`, `index`, `sample`.",
        ),
        (
            {"publish": [{"to": "pgvector", "table": "items", "index": "flat"}]},
            "`publish.0.index` must be `hnsw`, `ivfflat` or `none`. Received: 'flat' (text).",
        ),
        (
            {"publish": [{"to": "changes", "path": "/f", "keep": 0}]},
            f"`publish.0.keep` must be {COUNT}. Received: 0 (an integer).",
        ),
        (
            {"publish": [{"to": "pgvector", "table": "items", "rebuild_above": 2}]},
            "`publish.0.rebuild_above` must be a fraction from 0 to 1. Received: 2",
        ),
        (
            {"publish": [{"to": "faiss", "path": "/f", "sample": "all"}]},
            f"`publish.0.sample` must be {COUNT}. Received: 'all' (text).",
        ),
        ({"publish": [{"to": "faiss", "file": "/f"}]}, "`publish.0.file` is not a key."),
        (
            {"publish": [{"to": "parquet", "path": "/a"}, {"to": "parquet", "path": "/b"}]},
            "`publish` has two targets named `parquet`. Give each its own `name`.",
        ),
        (
            {"publish": [{"to": "parquet", "path": "/a", "name": "x/y"}]},
            "`publish` names a target `x/y`. Expected only letters, digits, `-` and `_`.",
        ),
    ],
)
def test_what_a_refusal_says(sections: dict[str, Any], message: str) -> None:
    assert message in refusal(**sections)


def test_two_targets_of_one_kind_have_names() -> None:
    targets = [{"to": "parquet", "path": "/a"}, {"to": "parquet", "path": "/b", "name": "b"}]
    assert [target.label for target in job(publish=targets).publish] == ["parquet", "b"]


def test_all_that_is_wrong_is_said_at_once() -> None:
    found = refusal(
        store={"path": "/s", "mode": "x", "keep": {"count": 0}},
        gate={"input": {"new": -1}},
        publish=[{"to": "changes", "path": "/f"}, {"to": "nowhere"}],
    )
    for key in ("store.mode", "store.keep.count", "gate.input.new", "publish.1.to"):
        assert f"`{key}`" in found
    assert "4 errors" in found


def test_the_output_of_a_store_may_be_left_out() -> None:
    assert job().output.path == "/stores/items.lance.state/night/scored"
    assert job(output={"dtype": "float16"}).output.path == (
        "/stores/items.lance.state/night/scored"
    )
    assert job(output={"path": "/out"}).output.path == "/out"


def test_without_a_store_the_output_is_missing(tmp_path: Path) -> None:
    text = "input: {path: in}\n"
    assert "`output.path` is missing. Expected: a path." in refusal_of(text, tmp_path)


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({**store(path="/data/in/items.lance"), "output": {"path": "/out"}}, "store.path"),
        ({**store(path="/data/in"), "output": {"path": "/out"}}, "store.path"),
        ({"publish": [{"to": "changes", "path": "/data/in/feed"}]}, "publish.0.path"),
        (
            {
                "publish": [
                    {"to": "changes", "path": "/feed"},
                    {"to": "faiss", "path": "/data/in/x"},
                ]
            },
            "publish.1.path",
        ),
    ],
    ids=["store", "the input itself", "feed", "second target"],
)
def test_places_inside_the_input_are_refused(sections: dict[str, Any], key: str) -> None:
    assert refusal(**sections) == (
        f"job: `{key}` is inside the input, /data/in, and would be read as input. Choose another "
        "path."
    )


def test_a_store_inside_the_input_is_refused_without_an_output_too() -> None:
    text = "is inside the input, /data/in, and would be read as input. Choose another path."
    assert text in refusal(**store(path="/data/in/items.lance"))


def test_run_refuses_a_job_that_is_only_refreshed(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "x": [[1.0, 2.0]]}), tmp_path / "in.parquet")
    source = {"path": "in.parquet", "key": "id", "features": {"x": "x"}}
    found = Job.from_dict({"input": source, "store": {"path": "items.lance"}}, tmp_path)
    with pytest.raises(JobError, match=r"`output\.path` is missing: .*refresh"):
        run(found)
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]
    elsewhere = {"input": source, "store": {"path": "items.lance"}, "output": {"path": "out"}}
    assert run(Job.from_dict(elsewhere, tmp_path)).rows["out"] == 1
    assert not (tmp_path / "items.lance.state").exists()


def test_the_schema_for_editors_knows_the_sections() -> None:
    properties = job_schema()["properties"]
    assert {"store", "gate", "publish"} <= properties.keys()
    assert "store" not in job_schema()["required"]
