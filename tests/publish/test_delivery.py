from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchnorm_tool.errors import Interrupted, JobError, WorkFailed
from batchnorm_tool.publish import check_targets, deliver, lagging, open_target
from batchnorm_tool.publish.changes import ChangeFeed
from batchnorm_tool.registry import TARGETS
from batchnorm_tool.storage import Storage
from batchnorm_tool.storage.checked_json import plain
from batchnorm_tool.store.rows import Publication
from tests.publish.publications import Section, a_month
from tests.sealing import unsealed


@pytest.fixture
def state(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "store.lance.state")


@pytest.fixture
def sections(tmp_path: Path) -> list[Section]:
    feed = Section("changes", path=str(tmp_path / "feed"), keep=9)
    again = Section("changes", path=str(tmp_path / "again"), keep=9, name="again")
    return [feed, Section("parquet", path=str(tmp_path / "snapshots")), again]


def test_every_target_gets_the_version_and_it_is_remembered(
    sections: list[Section], state: Storage
) -> None:
    _, nights = a_month()
    for night in nights[:2]:
        outcomes = deliver(night, sections, state)
    told = [(o.name, o.kind, o.error, o.skipped, o.facts and o.facts["version"]) for o in outcomes]
    assert told == [
        ("changes", "changes", None, False, 2),
        ("parquet", "parquet", None, False, 2),
        ("again", "changes", None, False, 2),
    ]
    assert all(outcome.seconds > 0 for outcome in outcomes)
    note = unsealed(state.get("targets/again.json") or b"")
    assert note == {"kind": "changes", "place": sections[2].path, "facts": outcomes[2].facts}
    assert note["facts"]["builds_on"] == 1
    assert json.loads(json.dumps(plain(outcomes[0])))["facts"]["upserts"] == 5


def test_a_target_that_holds_the_version_is_left_alone(
    sections: list[Section], state: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, nights = a_month()
    first = deliver(nights[0], sections, state)
    monkeypatch.setattr(ChangeFeed, "publish", None)
    second = deliver(nights[0], sections, state)
    assert [outcome.skipped for outcome in second] == [True] * 3
    assert [outcome.facts for outcome in second] == [outcome.facts for outcome in first]


class Broken(ChangeFeed):
    """Fails at version 2 only."""

    def publish(self, publication: Publication, held: Mapping[str, Any] | None) -> dict[str, Any]:
        if publication.version == 2:
            msg = "publish target `broken`: no"
            raise WorkFailed(msg)
        return super().publish(publication, held)


def test_a_target_that_fails_keeps_no_other_from_it_and_is_caught_up(
    sections: list[Section], state: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TARGETS, "broken", f"{__name__}:Broken")
    broken = Section("broken", path=str(tmp_path / "broken"))
    mixed, (_, nights) = [broken, *sections], a_month()
    deliver(nights[0], mixed, state)
    outcomes = deliver(nights[1], mixed, state)
    assert [outcome.error for outcome in outcomes] == [
        "publish target `broken`: no",
        None,
        None,
        None,
    ]
    assert outcomes[0].facts is None
    assert lagging(mixed, state, 2) == ["broken"]
    facts = deliver(nights[2], mixed, state)[0].facts
    assert facts is not None
    assert (facts["version"], facts["builds_on"]) == (3, 1)
    assert lagging(mixed, state, 3) == []
    assert lagging(mixed, state, 4) == ["broken", "changes", "parquet", "again"]


@pytest.mark.parametrize("error", [pa.ArrowInvalid("torn"), OSError(5, "torn")])
def test_rows_that_cannot_be_read_fail_every_target_by_name(
    error: Exception, sections: list[Section], state: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(_: Any) -> None:
        raise error

    _, nights = a_month()
    monkeypatch.setattr(type(nights[0]), "all_batches", torn)
    told = [outcome.error or "" for outcome in deliver(nights[0], sections, state)]
    names = ("changes", "parquet", "again")
    for name, said in zip(names, told, strict=True):
        assert said.startswith(f"publish target `{name}`: ")
        assert "torn" in said


def test_an_interruption_ends_the_delivery(
    sections: list[Section], state: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        msg = "stopped"
        raise Interrupted(msg)

    monkeypatch.setattr(Storage, "finish_publish", interrupted)
    _, nights = a_month()
    with pytest.raises(Interrupted, match="stopped"):
        deliver(nights[0], sections, state)
    assert state.names("targets") == []


@pytest.mark.parametrize("change", ["place", "kind", "damage"])
def test_a_note_of_another_place_is_none(
    change: str, sections: list[Section], state: Storage, tmp_path: Path
) -> None:
    _, nights = a_month()
    deliver(nights[0], sections[:1], state)
    section = sections[0]
    if change == "place":
        section = replace(section, path=str(tmp_path / "elsewhere"))
    elif change == "kind":
        section = replace(section, to="parquet", name="changes")
    else:
        state.put("targets/changes.json", b"{}")
    assert lagging([section], state, 1) == ["changes"]
    (outcome,) = deliver(nights[0], [section], state)
    assert not outcome.skipped
    assert outcome.error is None


def test_a_kill_before_the_note_delivers_the_same_version_once_more(
    sections: list[Section], state: Storage, tmp_path: Path
) -> None:
    _, nights = a_month()
    deliver(nights[0], sections, state)
    deliver(nights[1], sections, state)
    note = state.get("targets/changes.json")
    state.remove("targets/changes.json")
    written = (tmp_path / "feed/2/manifest.json").stat().st_mtime_ns
    assert lagging(sections, state, 2) == ["changes"]
    deliver(nights[1], sections, state)
    assert (tmp_path / "feed/2/manifest.json").stat().st_mtime_ns == written
    assert state.get("targets/changes.json") == note


def test_what_a_target_misses_is_found_before_the_work(
    sections: list[Section], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_targets(sections)
    monkeypatch.delenv("BATCHNORM_TOOL_PGVECTOR_DSN", raising=False)
    with pytest.raises(JobError, match="which is not set"):
        check_targets([*sections, Section("pgvector", table="items", index="hnsw")])


def test_no_library_of_a_target_is_imported_to_check_it(tmp_path: Path) -> None:
    program = """
import sys
from batchnorm_tool.publish import check_targets, lagging
from batchnorm_tool.storage import Storage
from tests.publish.publications import Section
sections = [Section("pgvector", table="items", index="hnsw"), Section("faiss", path="x")]
check_targets(sections)
assert lagging(sections, Storage("nowhere"), 1) == ["pgvector", "faiss"]
print(sorted({"psycopg", "pgvector", "faiss", "lance", "tensorflow"} & set(sys.modules)))
"""
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env={"BATCHNORM_TOOL_PGVECTOR_DSN": "x", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert finished.stdout == "[]\n"


@pytest.mark.parametrize("kind", ["changes", "parquet", "faiss"])
def test_something_else_in_the_place_is_found_before(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "target"
    if kind == "faiss":
        place.mkdir()
    else:
        place.write_text("")
    target = open_target(Section(kind, path=str(place), keep=9, index="auto", sample=10))
    with pytest.raises(JobError, match=rf"target `{kind}` needs a .* in `path`"):
        target.check()
