"""What a target cannot take is found before the model runs, and never ends with exit code 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from batchnorm_tool import accept, history
from batchnorm_tool.commands.refresh import staging
from batchnorm_tool.errors import InputError, JobError, TargetFailed
from tests.command_line import invoke
from tests.commands.refresh.nightly import Nightly, features, items, lists
from tests.postgres import VARIABLE, database, server

__all__ = ["database", "server"]

PGVECTOR = {"to": "pgvector", "table": "items", "index": "none"}


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Takes in every time that rows are scored."""
    calls: list[object] = []
    really = staging.score

    def score(*arguments: Any) -> Any:
        calls.append(arguments)
        return really(*arguments)

    monkeypatch.setattr(staging, "score", score)
    return calls


def labelled(*labels: str | None) -> pa.Table:
    rows = range(1, len(labels) + 1)
    x = lists([features(row) for row in rows])
    return pa.table({"id": rows, "x": x, "label": pa.array(labels, pa.string())})


def test_text_with_nul_is_refused_before_the_model_runs(
    nightly: Nightly, database: psycopg.Connection, scored: list[object]
) -> None:
    nightly.sections["publish"] = [PGVECTOR]
    nightly.put(labelled("a", "b\0c"))
    said = r"items\.parquet, row 1, column `label`: publish target `pgvector`: Expected text"
    with pytest.raises(InputError, match=said):
        nightly.night()
    assert scored == []
    assert nightly.state.pointer().live is None
    assert nightly.night(labelled("a", None)).state == "published"
    assert len(scored) == 1
    assert database.execute("SELECT count(*) FROM items").fetchone() == (2,)


def test_a_row_to_be_deleted_may_hold_anything(
    nightly: Nightly, database: psycopg.Connection
) -> None:
    nightly.sections["publish"] = [PGVECTOR]
    nightly.night(labelled("a", "b"))
    gone = labelled("\0", "c").append_column("gone", pa.array([True, False]))
    night = nightly.night(gone, store__mode="delta", store__delete_column="gone")
    assert night.rows["live"] == 1


def test_minus_one_as_a_key_is_refused_for_faiss_before_the_model_runs(
    nightly: Nightly, scored: list[object]
) -> None:
    nightly.sections["publish"] = [{"to": "faiss", "path": "index"}]
    with pytest.raises(InputError, match="row 1, column `id`: publish target `faiss`: the key"):
        nightly.night({3: 0, -1: 0})
    assert scored == []


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"to": "faiss", "path": "index", "index": "Nope"}, "FAISS refused an index `Nope`"),
        ({**PGVECTOR, "table": "nowhere.items"}, "the schema `nowhere`: create it"),
    ],
    ids=["faiss", "pgvector"],
)
def test_a_target_that_cannot_be_made_is_refused_before_anything_is_written(
    nightly: Nightly, database: psycopg.Connection, section: dict[str, Any], said: str
) -> None:
    nightly.sections["publish"] = [section]
    with pytest.raises(JobError, match=said):
        nightly.night({1: 0})
    assert nightly.state.pointer().live is None


def test_a_target_that_is_away_does_not_keep_the_store_from_being_published(
    nightly: Nightly, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "host=127.0.0.1 port=1 password=hunter2")
    nightly.sections["publish"] = [PGVECTOR]
    with pytest.raises(TargetFailed) as caught:
        nightly.night({1: 0})
    assert caught.value.exit_code == 1
    assert nightly.state.pointer().live == 1
    assert "hunter2" not in f"{caught.value.message}{caught.value.night}{history(nightly.store)}"


def test_a_target_that_will_never_take_the_rows_ends_with_2(
    nightly: Nightly, database: psycopg.Connection
) -> None:
    nightly.night(labelled("a", "b\0"))
    nightly.sections["publish"] = [PGVECTOR]
    with pytest.raises(TargetFailed) as caught:  # the row is in the store, and in no input
        nightly.night(labelled("c"), store__mode="delta")
    assert caught.value.exit_code == 2
    assert "invalid byte sequence" in caught.value.message


def test_a_candidate_is_not_accepted_for_a_target_that_cannot_be_made(
    nightly: Nightly, database: psycopg.Connection
) -> None:
    nightly.sections["publish"] = [PGVECTOR]
    nightly.night(items(dict.fromkeys(range(20), 0)))
    held = nightly.held({1: 0}, {"gate": {"input": {"vanished": 0.1}}})
    database.execute("DROP SCHEMA public CASCADE")
    with pytest.raises(JobError, match="the schema `public`: create it"):
        accept(nightly.store, held["version"])


@pytest.mark.parametrize(
    "text",
    ["postgresql://me:hunter2@host/db", "postgresql://me:a@hunter2@host/db", "password=hunter2"],
)
@pytest.mark.parametrize("flag", ["--print-config", "--json", "--dry-run"])
def test_a_connection_string_in_the_job_is_refused_and_never_shown(
    tmp_path: Path, text: str, flag: str
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        "input: {path: in, key: id}\nstore: {path: s.lance}\n"
        f"publish: [{{to: pgvector, table: items, dsn_env: '{text}'}}]\n"
    )
    result = invoke("refresh", job, flag)
    assert result.exit_code == 2
    assert "must be the name of an environment variable" in result.output
    assert "hunter2" not in result.output
