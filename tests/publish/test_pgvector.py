from __future__ import annotations

import contextlib
import re
import threading
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from psycopg import sql

from batchnorm_tool.errors import JobError, OutputError, Refused, WorkFailed
from batchnorm_tool.publish import Target, open_target, pgvector_tables
from batchnorm_tool.publish.pgvector import _without_secrets
from batchnorm_tool.publish.pgvector_tables import Tables
from batchnorm_tool.publish.pgvector_types import RowShape, as_json, sql_type
from tests.postgres import VARIABLE
from tests.publish.kills import killed_at
from tests.publish.publications import (
    Publication,
    Section,
    Store,
    a_month,
    integers,
    pairs,
    replaced,
    rows,
    shown,
    texts,
)


def target(index: str = "none", rebuild_above: float = 0.5, table: str = "items") -> Target:
    return open_target(Section("pgvector", table=table, index=index, rebuild_above=rebuild_above))


def read(database: psycopg.Connection, publication: Publication) -> list[dict[str, Any]]:
    """What the view shows, in the order of the keys, as Python values."""
    wanted = shown(publication.table)
    keys = sql.SQL(", ").join(map(sql.Identifier, publication.layout.keys))
    query = sql.SQL("SELECT * FROM items ORDER BY {}").format(keys)
    cursor = database.execute(query)
    names = [column.name for column in cursor.description or []]
    assert names == wanted.column_names
    found = [dict(zip(names, row, strict=True)) for row in cursor]
    return [{**row, "vector": vector(row["vector"])} for row in found]


def vector(text: str) -> list[float]:
    return [float(np.float32(number)) for number in text.strip("[]").split(",")]


def check(database: psycopg.Connection, publication: Publication) -> None:
    assert repr(read(database, publication)) == repr(shown(publication.table).to_pylist())


def tables(database: psycopg.Connection) -> set[str]:
    rows_of = database.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return {name for (name,) in rows_of} - {"items_batchnorm_tool", "items_contract"}


@pytest.mark.parametrize("rebuild_above", [0.0, 0.5], ids=["anew", "merged"])
@pytest.mark.parametrize("keys", [integers, texts])
def test_every_version_of_a_month_arrives_exactly(
    database: psycopg.Connection, keys: Any, rebuild_above: float
) -> None:
    _, nights = a_month(keys)
    place, held = target(rebuild_above=rebuild_above), None
    for publication in nights:
        held = place.publish(publication, held)
        check(database, publication)
        assert (held["version"], held["rows"]) == (publication.version, publication.rows)


def test_few_changes_are_merged_and_many_or_other_columns_make_a_new_table(
    database: psycopg.Connection,
) -> None:
    _, nights = a_month()
    place, held, seen = target(rebuild_above=0.16), None, []
    for publication in nights:
        held = place.publish(publication, held)
        seen.append((held["table"], held["upserts"], held["deletes"]))
    assert seen == [
        ("items_v1", 40, 0),
        ("items_v1", 5, 0),
        ("items_v1", 1, 2),
        ("items_v4", 40, 0),  # 8 of 40 rows come back
        ("items_v4", 3, 2),
        ("items_v4", 2, 0),
        ("items_v7", 45, 0),
    ]
    assert tables(database) == {"items_v4", "items_v7"}


def test_two_missed_versions_are_caught_up_in_one_merge(database: psycopg.Connection) -> None:
    _, nights = a_month()
    place = target()
    held = place.publish(nights[0], None)
    held = place.publish(nights[2], held)
    check(database, nights[2])
    assert held["table"] == "items_v1"


def test_a_table_is_made_anew_where_nothing_is_known(database: psycopg.Connection) -> None:
    store, nights = a_month()
    place = target()
    held = place.publish(nights[0], None)
    assert place.publish(nights[1], None)["table"] == "items_v2"
    del store.versions[2]
    assert place.publish(nights[2], held)["table"] == "items_v3"
    check(database, nights[2])


