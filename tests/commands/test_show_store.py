from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from batchnorm_tool.commands.show import show
from batchnorm_tool.errors import InputError
from batchnorm_tool.gate.record import GateRecord, Hold
from batchnorm_tool.storage.checked_json import plain
from batchnorm_tool.store.index import IndexWriter
from batchnorm_tool.store.state import StoreDirectory, StorePointer, index_path
from tests.store.items import ITEMS, indexed, item, publish, record, stored


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "items.lance")
    publish(path, [item(number) for number in range(20)])
    publish(path, [{**item(30, 2), "status": "stale: missing"}], [{"id": 4}])
    return path


def test_a_store_is_shown(path: str) -> None:
    shown = show(path)
    assert shown.kind == "store"
    assert shown.to_dict() == {
        "kind": "store",
        "path": path,
        "version": 2,
        "lance_version": 2,
        "hold": None,
        "waiting": None,
        "versions": {"1": 1, "2": 2},
        "running": False,
        "rows": 20,
        "stale": 1,
        "quarantined": 0,
        "key": ["id"],
        "passthrough": ["label"],
        "width": 4,
        "dtype": "float32",
        "norm": "l2",
        "space": "5ace",
        "norms": {"count": 20, "q50": 2.0},
        "gate": {"action": "hold", "passed": True, "findings": []},
        "published": "2026-01-02T03:00:00+00:00",
    }


def test_quarantined_rows_are_not_among_the_rows(path: str) -> None:
    state = StoreDirectory(path)
    bad = {**item(55, 2), "status": "quarantined: missing", "norm": None}
    with IndexWriter(state.storage, index_path(2), ITEMS.key_schema) as index:
        index.add(indexed(pa.Table.from_pylist([bad, *stored(path)], ITEMS.schema)))
        index.commit()
    assert {"rows": 20, "stale": 1, "quarantined": 1}.items() <= show(path).facts.items()


def test_what_waits_and_holds_is_shown(path: str) -> None:
    state = StoreDirectory(path)
    gate = GateRecord("hold", passed=False, findings=())
    state.put_record(replace(record(3, 20, 3), reason="gate", started="x", gate=gate))
    hold = Hold("today", "rollback", 2)
    state.put_pointer(replace(state.pointer(), waiting=3, hold=hold))
    facts = show(path).facts
    assert facts["hold"] == plain(hold)
    assert facts["waiting"] == {"version": 3, "reason": "gate", "started": "x", "gate": plain(gate)}
    with state.lock():
        assert show(path).facts["running"]


def test_a_store_with_nothing_published_is_shown(tmp_path: Path) -> None:
    state = StoreDirectory(str(tmp_path / "new.lance"))
    state.put_pointer(StorePointer())
    shown = show(state.path)
    assert shown.kind == "store"
    assert (shown.facts["version"], shown.facts["rows"]) == (None, 0)


def test_a_page_of_a_store_is_drawn_by_history(path: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    with pytest.raises(InputError, match=rf"batchnorm-tool history {path} --html {page}"):
        show(path, html=str(page))
    assert not page.exists()
