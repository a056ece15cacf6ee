"""An input that is the very one of which the live version was made: known without hashing a row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool import refresh
from batchnorm_tool.commands.progress import SilentProgress
from batchnorm_tool.commands.refresh.changes.source import RefreshSource
from batchnorm_tool.commands.refresh.refresh import plan_refresh
from tests.commands.refresh.nightly import Nightly, features, items

FIRST = dict.fromkeys(range(20), 0)
QUARANTINE = {"input__invalid": "quarantine"}
# With a row that has no features, and is set aside.
SOME_BAD = items(FIRST).set_column(
    1, "x", pa.array([None, *(features(key).tolist() for key in range(1, 20))])
)
_OF_AN_ATTEMPT = {"run_id", "started", "finished", "seconds"}


def told(nightly: Nightly, **values: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a dry run and a night over the same input tell, but for the times."""
    planned, night = plan_refresh(nightly.job(**values)), nightly.night(None, **values)
    assert night.state == "nothing to do"
    record = {key: value for key, value in night.to_dict().items() if key not in _OF_AN_ATTEMPT}
    return planned, record


def forget(nightly: Nightly) -> None:
    """Let the record of the live version be one from before the content of inputs was kept."""
    record = nightly.state.existing_record(nightly.state.pointer().live or 0)
    nightly.state.put_record(replace(record, input=replace(record.input, content=None)))


@pytest.mark.parametrize("table", [items(FIRST), SOME_BAD], ids=["good rows", "a bad row"])
def test_it_tells_what_is_found_row_by_row(
    nightly: Nightly, monkeypatch: pytest.MonkeyPatch, table: pa.Table
) -> None:
    nightly.night(table, **QUARANTINE)
    with monkeypatch.context() as patched:
        patched.delattr(RefreshSource, "chunks")
        planned, night = told(nightly, **QUARANTINE)
    assert planned["rows"]["same"] == night["rows"]["in"] == 20
    assert planned["rows"]["live"] == night["rows"]["live"] == 20 - table["x"].null_count
    forget(nightly)
    assert told(nightly, **QUARANTINE) == (planned, night)


class Counted(SilentProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def advance(self, rows: int) -> None:
        self.rows.append(rows)


def same_footer(nightly: Nightly) -> None:
    """Change one feature of one row in a file whose footer stays as it is."""
    path = nightly.path / "in" / "items.parquet"
    old, new = (features(key)[:1].tobytes() for key in (3, 4))
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))


def put_plainly(nightly: Nightly) -> None:
    nightly.put(FIRST)
    pq.write_table(
        items(FIRST),
        nightly.path / "in" / "items.parquet",
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )


def test_files_that_look_the_same_and_are_not_are_found_out(nightly: Nightly) -> None:
    put_plainly(nightly)
    nightly.night()
    before = nightly.state.existing_record(1).input.files
    same_footer(nightly)
    counted = Counted()
    night = refresh(nightly.job(), progress=counted)
    assert nightly.state.existing_record(2).input.files == before
    assert (night.rows["changed"], night.rows["same"]) == (1, 19)
    # Rows that are read twice count once; then the changed one is predicted.
    assert sum(counted.rows) == 20 + 1


def test_of_a_delta_the_store_may_have_more_rows(nightly: Nightly) -> None:
    nightly.night(FIRST)
    nightly.night({0: 1}, store__mode="delta")
    rows = plan_refresh(nightly.job())["rows"]
    assert (rows["same"], rows["vanished"]) == (1, 19)


def test_kept_otherwise_it_is_another(nightly: Nightly) -> None:
    nightly.night(FIRST)
    assert plan_refresh(nightly.job(input__passthrough=[]))["rows"]["touched"] == 20