def test_the_same_number_of_another_store_is_built_beside_the_old_one(
    database: psycopg.Connection,
) -> None:
    _, nights = a_month()
    other = Store(["id"], name="other").put(1, rows(integers(5, 6), 9))
    place = target()
    place.publish(nights[0], None)
    assert place.publish(other, None)["table"] == "items_v1_again"
    check(database, other)


def test_the_database_knows_what_it_holds(database: psycopg.Connection) -> None:
    _, nights = a_month()
    place = target()
    first = place.publish(nights[0], None)
    place.publish(nights[1], first)
    # As after a kill between the commit and the store's note.
    before = database.execute("SELECT updated_at FROM items_batchnorm_tool").fetchone()
    place.publish(nights[1], first)
    assert database.execute("SELECT updated_at FROM items_batchnorm_tool").fetchone() == before
    place.publish(nights[2], first)
    check(database, nights[2])


def test_the_contract_is_that_of_the_version_that_is_read(database: psycopg.Connection) -> None:
    _, nights = a_month()
    place, held = target(), None
    for publication in nights[:4]:  # new tables, merges, a rollback
        held = place.publish(publication, held)
        found = database.execute("SELECT version, contract::text FROM items_contract").fetchall()
        assert found == [(publication.version, publication.contract.decode())]


def test_a_table_of_somebody_else_is_not_taken_for_the_contract(
    database: psycopg.Connection,
) -> None:
    database.execute("CREATE TABLE items_contract AS SELECT 1 AS version")
    with pytest.raises(OutputError, match="no table `items_contract` of somebody else"):
        target().publish(a_month()[1][0], None)
    assert database.execute("SELECT version FROM items_contract").fetchall() == [(1,)]


