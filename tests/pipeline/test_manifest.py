from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.commands.run.run import run
from batchnorm_tool.errors import Damaged, WorkFailed
from batchnorm_tool.job import Job
from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.norms.stats import VectorStats
from batchnorm_tool.pipeline import part_output
from batchnorm_tool.pipeline.manifest import (
    BadRow,
    PartRecord,
    RowCounts,
    Totals,
    read_manifest,
    read_record,
    record_path,
    total,
)
from batchnorm_tool.pipeline.output_schema import fixed_size_list
from batchnorm_tool.storage import FileRecord, Storage
from tests.sealing import sealed, unsealed


def record_of(part: int, rows: int = 4, bad: int = 1, warnings: tuple[str, ...] = ()) -> PartRecord:
    vectors = np.random.default_rng(part).normal(size=(rows, 3))
    norm = Norm.parse("l2")
    stats = VectorStats.of(vectors, rows=rows, in_use=norm, in_use_norms=None)
    return PartRecord(
        part=part,
        first_row=part * rows,
        bits="b" * 64,
        counts=RowCounts(rows_in=rows, rows_out=rows - bad, bad=bad, dropped=bad),
        reasons={"null_feature": bad} if bad else {},
        first_bad_rows=tuple(
            BadRow(part * rows + row, "/in/a.parquet", row, f"key {row}", "null_feature")
            for row in range(bad)
        ),
        files=(FileRecord(f"vectors/part-{part:06d}.parquet", 10, "c" * 64),),
        statistics={"vector": stats},
        warnings=warnings,
    )


def stored(tmp_path: Path, *records: PartRecord) -> Storage:
    storage = Storage(tmp_path / "out")
    for record in records:
        storage.put(record_path(record.part), record.to_json())
    return storage


def test_a_record_survives_json(tmp_path: Path) -> None:
    record = record_of(3, warnings=("one", "two"))
    again = read_record(stored(tmp_path, record), 3)
    assert again is not None
    assert again.to_json() == record.to_json()
    assert again.counts == record.counts
    assert again.first_bad_rows == record.first_bad_rows
    assert again.files == record.files
    assert again.warnings == record.warnings


def test_a_record_holds_nothing_but_the_part(tmp_path: Path) -> None:
    assert set(json.loads(record_of(0).to_json())) == {
        "part", "first_row", "bits", "counts", "reasons", "first_bad_rows", "files", "statistics",
        "warnings", "chunks", "hashes", "checksum",
    }  # fmt: skip


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b'{"part": 3}'])
def test_a_damaged_record_is_no_record(text: bytes) -> None:
    assert PartRecord.from_json(text) is None


def test_every_changed_byte_of_a_record_is_noticed() -> None:
    text = record_of(0).to_json()
    for position in range(0, len(text), 7):
        changed = bytearray(text)
        changed[position] ^= 1
        record = PartRecord.from_json(bytes(changed))
        # The last digit of a number may change and still mean the same float64.
        assert record is None or record.to_json() == text


def test_a_record_of_another_version_is_no_record() -> None:
    data = unsealed(record_of(0).to_json())
    data["counts"]["more"] = 1
    assert PartRecord.from_json(sealed(data)) is None


def test_totals_add_up_in_the_order_of_the_parts(tmp_path: Path) -> None:
    records = [record_of(part, bad=part % 3) for part in range(9)]
    totals = total(stored(tmp_path, *records), range(9))
    assert totals.counts == RowCounts(rows_in=36, rows_out=27, bad=9, dropped=9)
    assert totals.reasons == {"null_feature": 9}
    assert [row.row for row in totals.first_bad_rows] == [4, 8, 9, 16, 20, 21, 28, 32, 33]
    assert [part.part for part in totals.parts] == list(range(9))
    stats = totals.statistics["vector"]
    assert stats.rows == 36
    vectors = np.concatenate([np.random.default_rng(part).normal(size=(4, 3)) for part in range(9)])
    assert stats.norms["l2"].mean == pytest.approx(np.linalg.norm(vectors, axis=1).mean())


def test_what_parts_warn_of_is_said_once_in_their_order() -> None:
    totals = Totals()
    for part, warnings in enumerate([(), ("b", "c"), ("a", "b")]):
        totals.add(record_of(part, warnings=warnings))
    assert totals.warnings == ["b", "c", "a"]


def test_only_the_first_bad_rows_are_named() -> None:
    totals = Totals()
    for part in range(6):
        totals.add(record_of(part, bad=3))
    assert [row.row for row in totals.first_bad_rows] == [0, 1, 2, 4, 5, 6, 8, 9, 10, 12]
    assert totals.counts.bad == 18