def test_rows_that_somebody_else_removed_come_back(
    database: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, nights = a_month()
    real, seen = Tables.rebuild, []

    def watched(*args: Any) -> Any:
        seen.append(database.execute("SELECT to_regclass('items') IS NOT NULL").fetchone())
        seen.append(database.execute("SELECT max(version) FROM items_batchnorm_tool").fetchone())
        return real(*args)

    monkeypatch.setattr(Tables, "rebuild", watched)
    place = target()
    held = place.publish(nights[0], None)
    database.execute("DELETE FROM items_v1 WHERE id = 20")
    held = place.publish(nights[1], held)
    assert "`items_v1` did not contain the 43 rows of version 2" in held["warnings"][0]
    # Nothing of the merge was kept while the new table was built.
    assert seen == [(False,), (None,), (True,), (1,)]
    check(database, nights[1])


def test_composite_keys_and_rows_that_all_vanish(database: psycopg.Connection) -> None:
    store = Store(["shop", "number"])
    full = rows(pairs(("a", 1), ("a", 2), ("b'", 1)), 1)
    second = replaced(full.slice(1), rows(pairs(("a", 2)), 2))
    nights = [store.put(1, full), store.put(2, second), store.put(3, full.slice(0, 0))]
    place, held = target(rebuild_above=1.0), None
    for publication in nights:
        held = place.publish(publication, held)
        check(database, publication)


ODD = {
    "truth": (pa.array([True, None]), "boolean"),
    "tiny": (pa.array([-128, 127], pa.int8()), "smallint"),
    "byte": (pa.array([0, 255], pa.uint8()), "smallint"),
    "short": (pa.array([0, 65535], pa.uint16()), "integer"),
    "word": (pa.array([0, 2**32 - 1], pa.uint32()), "bigint"),
    "long": (pa.array([0, 2**64 - 1], pa.uint64()), "numeric(20,0)"),
    "half": (pa.array(np.array([0.5, -2], "f2")), "real"),
    "single": (pa.array([0.1, None], pa.float32()), "real"),
    "money": (pa.array([Decimal("1.50"), None], pa.decimal128(9, 2)), "numeric(9,2)"),
    "blob": (pa.array([b"\x00\xff", None]), "bytea"),
    "fixed": (pa.array([b"abc", b"def"], pa.binary(3)), "bytea"),
    "moment": (
        pa.array([datetime(2026, 1, 2, 3, 4, 5, 6, UTC), None], pa.timestamp("us", "UTC")),
        "timestamp with time zone",
    ),
    "clock": (pa.array([time(1, 2, 3), None], pa.time32("s")), "time without time zone"),
    "ticks": (pa.array([time(1, 2, 3, 4), None], pa.time64("ns")), "time without time zone"),
    "span": (pa.array([timedelta(seconds=90), None], pa.duration("s")), "interval"),
    "word_of": (pa.array(["x", "y"]).dictionary_encode(), "text"),
    "large": (pa.array(["ß", ""], pa.large_string()), "text"),
}


def test_passed_through_columns_keep_their_types_and_values(database: psycopg.Connection) -> None:
    table = rows(integers(1, 2), 1)
    for name, (column, _) in ODD.items():
        table = table.append_column(name, column)
    nested = pa.array([{"a": [1.5, float("nan")], "b": "x"}, None])
    nanoseconds = pa.array([1_000_000_123_456_789, None], pa.timestamp("ns"))
    table = table.append_column("nested", nested).append_column("nanos", nanoseconds)
    target().publish(Store(["id"]).put(1, table), None)
    types = dict(
        database.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = 'items'::regclass AND attnum > 0"
        ).fetchall()
    )
    for name, (column, kind) in ODD.items():
        assert types[name] == kind
        query = sql.SQL("SELECT {} FROM items ORDER BY id").format(sql.Identifier(name))
        found = database.execute(query, binary=True).fetchall()
        assert [value for (value,) in found] == column.to_pylist(), name
    found = database.execute("SELECT nested, nanos FROM items ORDER BY id").fetchall()
    assert found[0][0] == {"a": [1.5, None], "b": "x"}
    assert found[0][1] == datetime(1970, 1, 12, 13, 46, 40, 123456)  # noqa: DTZ001
    assert found[1] == (None, None)
    assert types["vector"] == "vector(4)"
    assert types["norm"] == "double precision"


@pytest.mark.parametrize(
    ("index", "width", "norm", "wanted"),
    [
        ("hnsw", 4, "l2", "USING hnsw (vector vector_cosine_ops)"),
        ("hnsw", 4, "l1", "USING hnsw (vector vector_ip_ops)"),
        ("ivfflat", 4, "l2", "USING ivfflat (vector vector_cosine_ops) WITH (lists='1')"),
        ("hnsw", 2001, "l2", "USING hnsw (((vector)::halfvec(2001)) halfvec_cosine_ops)"),
        ("hnsw", 4001, "l2", None),
        ("none", 4, "l2", None),
    ],
)
def test_the_index_serves_the_norm(
    database: psycopg.Connection, index: str, width: int, norm: str, wanted: str | None
) -> None:
    store = Store(["id"], norm=norm)
    facts = target(index).publish(store.put(1, rows(integers(1, 2, 3), 1, width)), None)
    found = database.execute("SELECT indexdef FROM pg_indexes WHERE tablename = 'items_v1'")
    made = {text.partition("items_v1 ")[2] for (text,) in found}
    assert made == {"USING btree (id)", wanted} - {None}
    assert bool(facts["warnings"]) == (width > 2000)


def test_a_search_uses_the_index(database: psycopg.Connection) -> None:
    publication = Store(["id"]).put(1, rows(integers(*range(500)), 1))
    target("hnsw").publish(publication, None)
    asked = str(publication.table["vector"][17].as_py())
    database.execute("SET enable_seqscan = off")
    query = "SELECT id FROM items ORDER BY vector <=> %s::vector LIMIT 1"
    assert database.execute(query, (asked,)).fetchone() == (17,)
    plan = database.execute(f"EXPLAIN {query}", (asked,)).fetchall()
    assert "Index Scan using items_v1_vector_idx" in str(plan)
    known = "SELECT count(*) FROM pg_stats WHERE tablename = 'items_v1' AND attname = 'norm'"
    assert database.execute(known).fetchone() == (1,)


def test_float64_vectors_are_rounded_with_a_warning(database: psycopg.Connection) -> None:
    table = rows(integers(1, 2), 1, dtype="f8")
    facts = target().publish(Store(["id"]).put(1, table), None)
    assert facts["warnings"] == ["pgvector stores float32: the float64 vectors were rounded."]
    found = database.execute("SELECT vector FROM items ORDER BY id").fetchall()
    wanted = np.array(table["vector"].to_pylist(), "f4")
    np.testing.assert_array_equal([vector(text) for (text,) in found], wanted)


def test_vectors_that_are_too_long_are_refused(database: psycopg.Connection) -> None:
    publication = Store(["id"]).put(1, rows(integers(1), 1, 16001))
    with pytest.raises(JobError, match=r"at most 16000 components.*Received: 16001"):
        target().check_layout(publication.layout)


@pytest.mark.parametrize("name", ["ctid", "xmin", "tableoid", "x" * 64, "é" * 32])
def test_a_column_that_postgresql_cannot_have_is_refused(
    database: psycopg.Connection, name: str
) -> None:
    table = rows({name: pa.array([1])}, 1)
    with pytest.raises(JobError, match=rf"cannot have the column `{name}`.*`store\.columns`"):
        target().check_layout(Store([name]).put(1, table).layout)


def test_what_is_missing_on_the_server_is_found_before_the_work(
    database: psycopg.Connection, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, nights = a_month()
    layout = nights[0].layout
    target().check_layout(layout)
    with pytest.raises(JobError, match="the schema `nowhere`: create it"):
        target(table="nowhere.items").check_layout(layout)
    database.execute("CREATE TABLE others (id int)")
    with pytest.raises(JobError, match=r"`public\.others` exists"):
        target(table="others").check_layout(layout)
    target().publish(nights[0], None)
    database.execute("DROP ROLE IF EXISTS guest")
    database.execute("CREATE ROLE guest LOGIN PASSWORD 'x'")
    user, at = "//postgres:@", "//guest:x@"
    assert user in server
    monkeypatch.setenv(VARIABLE, server.replace(user, at))
    with pytest.raises(JobError, match=r"a schema `public` that this user may create tables in"):
        target().check_layout(layout)
    database.execute("GRANT CREATE, USAGE ON SCHEMA public TO guest")
    with pytest.raises(JobError, match="a table `items_batchnorm_tool` that this user owns"):
        target().check_layout(layout)
    database.execute("DROP OWNED BY guest; DROP ROLE guest")


@pytest.mark.parametrize(
    ("options", "lasting"),
    [
        ({"user": "nobody_known"}, True),
        ({"dbname": "nowhere"}, True),
        ({"host": "/nowhere"}, False),
        ({"host": "127.0.0.1", "port": "1"}, False),
        ({"sslmode": "nonsense"}, True),
    ],
    ids=["user", "database", "socket", "port", "option"],
)
def test_a_server_that_is_away_may_come_back_and_a_wrong_name_may_not(
    server: str, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], *, lasting: bool
) -> None:
    known = {**psycopg.conninfo.conninfo_to_dict(server), **options}
    text = " ".join(f"{name}='{value}'" for name, value in known.items() if value)
    monkeypatch.setenv(VARIABLE, text)
    _, nights = a_month()
    with pytest.raises(OutputError if lasting else WorkFailed, match="PostgreSQL refused"):
        target().publish(nights[0], None)
    with pytest.raises(JobError) if lasting else contextlib.nullcontext():
        target().check_layout(nights[0].layout)