@pytest.mark.parametrize("text", [None, b"{}"], ids=["missing", "damaged"])
def test_a_record_that_cannot_be_read_is_made_again(tmp_path: Path, text: bytes | None) -> None:
    storage = stored(tmp_path, record_of(0))
    if text is not None:
        storage.put(record_path(1), text)
    with pytest.raises(WorkFailed, match=r"`_state/records/000001.json` is missing or damaged"):
        total(storage, range(2))


@pytest.mark.parametrize("record", [b"[1]", b'{"chunks": 5}', b'{"chunks": "A"}'])
def test_a_record_without_statistics_is_damage(tmp_path: Path, record: bytes) -> None:
    storage = stored(tmp_path, record_of(0))
    (tmp_path / "out" / record_path(0)).write_bytes(record)
    with pytest.raises(Damaged, match="`chunks`"):
        part_output.gather(storage, [0])


def test_row_counts_go_by_in_and_out() -> None:
    counts = RowCounts(rows_in=3, rows_out=2, bad=1, quarantined=1)
    assert counts.to_dict() == {
        "in": 3, "out": 2, "bad": 1, "zero": 0, "nullified": 0, "dropped": 0, "quarantined": 1,
        "failed": 0,
    }  # fmt: skip
    assert RowCounts.from_dict(counts.to_dict()) == counts


# ---- of a finished run


def finished(tmp_path: Path, out: str = "out", **engine: Any) -> Path:
    vectors = np.arange(1, 25, dtype=np.float32).reshape(12, 2)
    pq.write_table(
        pa.table({"id": np.arange(12), "v": fixed_size_list(vectors)}), tmp_path / "in.parquet"
    )
    data = {
        "input": {"path": "in.parquet", "key": "id", "features": "v"},
        "output": {"path": out, "part_rows": 5},
        "engine": engine,
    }
    run(Job.from_dict(data, tmp_path))
    return tmp_path / out


def test_the_manifest_describes_the_run(tmp_path: Path) -> None:
    out = finished(tmp_path)
    manifest = read_manifest(Storage(out), str(out))
    assert manifest is not None
    assert {
        "bits", "first_bad_rows", "format", "identity", "inputs", "job", "limit", "outputs",
        "parts", "reasons", "request", "resolved", "result", "rows", "space", "statistics", "tool",
        "version", "warnings",
    } <= set(manifest.to_dict())  # fmt: skip
    assert manifest.space == manifest.identity.space_id
    assert manifest.bits == manifest.identity.bits_id
    assert manifest.result == manifest.identity.result_id
    assert [part.rows_in for part in manifest.parts] == [5, 5, 2]
    assert set(manifest.reasons.values()) == {0}
    assert manifest.checksum == (out / "_SUCCESS").read_text().strip()
    lengths = manifest.statistics["vector"].norms["l2"]
    assert lengths.min == pytest.approx(5**0.5)
    assert lengths.max == pytest.approx((23**2 + 24**2) ** 0.5)


def test_the_manifest_does_not_say_who_did_it(tmp_path: Path) -> None:
    one = finished(tmp_path, workers=1)
    first = (one / "_manifest.json").read_bytes()
    (one / "_SUCCESS").unlink()
    for name in ("_manifest.json", "contract.json", "_stats/chunks.parquet"):
        (one / name).unlink()
    for path in (one / "vectors").iterdir():
        path.unlink()
    for folder in ("_stats", "vectors"):
        (one / folder).rmdir()
    assert (finished(tmp_path, workers=3) / "_manifest.json").read_bytes() == first


def test_nothing_finished_has_no_manifest(tmp_path: Path) -> None:
    assert read_manifest(Storage(tmp_path), "out") is None


@pytest.mark.parametrize("name", ["_manifest.json", "_SUCCESS"])
def test_a_changed_manifest_is_damage(tmp_path: Path, name: str) -> None:
    out = finished(tmp_path)
    text = (out / name).read_text()
    # Every digit: one hash in sixty has no 0.
    (out / name).write_text(text.translate(str.maketrans("0123456789", "1234567890")))
    with pytest.raises(Damaged, match=r"`out/_manifest.json` is missing or damaged"):
        read_manifest(Storage(out), "out")


def test_a_missing_manifest_is_damage(tmp_path: Path) -> None:
    out = finished(tmp_path)
    (out / "_manifest.json").unlink()
    with pytest.raises(Damaged, match="--fresh"):
        read_manifest(Storage(out), "out")