BIG = 2**62
UNFIT = {
    "text": pa.array(["a", "b\0", None]),
    "a list": pa.array([["a"], [None, "b\0"], None]),
    "a struct": pa.array([{"x": "a"}, {"x": "\0"}, None]),
    "a map": pa.array([[("a", "b")], [("a", "\0")], None], pa.map_(pa.string(), pa.string())),
    "a date": pa.array([0, 3_000_000, None], pa.int32()).cast(pa.date32()),
    "a time": pa.array([0, -BIG, None], pa.timestamp("us")),
    "a time with a zone": pa.array([0, 253_402_300_799, None], pa.timestamp("s", "Asia/Tokyo")),
    "a span": pa.array([0, BIG, None], pa.duration("s")),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_value_that_postgresql_cannot_take_is_found(name: str) -> None:
    table = pa.table({"id": range(3), "c": UNFIT[name]})
    unfit = target().find_unfit(table, ["id"])
    assert unfit is not None
    assert (unfit.row, unfit.column) == (1, "c")
    assert re.search("publish target `pgvector`: Expected .* Received: ", unfit.reason)
    assert target().find_unfit(table.take([0, 2]), ["id"]) is None


@pytest.mark.parametrize(
    "keys",
    [
        pa.array([1000, 1001], pa.timestamp("ns")),
        pa.array([1000, 1001], pa.time64("ns")),
        pa.array(["a", "b" * 2601]),
        pa.array([b"a", b"b" * 2601]),
    ],
    ids=["a part of a microsecond", "of a time of day", "a long text", "many bytes"],
)
def test_a_key_that_an_index_cannot_take_is_found(keys: pa.Array) -> None:
    table = pa.table({"id": keys})
    unfit = target().find_unfit(table, ["id"])
    assert unfit is not None
    assert unfit.row == 1
    assert target().find_unfit(table, []) is None


def test_other_columns_make_the_view_anew_and_say_so(database: psycopg.Connection) -> None:
    _, nights = a_month()
    place = target()
    held = place.publish(nights[5], None)
    told = place.publish(nights[6], held)
    assert told["warnings"] == [
        "The view was recreated with other columns: grant privileges on it again."
    ]


def test_privileges_on_the_view_outlive_a_new_table(database: psycopg.Connection) -> None:
    _, nights = a_month()
    place = target(rebuild_above=0.0)
    held = place.publish(nights[0], None)
    database.execute("GRANT SELECT ON items TO public")
    held = place.publish(nights[1], held)
    assert held["table"] == "items_v2"
    query = "SELECT has_table_privilege('pg_monitor', 'items', 'SELECT')"
    assert database.execute(query).fetchone() == (True,)


@pytest.mark.parametrize("what", ["TABLE items (id int)", "VIEW items AS SELECT 1 AS id"])
def test_a_table_or_view_that_is_not_ours_is_left_alone(
    database: psycopg.Connection, what: str
) -> None:
    database.execute(f"CREATE {what}")
    _, nights = a_month()
    with pytest.raises(
        OutputError, match=r"`public\.items` exists, but is not recorded in `items_batchnorm_tool`"
    ):
        target().publish(nights[0], None)
    database.execute("SELECT id FROM items")


def test_tables_that_are_called_like_ours_are_left_alone(database: psycopg.Connection) -> None:
    database.execute("CREATE TABLE items_v90 (id int)")
    database.execute("CREATE TABLE items_v91x (id int)")
    database.execute(f"COMMENT ON TABLE items_v91x IS '{pgvector_tables.MARK}'")
    _, nights = a_month()
    target().publish(nights[0], None)
    assert tables(database) == {"items_v1", "items_v90", "items_v91x"}


def test_a_table_that_cannot_be_dropped_is_a_warning(database: psycopg.Connection) -> None:
    _, nights = a_month()
    place = target(rebuild_above=0.0)
    held = place.publish(nights[0], None)
    database.execute("CREATE VIEW theirs AS SELECT id FROM items_v1")
    held = place.publish(nights[2], place.publish(nights[1], held))
    (warning,) = held["warnings"]
    assert warning.startswith("`items_v1` stays: cannot drop table items_v1 because other objects")


def test_another_schema_and_names_that_need_quotes(database: psycopg.Connection) -> None:
    database.execute('CREATE SCHEMA "My Shop"')
    table = rows(integers(1, 2), 1).rename_columns(
        ["order", *rows(integers(1), 1).column_names[1:-1], 'da"y%s {0}']
    )
    nights = Store(["order"])
    first = nights.put(1, table)
    second = nights.put(2, replaced(table, table.slice(0, 1), [2]))
    place = target(table='My Shop.it"ems')
    place.publish(second, place.publish(first, None))
    found = database.execute('SELECT "order", "da""y%s {0}" FROM "My Shop"."it""ems"')
    assert len(found.fetchall()) == 1


@pytest.mark.parametrize("rebuild_above", [0.0, 0.5], ids=["anew", "merged"])
@pytest.mark.parametrize(
    ("step", "most"),
    [((psycopg.Connection, "execute"), 100), ((psycopg.Copy, "write_row"), 2)],
    ids=["execute", "write_row"],
)
def test_killed_at_any_statement_the_view_ends_in_the_same_state(
    database: psycopg.Connection,
    rebuild_above: float,
    step: tuple[Any, str],
    most: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, nights = a_month()
    place, kills = target(rebuild_above=rebuild_above), 0
    allowed = {totals(night) for night in nights[1:3]}
    for count in range(1, most):
        held = start_again(database, place, nights[1])
        attempt = partial(place.publish, nights[2], held)
        if not killed_at(monkeypatch, step, count, "before", attempt):
            break
        kills += 1
        query = "SELECT count(*), sum(version)::int8 FROM items"
        assert database.execute(query).fetchone() in allowed
        place.publish(nights[2], held)
        check(database, nights[2])
        assert tables(database) == ({"items_v2"} if rebuild_above else {"items_v2", "items_v3"})
    assert kills == most - 1 or kills > 15


def start_again(
    database: psycopg.Connection, place: Target, publication: Publication
) -> dict[str, Any]:
    database.execute("DROP VIEW IF EXISTS items")
    for table in tables(database):
        database.execute(f"DROP TABLE {table}")
    return place.publish(publication, None)


def totals(publication: Publication) -> tuple[int, int]:
    versions = publication.table["version"].to_pylist()
    return len(versions), sum(versions)


def test_a_reader_never_sees_a_mixture(database: psycopg.Connection) -> None:
    _, nights = a_month()
    place = target(rebuild_above=0.16)
    held = place.publish(nights[0], None)
    allowed, seen, stop = {totals(night) for night in nights}, set(), threading.Event()

    def read_on() -> None:
        while not stop.is_set():
            seen.add(database.execute("SELECT count(*), sum(version)::int8 FROM items").fetchone())

    reader = threading.Thread(target=read_on)
    reader.start()
    try:
        for _ in range(3):
            for night in nights:
                held = place.publish(night, held)
    finally:
        stop.set()
        reader.join()
    assert seen <= allowed
    assert len(seen) > 1


def test_another_publisher_is_waited_for_and_then_refused(
    database: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgvector_tables, "LOCK_SECONDS", 0.1)
    _, nights = a_month()
    place = target()
    key = place._names.lock_key  # type: ignore[attr-defined]
    database.execute("SELECT pg_advisory_lock(%s)", (key,))
    with pytest.raises(WorkFailed, match="canceling statement due to lock timeout"):
        place.publish(nights[0], None)
    database.execute("SELECT pg_advisory_unlock(%s)", (key,))
    place.publish(nights[0], None)


def test_the_lock_is_held_while_a_table_is_built(
    database: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, nights = a_month()
    place, held_by_others = target(), []
    real = Tables.rebuild

    def watched(*args: Any) -> Any:
        key = place._names.lock_key  # type: ignore[attr-defined]
        row = database.execute("SELECT pg_try_advisory_lock(%s)", (key,)).fetchone()
        held_by_others.append(row)
        return real(*args)

    monkeypatch.setattr(Tables, "rebuild", watched)
    place.publish(nights[0], None)
    assert held_by_others == [(False,)]


def test_a_reader_that_never_pauses_stops_the_switch_with_a_message(
    database: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgvector_tables, "SWITCH_SECONDS", 0.05)
    monkeypatch.setattr(pgvector_tables, "SWITCH_TRIES", 2)
    _, nights = a_month()
    place = target(rebuild_above=0.0)
    held = place.publish(nights[0], None)
    with database.transaction():
        database.execute("SELECT count(*) FROM items")
        with pytest.raises(WorkFailed, match=r"in constant use.*2 tries of 0\.05 s"):
            place.publish(nights[1], held)
    check(database, nights[0])
    place.publish(nights[1], held)
    check(database, nights[1])


SECRET = "hunter2"  # noqa: S105


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://me:{SECRET}@localhost:1/x",
        f"host=/nowhere password={SECRET} {SECRET}",
        f"postgresql://me:{SECRET}@localhost:{SECRET}/x",
        f"host=/nowhere password='{SECRET}'",
        f"postgresql://{SECRET}:{SECRET}@/x?nonsense={SECRET}",
        f"postgresql://me:a@{SECRET}@localhost:1/x",
        f"postgresql://me:a/{SECRET}@localhost:1/x",
        f"postgresql://me:{SECRET}#b@localhost:1/x",
        f"postgresql://me:a?{SECRET}@localhost:1/x",
        f"postgresql://me@localhost:1/x?password={SECRET}&connect_timeout={SECRET}",
        f"postgresql://me:%68unter2@localhost:1/x{SECRET[:0]}",
    ],
)
def test_no_error_tells_the_connection_string(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    _, nights = a_month()
    with pytest.raises((WorkFailed, Refused), match=f"`pgvector`: .*`{VARIABLE}`") as told:
        target().publish(nights[0], None)
    error: BaseException | None = told.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__
    assert SECRET not in target().place


def test_a_refusal_of_the_server_is_told(database: psycopg.Connection) -> None:
    table = rows(texts("a\x00b"), 1)
    with pytest.raises(OutputError, match=r"`pgvector`: PostgreSQL refused: invalid byte sequence"):
        target().publish(Store(["id"]).put(1, table), None)


@pytest.mark.parametrize("missing", ["psycopg", "pgvector"])
def test_a_missing_library_is_found_before_the_work(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "x")
    target().check()
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == missing else object()
    )
    with pytest.raises(
        JobError, match=rf"needs {missing}.*pip install 'batchnorm-tool\[pgvector\]"
    ):
        target().check()


def test_an_unset_variable_and_a_long_name_are_found_before_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(JobError, match=f"environment variable `{VARIABLE}`, which is not set"):
        target().check()
    monkeypatch.setenv(VARIABLE, "x")
    with pytest.raises(JobError, match="at most 40 bytes"):
        target(table="x" * 41).check()


def test_the_shape_tells_other_columns_apart() -> None:
    _, nights = a_month()
    shapes = {RowShape(night.layout).signature for night in nights}
    assert len(shapes) == 2


def test_a_password_that_a_server_repeats_is_hidden() -> None:
    assert _without_secrets(f"no {SECRET} here", f"host=x password={SECRET}") == "no … here"


def test_what_has_no_type_of_its_own_becomes_json() -> None:
    assert (sql_type(pa.uint32()), sql_type(pa.list_(pa.int8()))) == ("bigint", "jsonb")
    assert as_json({"a": [1.5, float("nan")], "b": None}) == '{"a": [1.5, null], "b": null}'
